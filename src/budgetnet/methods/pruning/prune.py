"""Pruning: the full backbone is trained, narrowed to the budget in one or several steps, and fine-tuned.

Each subclass is a published method, which defines the scores of channels and how the budget is allocated to layers.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from typing import ClassVar

import torch
from torch import Tensor

from budgetnet.costs import Budget
from budgetnet.errors import UsageError
from budgetnet.methods.method import Images, Method, Training, must_fit
from budgetnet.methods.options import FineTuning, Optimization
from budgetnet.methods.phases import Phase
from budgetnet.methods.plan import Plan, WidthPlan
from budgetnet.methods.pruning import allocate, channels_to_keep, coupled_channels, criteria
from budgetnet.methods.pruning.consumers import measurable_groups
from budgetnet.methods.pruning.coupled import CoupledChannels, Scores
from budgetnet.methods.pruning.options import DataDrivenPruning, PenalisedPruning, Pruning
from budgetnet.methods.pruning.pfp import pfp
from budgetnet.methods.pruning.thinet import rescale, thinet


class Prune(Method):
    """Trains the full backbone for `prune.epochs`, narrows it in `prune.steps` steps, and fine-tunes it.

    The steps reduce the costs by equal factors down to the budget. Each step but the last is followed by
    `prune.epochs_per_step` epochs of training, and the last one by fine-tuning.

    allocation: decides how many channels each set of coupled channels keeps (`allocate`).
    """

    allocation: ClassVar[Callable[..., list[int]]] = staticmethod(allocate.uniform)

    def __init__(self, optim: Optimization, prune: Pruning, finetune: FineTuning) -> None:
        super().__init__(optim)
        self.options, self.finetune = prune, finetune

    def scores(self, images: Tensor | None) -> Scores:
        """The current scores of all channels. images: (N, C, height, width), at least as many as `images` asks for.

        Raises UsageError if the criterion does not apply to the network.
        """
        raise NotImplementedError

    # -- before training ----------------------------------------------------------------------------------------------

    def start(self, training: Training) -> list[Phase]:
        """Raises UsageError for a budget that pruning cannot meet, and for phases longer than the run."""
        self.training = training
        prune, finetune = self.options, self.finetune
        if not prune.epochs and training.weights is None:
            raise UsageError(
                "prune.epochs=0 would prune weights that have learned nothing: give trained ones, backbone.weights=FILE"
            )
        between = prune.steps - 1
        parts = [f"{between} · prune.epochs_per_step={prune.epochs_per_step}"] if between else []
        parts = [f"prune.epochs={prune.epochs}", *parts, f"finetune.epochs={finetune.epochs}"]
        must_fit(training.epochs, prune.epochs + between * prune.epochs_per_step + finetune.epochs, *parts)
        self.full = self.costs()
        self._check()
        step = Phase("train", prune.epochs_per_step, finetune.rate(self.optim))
        return [self.optim.phase("train", prune.epochs), *[step] * between, finetune.phase(self.optim)]

    def _check(self) -> None:
        """Raises UsageError if nothing must be pruned, or if the pruned network or its training exceeds the budget."""
        training, prune, full = self.training, self.options, self.full
        limits = {kind: most for kind, most in training.budget.limits.items() if kind in full}
        allocate.check(limits, training.pricing.model, prune.scope, round_to=prune.round_to)
        most = training.budget.limits.get("train_cost")
        if most is None:
            return
        epochs = [prune.epochs, *[prune.epochs_per_step] * (prune.steps - 1), self.finetune.epochs]
        steps = [limits_after(step, prune.steps, training.budget, full) for step in range(prune.steps + 1)]
        flops = [min(full["flops"], step.get("flops", full["flops"])) for step in steps]
        spent = training.ledger.images_per_epoch * sum(map(operator.mul, epochs, flops))
        if spent > most:
            raise UsageError(
                f"budget.train_cost={most:,} is below the {spent:,} that prune.epochs={prune.epochs} of the full "
                "backbone and the fine-tuning cost: raise it or shorten them"
            )

    # -- pruning ------------------------------------------------------------------------------------------------------

    @property
    def coupled(self) -> list[CoupledChannels]:
        """The sets of coupled channels of the current network."""
        return coupled_channels(self.graph, self.options.scope)

    def round_ends(self, epochs: int) -> bool:
        """Whether a pruning step follows after `epochs` epochs."""
        done = self.options.epochs + self.training.round * self.options.epochs_per_step
        return not self.training.phase.final and epochs >= done

    def plan(self, epochs: int, batch: Images | None) -> WidthPlan | None:
        """Plan which channels remain after the next step."""
        if not self.round_ends(epochs):
            return None
        step = self.training.round + 1
        keep = self.to_keep(step, None if batch is None else batch[0])
        before, budget, price = self.graph.widths, self.training.budget, self.training.pricing.model
        after = {**before, **{name: len(channels) for name, channels in keep.items()}}
        last, spent = step == self.options.steps, self.training.ledger.spent
        stop = budget.binding({**price.costs(after), "train_cost": spent}) if last else None
        return WidthPlan(step, before, after, stop=stop, keep=keep)

    def apply(self, plan: Plan, batch: Images | None) -> None:
        """Narrow the network and the optimizer's state."""
        assert isinstance(plan, WidthPlan)
        if plan.changes:
            changed = {name: plan.keep[name] for name in plan.changes}
            self.training.resize(changed, optimizer=self.training.optimizer)

    def to_keep(self, step: int, images: Tensor | None) -> dict[str, list[int]]:
        """The channels of each group that remain within the limits of a step."""
        limits = limits_after(step, self.options.steps, self.training.budget, self.full)
        scores, found = self.scores(images), self.coupled
        fits = allocate.fits(self.training.pricing.model, limits)
        return channels_to_keep(found, scores, type(self).allocation(found, scores, fits, self.options.round_to))


