"""Functions for all methods that grow a network in rounds within a budget."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import TypeVar

import torch

from budgetnet.channels import ChannelGraph, rescale_filters
from budgetnet.channels.gradmax import obstacle as gradmax_obstacle
from budgetnet.errors import UsageError
from budgetnet.methods.growth.firefly import Candidates, load
from budgetnet.methods.growth.firefly import obstacle as firefly_obstacle
from budgetnet.methods.growth.options import NewChannels, Rounds
from budgetnet.methods.growth.policy import Limit
from budgetnet.methods.method import Images, Method, Training, must_fit
from budgetnet.methods.options import FineTuning
from budgetnet.methods.phases import Stretch
from budgetnet.methods.plan import WidthPlan
from budgetnet.seeding import keyed_seed

SLIM = "it grows a slim network, and weights of the full one are too wide for it: use method=l1 or another that prunes"
"""Why methods that grow cannot start from trained weights (`Method.no_weights`)."""

AnyPlan = TypeVar("AnyPlan", bound=WidthPlan)


def growth_limits(training: Training, rounds: Rounds, finetune: FineTuning) -> list[Limit]:
    """The limits on the grown network, as closed forms of its widths.

    The rest of the train cost bounds the FLOPs: fine-tuning must still fit, and so must another round if growth is to
    continue.
    """
    limits = []
    for kind, most in training.budget.limits.items():
        if kind == "train_cost":
            left = training.flops_left(finetune.epochs)
            assert left is not None
            limits.append(Limit(kind, "flops", left, training.flops_left(finetune.epochs + rounds.epochs_per_round)))
        else:
            limits.append(Limit(kind, kind, most))
    return limits


def bounded(plan: AnyPlan, epochs: int, most_epochs: int, rounds: Rounds, finetune: FineTuning) -> AnyPlan:
    """The plan of a round after `epochs` epochs, ending growth if no further round is allowed or fits into the run."""
    if plan.stop is not None:
        return plan
    if rounds.max_rounds is not None and plan.round >= rounds.max_rounds:
        return replace(plan, stop="max_rounds")
    if epochs + rounds.epochs_per_round + finetune.epochs > most_epochs:
        return replace(plan, stop="epochs")
    return plan


def growth_course(
    training: Training, used: float, uses: Sequence[float], epochs: int, rounds: Rounds, finetune: FineTuning
) -> list[Stretch]:
    """The rounds and the fine-tuning that are to come after `epochs` epochs of growth.

    used: the fraction of the budget that the network uses now. uses: those after the rounds that it would take to use
    all of it; only as many are taken as `epochs` and `growth.max_rounds` allow (see `bounded`).
    """
    length, flops = rounds.epochs_per_round, training.pricing.flops
    first = length - epochs % length
    most = 1 + max(0, (training.epochs - finetune.epochs - epochs - first) // length)
    if rounds.max_rounds is not None:
        most = min(most, rounds.max_rounds - training.round)
    course, now = [], used
    for number, use in enumerate(uses[:most] or [used]):
        course.append(Stretch(f"round {training.round + number + 1}", length if number else first, flops * now / used))
        now = use
    return [*course, Stretch("finetune", finetune.epochs, flops * now / used)]


def growth_shortfall(training: Training, uses: Sequence[float], rounds: Rounds, finetune: FineTuning) -> str | None:
    """What to change if a run is too short for the rounds that it takes to use the whole budget (see `growth_course`).

    uses: the fractions of the budget that are used after each round of the whole run. None if there is enough time.
    """
    fitting = (training.epochs - finetune.epochs) // rounds.epochs_per_round
    most = fitting if rounds.max_rounds is None else min(fitting, rounds.max_rounds)
    if most >= len(uses):
        return None
    needed = len(uses) * rounds.epochs_per_round + finetune.epochs
    instead = f"epochs={training.epochs} to {needed}, or lower growth.epochs_per_round or finetune.epochs"
    if most < fitting:
        instead = f"growth.max_rounds={rounds.max_rounds} to {len(uses)}"
    use = uses[most - 1] if most else 0.0
    return (
        f"growth will end at about {100 * use:.0f} % of its budget, after {most} of {len(uses)} rounds: raise {instead}"
    )


def rounds_must_fit(epochs: int, rounds: Rounds, finetune: FineTuning) -> None:
    """Raises UsageError if a run of `epochs` epochs is too short for a round and fine-tuning."""
    round = f"growth.epochs_per_round={rounds.epochs_per_round}"
    must_fit(epochs, rounds.epochs_per_round + finetune.epochs, round, f"finetune.epochs={finetune.epochs}")


def must_reach(graph: ChannelGraph, groups: Collection[str], **options: str) -> None:
    """Raises UsageError, before training, for a growth option that cannot make or score new channels of these groups.

    options: what growth.init, policy and readout are, by name.
    """
    obstacles = {"gradmax": gradmax_obstacle, "gradient": gradmax_obstacle, "firefly": firefly_obstacle}
    for option, value in options.items():
        if value in obstacles and (why := obstacles[value](graph, groups)):
            raise UsageError(
                f"growth.{option}={value} does not reach all channels of {type(graph.model).__name__}: {why}; leave "
                f"growth.{option} at its default"
            )


def with_candidates(plan: WidthPlan, candidates: Candidates) -> WidthPlan:
    """The plan with the best candidates as initial values of the new channels (growth.init=firefly)."""
    return replace(plan, start=candidates.start(plan.changes)) if plan.changes else plan


def grow(
    method: Method,
    plan: WidthPlan,
    channels: NewChannels,
    optimizer: torch.optim.Optimizer,
    batch: Images | None,
) -> None:
    """Widen the network of a method as planned. Random initial values depend on the seed and the round alone.

    Raises GraphError if the initialisation does not support a group.
    """
    seed = keyed_seed(method.training.seed, plan.round)
    init = "he" if channels.init == "firefly" else channels.init
    method.training.resize(plan.changes, optimizer=optimizer, init=init, seed=seed, batch=batch, loss=method.loss)
    load(method.net, plan.start)
    if channels.rescale:
        rescale_filters(method.net, optimizer)
