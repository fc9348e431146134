"""AdeNeL: a seed network that grows to its budget while it trains (Zhong, Liu, Fu, BMVC 2021)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from budgetnet.channels.untrained import growing_groups, max_widths, resize_untrained, seed_widths
from budgetnet.methods.growth.capacity import (
    best_scored,
    initial_norms,
    path_norms,
    selected_fractions,
    selection_threshold,
    sparse_sets,
    supports,
)
from budgetnet.methods.growth.firefly import firefly_candidates
from budgetnet.methods.growth.gradients import growth_gradients
from budgetnet.methods.growth.growing import (
    SLIM,
    bounded,
    grow,
    growth_course,
    growth_limits,
    growth_shortfall,
    must_reach,
    rounds_must_fit,
    with_candidates,
)
from budgetnet.methods.growth.importance import IMAGES, channel_importance, saturation_of_gains
from budgetnet.methods.growth.options import GAINS, Bregman, Growth, LBIFineTuning
from budgetnet.methods.growth.policy import Planner
from budgetnet.methods.method import Images, Method, Training
from budgetnet.methods.options import Optimization
from budgetnet.methods.phases import Phase, Stretch
from budgetnet.methods.plan import Plan, WidthPlan
from budgetnet.optim import LBI
from budgetnet.seeding import keyed_seed

_SAID = 0.25
"""From which part of the backbone's FLOPs on it is said that linear layers stay as they are."""


