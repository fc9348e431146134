"""What methods share that grow a network in rounds, within what is left of the budget."""

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
    """What growth may come to, in closed forms of the network.

    What is left of the train cost bounds the FLOPs: fine-tuning must still fit; and another round besides, if growth is
    to go on.
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
    """The plan of a round after `epochs` epochs, which also ends growth if it is the last that may be, or fits."""
    if plan.stop is not None:
        return plan
    if rounds.max_rounds is not None and plan.round >= rounds.max_rounds:
        return replace(plan, stop="max_rounds")
    if epochs + rounds.epochs_per_round + finetune.epochs > most_epochs:
        return replace(plan, stop="epochs")
    return plan


def rounds_must_fit(epochs: int, rounds: Rounds, finetune: FineTuning) -> None:
    """Raises UsageError where a run is too short for a round and the fine-tuning."""
    round = f"growth.epochs_per_round={rounds.epochs_per_round}"
    must_fit(epochs, rounds.epochs_per_round + finetune.epochs, round, f"finetune.epochs={finetune.epochs}")


def with_candidates(plan: WidthPlan, candidates: Candidates) -> WidthPlan:
    """The plan with what new channels start from, under growth.init=firefly: the best of the candidates."""
    return replace(plan, start=candidates.start(plan.changes)) if plan.changes else plan


def grow(
    method: Method,
    plan: WidthPlan,
    channels: NewChannels,
    optimizer: torch.optim.Optimizer,
    batch: Images | None,
) -> None:
    """Widen a method's network as planned; new channels start by draws that are a function of seed and round."""
    seed = keyed_seed(method.training.seed, plan.round)
    init = "he" if channels.init == "firefly" else channels.init
    method.training.resize(plan.changes, optimizer=optimizer, init=init, seed=seed, batch=batch, loss=method.loss)
    load(method.net, plan.start)
    if channels.rescale:
        rescale_filters(method.net, optimizer)
