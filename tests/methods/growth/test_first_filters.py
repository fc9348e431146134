"""Which of the first layer's filters are framed when a round is drawn."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from short_run import SHORT, Fit

from budgetnet.command.build import Components, build
from budgetnet.command.compose import composed
from budgetnet.methods.method import Method
from budgetnet.methods.plan import WidthPlan
from budgetnet.methods.pruning.grow_prune import GrowPrune
from budgetnet.methods.pruning.prune import Prune

TINY = ("dataset.limit_train=60", "finetune.epochs=1", "budget.flops=40%", "prune.epochs=3")


def drawn(parts: Components) -> list[tuple[np.ndarray, np.ndarray]]:
    """(weights, selected) of every round."""
    files = sorted(Path(parts.trainer.default_root_dir, "filters").iterdir())
    return [(arrays["weights"], arrays["selected"]) for arrays in map(np.load, files)]


@pytest.fixture
def left(monkeypatch: pytest.MonkeyPatch) -> list[np.ndarray]:
    """The first layer's filters after every round of the methods that remove some."""
    found: list[np.ndarray] = []

    def watched(original: Callable[..., None]) -> Callable[..., None]:
        def apply(method: Method, *arguments: Any) -> None:
            original(method, *arguments)
            found.append(method.net.get_parameter("conv1.weight").detach().clone().numpy())

        return apply

    for method in (Prune, GrowPrune):
        monkeypatch.setattr(method, "apply", watched(method.apply))
    return found


@pytest.mark.parametrize("method", ["l1", "thinet"])
def test_the_framed_filters_of_a_pruning_step_are_those_that_stay(
    fit: Fit, left: list[np.ndarray], method: str
) -> None:
    parts = fit(*TINY, f"method={method}", "prune.steps=2", "prune.epochs_per_step=1", "backbone=lenet5")
    rounds = drawn(parts)
    assert len(rounds) == len(left) == 2
    for (weights, selected), stays in zip(rounds, left, strict=True):
        assert np.array_equal(weights[selected], stays)
    assert len(rounds[0][0]) == 6 > len(rounds[1][0]) > len(left[1])


def test_the_framed_filters_of_a_sampled_network_are_those_that_go_on(fit: Fit, left: list[np.ndarray]) -> None:
    parts = fit(*TINY, "method=grow_prune", "method.search_epochs=6", "method.start=0.5", "method.pull=0.01")
    rounds = drawn(parts)
    assert len(rounds) == len(left) == 6
    for (weights, selected), after in zip(rounds, left, strict=True):
        present = [any(np.array_equal(one, other) for other in after) for one in weights]
        assert selected.tolist() == present
    framed = np.concatenate([selected for _, selected in rounds])
    assert framed.any() and not framed.all()


@pytest.mark.parametrize(
    "overrides", [("method=autogrow",), ("method=l1", "prune.scope=inner", "prune.epochs=2")], ids=["autogrow", "inner"]
)
def test_no_filter_is_framed_where_none_is_chosen(overrides: tuple[str, ...], tmp_path: Path) -> None:
    method = build(composed([*SHORT, "backbone=resnet20", *overrides]), tmp_path).method
    widths = method.graph.widths
    keep = {"layer1.0.conv1": [0, 1]} if isinstance(method, Prune) else {}
    found = method.first_filters(WidthPlan(1, widths, widths, keep=keep))
    assert found is not None
    weights, selected = found
    assert torch.equal(weights, method.net.get_parameter("conv1.weight")) and len(selected) == 16
    assert not selected.any()
