"""What methods share that change widths while they train."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from budgetnet.growth import GrowthPlan
from budgetnet.methods.base import BudgetedModule
from budgetnet.methods.options import FineTuning, Optimization
from budgetnet.methods.schedule import learning_rate

Images = tuple[Tensor, Tensor]
"""(images, labels) on the module's device."""


class ResizingModule(BudgetedModule):
    """A method with rounds: at the end of each, the callback Growth asks for a plan and has it carried out.

    The round whose plan says why rounds end (`stop`) is the last; fine-tuning follows.
    """

    optim: Optimization
    finetune: FineTuning
    images_wanted = 0
    """Training images that a plan is made with, at least; 0: none."""

    @property
    def resizes(self) -> bool:
        return self.phase != "finetune"

    def epoch_is_over(self, epochs: int) -> None:
        """Whatever is done after every epoch, before a round may end."""

    def round_is_over(self, epochs: int) -> bool:
        """Whether a round ends after `epochs` epochs."""
        raise NotImplementedError

    def plan_round(self, epochs: int, images_per_epoch: int, batch: Images | None) -> GrowthPlan:
        """What happens at the end of a round, after `epochs` epochs. Asked on the first process alone."""
        raise NotImplementedError

    def first_filters(self) -> tuple[Tensor, Tensor] | None:
        """The first layer's filters and which are selected, to be drawn; None where nothing is selected."""
        return None

    def carry_out(self, plan: GrowthPlan, epochs: int, batch: Images | None) -> None:
        """Resize as planned, on every process."""
        raise NotImplementedError

    def end_round(self, plan: GrowthPlan, epochs: int) -> None:
        """The last of `carry_out`: count the round, and start the fine-tuning if it was the last."""
        self.round = plan.round
        if plan.stop is not None:
            self.stop_reason = plan.stop
            self.phase, self.growing_epochs = "finetune", epochs

    # -- fine-tuning ------------------------------------------------------------------------------------------------

    def finished(self, epochs: int) -> bool:
        return self.phase == "finetune" and epochs >= self.growing_epochs + self.finetune.epochs

    @property
    def tuning_lr(self) -> float:
        """The learning rate that fine-tuning begins with."""
        return self.optim.lr if self.finetune.lr is None else self.finetune.lr

    def tuning_rate(self, epoch: int, batch: int, steps_per_epoch: int) -> float:
        """Learning rate of a step of the fine-tuning: its own schedule, from its first epoch."""
        tune, spe = self.finetune, steps_per_epoch
        step = (epoch - self.growing_epochs) * spe + batch
        return learning_rate(tune.schedule, self.tuning_lr, step, tune.epochs * spe, tune.warmup_epochs * spe)

    # -- checkpoints ------------------------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["budgetnet"] |= {"growing_epochs": self.growing_epochs, "stop_reason": self.stop_reason}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        state = checkpoint["budgetnet"]
        self.growing_epochs, self.stop_reason = state["growing_epochs"], state["stop_reason"]