class L1(Prune):
    """Removes the filters with the smallest absolute weights (Li et al., ICLR 2017)."""

    def scores(self, images: Tensor | None) -> Scores:
        return criteria.l1(self.graph)


class FPGM(Prune):
    """Removes the filters nearest to the geometric median (He et al., CVPR 2019)."""

    def scores(self, images: Tensor | None) -> Scores:
        return criteria.fpgm(self.graph)


class SoftPruning(Prune):
    """Zeroes the smallest filters after every epoch of the full network, and removes them at the end.

    He et al., "Soft Filter Pruning", IJCAI 2018. Zeroed filters continue to train and may recover.
    """

    def scores(self, images: Tensor | None) -> Scores:
        return criteria.l2(self.graph)

    @torch.no_grad()
    def after_epoch(self, epochs: int) -> None:
        if self.training.phase.final:
            return
        for name, channels in self.to_keep(self.options.steps, None).items():
            gone = torch.ones(self.graph.group(name).width, dtype=torch.bool)
            gone[channels] = False
            for path in self.graph.group(name).producers:
                weight = self.net.get_parameter(f"{path}.weight")
                weight[gone.to(weight.device)] = 0


class Slimming(Prune):
    """Shrinks the scales of batch norms by an L1 penalty and removes the smallest (Liu et al., ICCV 2017)."""

    allocation = staticmethod(allocate.ranked)

    def __init__(self, optim: Optimization, prune: PenalisedPruning, finetune: FineTuning) -> None:
        super().__init__(optim, prune, finetune)
        self.sparsity = prune.sparsity

    def start(self, training: Training) -> list[Phase]:
        """Raises UsageError also for a convolution without a batch norm."""
        phases = super().start(training)
        criteria.norm_scale(self.graph)  # raises before training rather than after it
        return phases

    def scores(self, images: Tensor | None) -> Scores:
        return criteria.norm_scale(self.graph)

    def before_step(self) -> None:
        """Add the gradient of `sparsity` · Σ|γ| until fine-tuning begins."""
        if self.training.phase.final:
            return
        for norm in set(self.graph.norm_after.values()):
            scale = getattr(self.net.get_submodule(norm), "weight", None)
            if scale is not None and scale.grad is not None:
                scale.grad.add_(scale.detach().sign(), alpha=self.sparsity * self.training.loss_scale())


class DataDriven(Prune):
    """Pruning by scores that are measured on training images."""

    def __init__(self, optim: Optimization, prune: DataDrivenPruning, finetune: FineTuning) -> None:
        super().__init__(optim, prune, finetune)
        self.wanted = prune.images

    def start(self, training: Training) -> list[Phase]:
        """Raises UsageError also for a convolution whose channels cannot be judged on images."""
        phases = super().start(training)
        measurable_groups(self.graph)  # raises before training rather than after it
        return phases

    def images(self, epochs: int) -> int:
        return self.wanted if self.round_ends(epochs) else 0


class ThiNet(DataDriven):
    """Removes the channels that matter least to the next layer, and rescales the rest (Luo, Wu, Lin, ICCV 2017)."""

    def scores(self, images: Tensor | None) -> Scores:
        assert images is not None
        return thinet(self.graph, images)

    def apply(self, plan: Plan, batch: Images | None) -> None:
        assert isinstance(plan, WidthPlan) and batch is not None
        if plan.changes:
            rescale(self.graph, plan.keep, batch[0])
        super().apply(plan, batch)


class PFP(DataDriven):
    """Removes the least sensitive channels, with one error bound for all layers (Liebenwein et al., ICLR 2020)."""

    allocation = staticmethod(allocate.by_error)

    def scores(self, images: Tensor | None) -> Scores:
        assert images is not None
        return pfp(self.graph, images)


def limits_after(step: int, steps: int, budget: Budget, full: Mapping[str, int]) -> dict[str, int]:
    """The limits, by kind, after `step` of `steps`, in equal factors from the costs `full` down to the budget."""
    return {
        kind: max(most, math.floor(full[kind] * (most / full[kind]) ** (step / steps)))
        for kind, most in budget.limits.items()
        if kind in full
    }
