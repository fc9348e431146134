"""Functions for all methods that grow a network in rounds within a budget."""

from __future__ import annotations

from dataclasses import replace
from typing import TypeVar

import torch

from budgetnet.channels import rescale_filters
from budgetnet.methods.growth.firefly import Candidates, load
from budgetnet.methods.growth.options import NewChannels, Rounds
from budgetnet.methods.growth.policy import Limit
from budgetnet.methods.method import Images, Method, Training, must_fit
from budgetnet.methods.options import FineTuning
from budgetnet.methods.plan import WidthPlan
from budgetnet.seeding import keyed_seed

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


def rounds_must_fit(epochs: int, rounds: Rounds, finetune: FineTuning) -> None:
    """Raises UsageError if a run of `epochs` epochs is too short for a round and fine-tuning."""
    round = f"growth.epochs_per_round={rounds.epochs_per_round}"
    must_fit(epochs, rounds.epochs_per_round + finetune.epochs, round, f"finetune.epochs={finetune.epochs}")


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
