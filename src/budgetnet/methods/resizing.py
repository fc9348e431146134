"""What methods share that change widths while they train."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from budgetnet.channels import rescale_filters
from budgetnet.methods.base import BudgetedModule
from budgetnet.methods.growth import Candidates, GrowthPlan, Limit, load
from budgetnet.methods.options import FineTuning, Optimization, Rounds
from budgetnet.methods.phases import learning_rate

Images = tuple[Tensor, Tensor]
"""(images, labels) on the module's device."""

Plan = TypeVar("Plan", bound=GrowthPlan)


class ResizingModule(BudgetedModule):
    """A method with rounds: at the end of each, the callback Growth asks for a plan and has it carried out.

    The round whose plan says why rounds end (`stop`) is the last; fine-tuning follows. What is written here holds for
    a network that grows in the phase "grow", every `growth.epochs_per_round` epochs; other methods have their own.
    """

    optim: Optimization
    rounds: Rounds
    finetune: FineTuning
    epochs: int
    """Of the whole run, at most."""
    images_wanted = 0
    """Training images that a plan is made with, at least; 0: none."""

    @property
    def resizes(self) -> bool:
        return self.phase != "finetune"

    def epoch_is_over(self, epochs: int) -> None:
        """Whatever is done after every epoch, before a round may end."""

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """The one optimizer, without the trainer's wrapper."""
        optimizer = self.optimizers(use_pl_optimizer=False)
        assert isinstance(optimizer, torch.optim.Optimizer)
        return optimizer

    def learning_rate(self, epoch: int, batch: int, steps_per_epoch: int) -> float:
        """Constant while growing, after a warm-up: it must not decay before the last growth. Then that of tuning."""
        if self.phase != "grow":
            return self.tuning_rate(epoch, batch, steps_per_epoch)
        o, spe = self.optim, steps_per_epoch
        return learning_rate("constant", o.lr, epoch * spe + batch, 1, o.warmup_epochs * spe)  # whatever its length

    def round_is_over(self, epochs: int) -> bool:
        """Whether a round ends after `epochs` epochs."""
        return self.phase == "grow" and epochs % self.rounds.epochs_per_round == 0

    def plan_round(self, epochs: int, images_per_epoch: int, batch: Images | None) -> GrowthPlan:
        """What happens at the end of a round, after `epochs` epochs. Asked on the first process alone."""
        raise NotImplementedError

    def bounded(self, plan: Plan, epochs: int) -> Plan:
        """The plan of a round after `epochs` epochs, which also ends growth if it is the last that may be, or fits."""
        if plan.stop is not None:
            return plan
        if self.rounds.max_rounds is not None and plan.round >= self.rounds.max_rounds:
            return replace(plan, stop="max_rounds")
        if epochs + self.rounds.epochs_per_round + self.finetune.epochs > self.epochs:
            return replace(plan, stop="epochs")
        return plan

    def first_filters(self, plan: GrowthPlan) -> tuple[Tensor, Tensor] | None:
        """Of the convolution that is executed first its weights now and which filters are selected, (filters,).

        They are drawn as they are before the plan is carried out (the AdeNeL paper's Figure 4). None if the first width
        is a linear layer's. What is returned is on the CPU.
        """
        first = self.graph.groups[0]
        if first.kind != "convolution":
            return None
        weight = self.net.get_parameter(f"{first.name}.weight")
        return weight.detach().float().cpu(), self.selected(first.name, plan).cpu()

    def selected(self, group: str, plan: GrowthPlan) -> Tensor:
        """(width,) which filters of a group the plan keeps; none where it does not choose among them."""
        chosen = torch.zeros(self.graph.group(group).width, dtype=torch.bool)
        chosen[torch.tensor(plan.kept.get(group, ()), dtype=torch.long)] = True
        return chosen

    def carry_out(self, plan: GrowthPlan, epochs: int, batch: Images | None) -> None:
        """Resize as planned, on every process."""
        raise NotImplementedError

    def started(self, plan: GrowthPlan, candidates: Candidates) -> GrowthPlan:
        """The plan with what new channels start from, under growth.init=firefly: the best of the candidates."""
        return replace(plan, start=candidates.start(plan.changes)) if plan.changes else plan

    def grow(self, plan: GrowthPlan, optimizer: torch.optim.Optimizer, seed: int, batch: Images | None) -> None:
        """Widen as planned; new channels start as growth.init says, by draws that are a function of the seed."""
        init = "he" if self.rounds.init == "firefly" else self.rounds.init
        self.resize(plan.changes, optimizer=optimizer, init=init, seed=seed, batch=batch, loss=self.task.loss)
        load(self.net, plan.start)
        if self.rounds.rescale:
            rescale_filters(self.net, optimizer)

    def end_round(self, plan: GrowthPlan, epochs: int) -> None:
        """The last of `carry_out`: count the round, and start the fine-tuning if it was the last."""
        self.round = plan.round
        if plan.stop is not None:
            self.stop_reason = plan.stop
            self.phase, self.growing_epochs = "finetune", epochs

    def growth_limits(self, images_per_epoch: int) -> list[Limit]:
        """What growth may come to, in closed forms of the network.

        What is left of the train cost bounds the FLOPs: fine-tuning must still fit; and another round besides, if
        growth is to go on.
        """
        limits = []
        for kind, most in self.budget.limits.items():
            if kind == "train_cost":
                left = most - self.ledger.spent
                tune = self.finetune.epochs * images_per_epoch
                another = tune + self.rounds.epochs_per_round * images_per_epoch
                limits.append(Limit(kind, "flops", left // tune, left // another))
            else:
                limits.append(Limit(kind, kind, most))
        return limits

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
