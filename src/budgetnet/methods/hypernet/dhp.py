"""DHP: latent vectors shrink while their network learns, until what is left of them is within the budget.

Li et al., "DHP: Differentiable Meta Pruning via HyperNetworks" (ECCV 2020).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call

from budgetnet.methods.hypernet import criteria
from budgetnet.methods.hypernet.hypernetwork import Hypernetwork, generation_flops
from budgetnet.methods.hypernet.options import Shrinking
from budgetnet.methods.hypernet.proximal import shrink_latents
from budgetnet.methods.hypernet.shrinking import floors_by_count, kept_widths
from budgetnet.methods.hypernet.widened import Selected, Widened
from budgetnet.methods.method import Images, Training, must_fit
from budgetnet.methods.options import FineTuning, Optimization
from budgetnet.methods.phases import Phase
from budgetnet.methods.plan import Plan
from budgetnet.tasks import Output


class DHP(Widened):
    """Trains a network whose weights are made from latents, which shrink with every step; those that are left when
    they fit the budget stay, and what is left of the network is trained anew from there.

    The network's own convolutions rest meanwhile: they have no gradients.
    """

    def __init__(self, optim: Optimization, finetune: FineTuning, method: Shrinking) -> None:
        super().__init__(optim)
        self.finetune, self.options = finetune, method

    def start(self, training: Training) -> list[Phase]:
        """Raises UsageError for a budget that no narrowed network meets."""
        options, tune = self.options, self.finetune.epochs
        search = self.search_epochs = training.epochs_before(tune, options.search_epochs)
        must_fit(training.epochs, search + tune, f"method.search_epochs={search}", f"finetune.epochs={tune}")
        self.widen(training, options.multiplier)
        self.must_narrow(floors_by_count(self.graph, options.floor))
        self.generation = generation_flops(self.graph, options.embedding)
        self.modules["hypernetwork"] = Hypernetwork(self.graph, options.embedding, training.seed)
        self.reached = False
        """Whether what is left is within the budget; then nothing shrinks any more."""
        self._rest(True)
        return [self.optim.growing("search", search), self.finetune.phase(self.optim)]

    @property
    def hypernetwork(self) -> Hypernetwork | None:
        """What makes the weights; None once they are the network's own."""
        found = dict(self.modules.items()).get("hypernetwork")
        assert found is None or isinstance(found, Hypernetwork)
        return found

    # -- a step -------------------------------------------------------------------------------------------------------

    def forward(self, images: Tensor) -> Output:
        if self.hypernetwork is None:
            return super().forward(images)
        output: Output = functional_call(self.net, self.hypernetwork(), (images,))
        return output

    def optimizers(self) -> list[torch.optim.Optimizer]:
        """SGD, which everything that makes weights decays under, and a proximal step after each of its own."""
        [optimizer] = super().optimizers()
        if self.hypernetwork is not None:
            optimizer.add_param_group({"params": list(self.hypernetwork.parameters())})
            optimizer.register_step_post_hook(self._shrink)
        return [optimizer]

    def _shrink(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        options, training, hypernetwork = self.options, self.training, self.hypernetwork
        if hypernetwork is None or self.reached:
            return
        step = options.sparsity * optimizer.param_groups[-1]["lr"]
        shrink_latents(hypernetwork, step, options.floor, options.threshold)
        if (training.epoch * training.steps_per_epoch + training.batch + 1) % options.check_every == 0:
            self.reached = training.budget.fits(self._left(hypernetwork))

    def _left(self, hypernetwork: Hypernetwork) -> dict[str, int]:
        """By kind, what the network of the latents costs that reach the threshold."""
        sizes = criteria.magnitude(hypernetwork)
        return self.training.pricing.costs(kept_widths(self.graph, sizes, self.floors, self.options.threshold))

    def computed(self, images: int) -> list[tuple[int, int]]:
        """With the weights, which every process makes for itself."""
        made = [] if self.hypernetwork is None else [(self.training.processes.count, self.generation)]
        return [*super().computed(images), *made]

    # -- the end of the search ----------------------------------------------------------------------------------------

    def plan(self, epochs: int, batch: Images | None) -> Selected | None:
        """The largest latents stay, as many as fit, once few enough are left or the search is over."""
        if self.hypernetwork is None or epochs == 0:
            return None
        if not self.training.budget.fits(self._left(self.hypernetwork)) and epochs < self.search_epochs:
            return None
        return self.select(criteria.magnitude(self.hypernetwork))

    def apply(self, plan: Plan, batch: Images | None) -> None:
        """The weights become the network's own, and it is narrowed."""
        assert self.hypernetwork is not None
        self.hypernetwork.write(self.net)
        self.training.optimizer.param_groups.pop()
        self._end()
        super().apply(plan, batch)

    def _rest(self, resting: bool) -> None:
        """The convolutions whose weights are made have no gradients, so that no process waits for them."""
        assert self.hypernetwork is not None
        for path in self.hypernetwork.latents.axes:
            self.net.get_parameter(f"{path}.weight").requires_grad_(not resting)

    @property
    def searching(self) -> bool:
        return self.hypernetwork is not None

    def _end(self) -> None:
        if self.hypernetwork is not None:
            self._rest(False)
            self.modules.clear()

    def rows(self) -> dict[str, dict[str, float]]:
        """latents.csv: what the network of the latents costs that reach the threshold."""
        return {} if self.hypernetwork is None else {"latents": {**self._left(self.hypernetwork)}}

    # -- checkpoints --------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        return {"searching": self.searching, "reached": self.reached}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.reached = state["reached"]
        if not state["searching"]:
            self._end()