class AdeNeL(Method):
    """Grows a seed network in rounds under LBI at a constant learning rate, then fine-tunes it.

    Growth stops early enough to leave fine-tuning its epochs.
    """

    no_weights = SLIM
    goes_on = True

    def __init__(self, optim: Optimization, lbi: Bregman, growth: Growth, finetune: LBIFineTuning) -> None:
        super().__init__(optim)
        optim.must_be_sgd("adenel")
        self.lbi, self.growth, self.finetune = lbi, growth, finetune
        self.needs_images = growth.init in ("gradmax", "firefly") or growth.policy in ("gradient", "firefly")
        self.needs_images |= growth.readout in GAINS

    def start(self, training: Training) -> list[Phase]:
        """Narrow the backbone to the seed network.

        Raises UsageError for a budget below the seed network or above the largest allowed network, and for a round and
        fine-tuning longer than the run.
        """
        self.training = training
        growth, graph, price = self.growth, self.graph, training.pricing.model
        rounds_must_fit(training.epochs, growth, self.finetune)
        largest = max_widths(graph, growth.max_width, growth.linear)
        seed = seed_widths(graph, growth.seed_width, growth.seed_shape, growth.linear)
        if training.started:
            seed = graph.widths
        epochs = growth.epochs_per_round + self.finetune.epochs
        shortest = epochs * training.ledger.images_per_epoch * price.flops(seed)
        least = price.costs(seed if training.started else seed_widths(graph, 1, growth.seed_shape, growth.linear))
        linear = [group.name for group in graph.groups if group.kind == "linear" and not growth.linear]
        self.much_stays = graph.share_of(linear) > _SAID
        wider = ", or let linear layers begin narrow and grow, too: growth.linear=true" if linear else ""
        prune = ", or prune it: method=l1 prune.epochs=0"
        training.budget.check(
            {**price.costs(seed), "train_cost": shortest},
            price.costs(largest),
            {**least, "train_cost": shortest * least["flops"] // price.flops(seed)},
            prune if training.started else wider,
            "network of start.from" if training.started else "seed network",
        )
        proportions = graph.widths if growth.seed_shape == "proportional" else seed
        if not training.started:
            resize_untrained(self.net, seed, training.seed)
        allowed = {name: largest[name] for name in growing_groups(graph, growth.linear)}
        self.planner = Planner(price, growth, allowed, training.seed, proportions)
        self.initial_norms = initial_norms(sparse_sets(graph, growth.linear))
        return [self.optim.growing(), self.finetune.phase(self.optim)]

    def check(self, continued: bool) -> None:
        """Raises UsageError where the policy, readout or initialisation does not support a group that may grow."""
        if not continued:  # a run that was begun may never widen that group
            planner, growth = self.planner, self.growth
            may_grow = [name for name, width in planner.max_widths.items() if width > self.graph.widths[name]]
            must_reach(self.graph, may_grow, init=growth.init, policy=planner.policy, readout=growth.readout)

    # -- optimizer ----------------------------------------------------------------------------------------------------

    def optimizers(self) -> list[torch.optim.Optimizer]:
        """LBI over filters, entries of hidden linear layers, other matrices, and vectors, in that order.

        Vectors have no weight decay. The others decay by `lbi.weight_decay` while the network grows, because a larger
        decay would lower the norms that are compared with the selection norm. Fine-tuning uses the decay of `optim`.
        """
        kinds = sparse_sets(self.graph, self.growth.linear)
        rest = [p for p in self.net.parameters() if p not in kinds]
        steps = self.growth.epochs_per_round * self.training.steps_per_epoch
        groups: list[dict[str, Any]] = []
        for kind in ("filter", "entry"):
            params = [p for p in self.net.parameters() if kinds.get(p) == kind]
            if params:
                groups.append({"params": params, "sparse": kind, "threshold": self.threshold(kind, steps)})
        groups.append({"params": [p for p in rest if p.dim() > 1]})
        groups.append({"params": [p for p in rest if p.dim() <= 1], "weight_decay": 0.0, "decays": False})
        return [
            LBI(
                [{"decays": True, **group} for group in groups if group["params"]],
                lr=self.optim.lr,
                nu=self.lbi.nu_of(self.optim.lr, steps),
                kappa=self.lbi.kappa,
                momentum=self.optim.momentum,
                weight_decay=self.lbi.weight_decay,
            )
        ]

    def threshold(self, kind: str, steps_per_round: int) -> float:
        """λ of one kind of unit ("filter" or "entry"): `lbi.threshold`, or else the λ of `selection_threshold`."""
        if self.lbi.threshold is not None:
            return self.lbi.threshold
        lr, nu = self.optim.lr, self.lbi.nu_of(self.optim.lr, steps_per_round)
        return selection_threshold(self.lbi.selection_norm, self.initial_norms[kind], lr, nu, steps_per_round)

    @property
    def optimizer(self) -> LBI:
        """The only optimizer, LBI."""
        optimizer = self.training.optimizer
        assert isinstance(optimizer, LBI)
        return optimizer

    # -- growth -------------------------------------------------------------------------------------------------------

    @property
    def growing(self) -> bool:
        """Whether the network may still grow."""
        return not self.training.phase.final

    def saturated(self) -> dict[str, list[Tensor]]:
        """The currently saturated filters, bool (filters,) for each layer of every group that may grow.

        They are those in the support for growth.readout=support, and else the first half (`growth.quantile`) of all
        along the path.
        """
        graph, groups = self.graph, self.planner.max_widths
        if self.growth.readout == "support":
            return supports(graph, groups, self.optimizer)
        return best_scored(path_norms(graph, groups, self.optimizer), self.growth.quantile)

    def saturation(self) -> dict[str, float]:
        """The current saturation s of every group that may grow (equation 9), in 0..1."""
        return selected_fractions(self.saturated(), self.growth.reduction)

    def gains(
        self, batch: Images, gradients: Mapping[str, float] | None, scores: Mapping[str, Sequence[float]] | None
    ) -> dict[str, float]:
        """What one more channel of each group that may grow is worth to the loss, by `growth.readout`.

        "importance": the importance of the median channel. "gradient": the square of the gradient's norm, in proportion
        to which a step of gradient descent lowers the loss. "firefly": the mean score of the best candidates, as many
        as the rule would add, or 0 if it is negative.
        """
        if gradients is not None and self.growth.readout == "gradient":
            return {name: gradient**2 for name, gradient in gradients.items()}
        if scores is not None and self.growth.readout == "firefly":
            best = {name: sorted(scores[name])[-count:] for name, count in self.planner.increases.items() if count}
            return {name: max(0.0, sum(found) / len(found)) for name, found in best.items()}
        importance = channel_importance(self.net, self.planner.max_widths, batch, self.loss)
        return {name: float(torch.quantile(channels, 0.5)) for name, channels in importance.items()}

    def selected(self, group: str, plan: WidthPlan) -> Tensor:
        """Which filters of a group are saturated, bool (width,)."""
        return self.saturated()[group][0]

    def rows(self) -> dict[str, dict[str, float]]:
        if not self.growing or self.growth.readout in GAINS:  # which are read at the end of a round alone
            return {}
        return {"saturation": {"round": self.training.round, **self.saturation()}}

    def round_ends(self, epochs: int) -> bool:
        """Whether a round ends after `epochs` epochs."""
        return self.growing and epochs > 0 and epochs % self.growth.epochs_per_round == 0

    def course(self, epochs: int) -> list[Stretch] | None:
        if not self.growing:
            return None
        limits = growth_limits(self.training, self.growth, self.finetune)
        used = self.planner.used(limits)
        uses = self.planner.course(limits)
        return growth_course(self.training, used, uses, epochs, self.growth, self.finetune)

    def chosen(self) -> str | None:
        policy = None if self.growth.policy else f"growth.policy={self.planner.policy}"
        stays = "linear layers as they are (growth.linear)" if self.much_stays else None
        return ", ".join(filter(None, (policy, stays))) or None

    def shortfall(self) -> str | None:
        if not self.growing or self.training.round:
            return None
        limits = growth_limits(self.training, self.growth, self.finetune)
        return growth_shortfall(self.training, self.planner.course(limits), self.growth, self.finetune)

    def images(self, epochs: int) -> int:
        if not self.round_ends(epochs):
            return 0
        return IMAGES if self.growth.readout == "importance" else int(self.needs_images)

    def plan(self, epochs: int, batch: Images | None) -> WidthPlan | None:
        """Plan the growth of a round from the current saturation. The limits on rounds and epochs can end growth too.

        Raises GraphError if the policy or initialisation does not support a group.
        """
        if not self.round_ends(epochs):
            return None
        growth, round = self.growth, self.training.round + 1
        policy, init, readout = self.planner.policy, growth.init, growth.readout
        seed, gradients, candidates, scores = keyed_seed(self.training.seed, round), None, None, None
        if "gradient" in (policy, readout):
            assert batch is not None
            gradients = growth_gradients(self.net, self.planner.max_widths, batch, seed, self.loss)
        if "firefly" in (policy, init, readout):
            assert batch is not None
            candidates = firefly_candidates(self.net, self.planner.increases, batch, seed, self.loss)
            scores = candidates.scores
        if readout in GAINS:
            assert batch is not None
            saturation = saturation_of_gains(self.gains(batch, gradients, scores), self.graph.widths)
        else:
            saturation = self.saturation()
        limits = growth_limits(self.training, self.growth, self.finetune)
        plan = self.planner.plan(round, saturation, limits, gradients, scores)
        if init == "firefly" and candidates is not None:
            plan = with_candidates(plan, candidates)
        return bounded(plan, epochs, self.training.epochs, self.growth, self.finetune)

    def apply(self, plan: Plan, batch: Images | None) -> None:
        """Widen the network, reset or carry over the optimizer's state, and begin fine-tuning after the last round."""
        assert isinstance(plan, WidthPlan)
        if self.growth.state == "reset":
            self.optimizer.reset_state()
        if plan.changes:
            grow(self, plan, self.growth, self.optimizer, batch)
        if plan.stop is not None:
            self._start_finetuning()

    def _start_finetuning(self) -> None:
        """Use the weight decay of fine-tuning. SGD is LBI without a sparse set, so that Z is dropped."""
        for group in self.optimizer.param_groups:
            group["weight_decay"] = self.optim.weight_decay if group["decays"] else 0.0
        if self.finetune.optimizer == "sgd":
            for group in self.optimizer.param_groups:
                group["sparse"] = None
            for state in self.optimizer.state.values():
                state.pop("z", None)

    # -- checkpoints --------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        return {"initial_norms": self.initial_norms}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.initial_norms = state["initial_norms"]
