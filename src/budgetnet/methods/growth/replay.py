"""Growth on the schedule of another run, with SGD ("train-scratch-grow" of the AdeNeL paper's Table 4)."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

from budgetnet.channels.untrained import resize_untrained
from budgetnet.errors import UsageError
from budgetnet.methods.growth.firefly import firefly_candidates
from budgetnet.methods.growth.growing import SLIM, grow, must_reach, with_candidates
from budgetnet.methods.growth.options import NewChannels, ReplayOptions
from budgetnet.methods.method import Images, Method, Training, must_fit
from budgetnet.methods.options import FineTuning, Optimization
from budgetnet.methods.phases import Phase
from budgetnet.methods.plan import Plan, WidthPlan
from budgetnet.runs.directory import RunDirectory
from budgetnet.seeding import keyed_seed

Schedule = Mapping[int, Mapping[str, int]]
"""The widths after a number of finished epochs; at 0 those of the seed network."""


class Replay(Method):
    """Grows a seed network at the epochs and to the widths of another run, and then fine-tunes it.

    Nothing is measured. The budget is that of the replayed run, or a larger one. Raises UsageError if no finished run
    that grew is stated.
    """

    needs_budget = False
    no_weights = SLIM

    def __init__(self, optim: Optimization, growth: NewChannels, finetune: FineTuning, method: ReplayOptions) -> None:
        super().__init__(optim)
        if method.schedule_from is None:
            raise UsageError(
                "method=replay repeats the growth of another run: state method.schedule_from=RUN_DIRECTORY"
            )
        self.growth, self.finetune, self.source = growth, finetune, method.schedule_from
        self.needs_images = growth.init in ("gradmax", "firefly")
        self.schedule = schedule_of_run(self.source)

    def start(self, training: Training) -> list[Phase]:
        """Narrow the backbone to the seed network of the replayed run.

        Raises UsageError for a run of another backbone, one that does not fit into the epochs, and a budget below its
        costs.
        """
        self.training = training
        schedule, last, price = self.schedule, max(self.schedule), training.pricing.model
        if any(widths.keys() != self.graph.widths.keys() for widths in schedule.values()):
            raise UsageError(f"method.schedule_from={self.source}: its width groups are not those of this backbone")
        tune = self.finetune.epochs
        grown = f"the {last} growing epochs of method.schedule_from={self.source}"
        must_fit(training.epochs, last + tune, grown, f"finetune.epochs={tune}")
        ends = [*sorted(schedule), last + tune]
        flops = [price.flops(schedule[epoch]) for epoch in sorted(schedule)]
        images = training.ledger.images_per_epoch
        spent = sum(images * f * (end - begin) for f, (begin, end) in zip(flops, pairwise(ends), strict=True))
        costs = {**price.costs(schedule[last]), "train_cost": spent}
        for kind, most in training.budget.limits.items():
            if costs[kind] > most:
                raise UsageError(
                    f"budget.{kind}={most:,} is below the {costs[kind]:,} of the run that is replayed: raise it"
                )
        resize_untrained(self.net, schedule[0], training.seed)
        return [self.optim.growing(), self.finetune.phase(self.optim)]

    def check(self, continued: bool) -> None:
        """Raises UsageError where the initialisation does not support a group that grows."""
        first, last = self.schedule[0], self.schedule[max(self.schedule)]
        must_reach(self.graph, [name for name in last if last[name] > first[name]], init=self.growth.init)

    def round_ends(self, epochs: int) -> bool:
        """Whether the replayed run had a round after `epochs` epochs."""
        return not self.training.phase.final and epochs > 0 and epochs in self.schedule

    def images(self, epochs: int) -> int:
        return int(self.needs_images and self.round_ends(epochs))

    def plan(self, epochs: int, batch: Images | None) -> WidthPlan | None:
        """Plan the widths of the next round. Raises GraphError if growth.init=firefly does not support a group."""
        if not self.round_ends(epochs):
            return None
        stop = "replayed" if epochs == max(self.schedule) else None
        plan = WidthPlan(self.training.round + 1, self.graph.widths, self.schedule[epochs], stop=stop)
        if self.growth.init != "firefly" or not plan.changes:
            return plan
        assert batch is not None
        new_channels = {name: width - plan.before[name] for name, width in plan.changes.items()}
        seed = keyed_seed(self.training.seed, plan.round)
        return with_candidates(plan, firefly_candidates(self.net, new_channels, batch, seed, self.loss))

    def apply(self, plan: Plan, batch: Images | None) -> None:
        """Widen the network, and reset or carry over the optimizer's state."""
        assert isinstance(plan, WidthPlan)
        optimizer = self.training.optimizer
        if self.growth.state == "reset":
            optimizer.state.clear()
        if plan.changes:
            grow(self, plan, self.growth, optimizer, batch)


def schedule_of_run(path: str) -> Schedule:
    """The schedule of the finished run in the directory `path`. Raises UsageError if there is none that grew."""
    run = RunDirectory(path)
    if run.summary is None or not run.rounds or not run.grew:
        raise UsageError(f"method.schedule_from={path}: expected the directory of a finished run that grew")
    return {0: run.summary["seed_widths"], **{record["epoch"]: record["widths"] for record in run.rounds}}
