"""torch.compile: for the phases in which no shape changes, and no other network comes of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from short_run import Fit, metrics, weights
from torch.fx import GraphModule

from budgetnet.errors import RunError, UsageError

compiled: list[GraphModule] = []


@torch._dynamo.register_backend
def counted(graph: GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
    compiled.append(graph)
    return graph.forward


@torch._dynamo.register_backend
def broken(graph: GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
    raise NotImplementedError("no compiler here")


def test_the_network_is_compiled_once_after_the_last_growth_and_learns_the_same(fit: Fit) -> None:
    compiled.clear()
    plain, fast = fit(), fit("trainer.compile=counted")
    assert [row["phase"] for row in metrics(fast)].count("grow") >= 3
    assert len(compiled) == 1
    first, second = weights(plain), weights(fast)
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
    assert set(plain.learner.state_dict()) == set(fast.learner.state_dict())
    assert fast.method.training.ledger.spent == plain.method.training.ledger.spent
    assert fast.method.training.ledger.compile_seconds > 0 == plain.method.training.ledger.compile_seconds


def test_a_backend_that_fails_or_does_not_exist_is_named_in_one_line(fit: Fit) -> None:
    with pytest.raises(RunError, match=r"^trainer.compile=broken fails on this network .*no compiler here"):
        fit("method=train", "budget.flops=100%", "epochs=1", "trainer.compile=broken")
    with pytest.raises(UsageError, match=r"'inductr' is no backend of torch.compile; did you mean 'inductor'"):
        fit("trainer.compile=inductr")
