from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from covering import covered
from short_run import SHORT, Fit, metrics, weights

from budgetnet.channels import ChannelGraph
from budgetnet.command.build import Components, build
from budgetnet.command.compose import composed
from budgetnet.command.experiment import _fit
from budgetnet.costs import CostModel
from budgetnet.errors import UsageError
from budgetnet.methods.plan import WidthPlan
from budgetnet.methods.pruning import coupled_channels
from budgetnet.methods.pruning.grow_prune import GrowPrune

GROWN = ("method=grow_prune", "budget.flops=50%", "method.search_epochs=4", "finetune.epochs=2", "epochs=6")


def configuration(*overrides: str) -> dict[str, Any]:
    return composed([*SHORT, *GROWN, *overrides])


def built(directory: Path, *overrides: str) -> Components:
    return build(configuration(*overrides), directory)


def full(directory: Path, backbone: str) -> ChannelGraph:
    """Of the backbone that a run begins with."""
    config = composed([*SHORT, f"backbone={backbone}", "method=train", "budget.flops=null"])
    return build(config, directory).method.graph


def watch(monkeypatch: pytest.MonkeyPatch, name: str, see: Callable[..., Callable[[], None]]) -> None:
    """Call `see` with the arguments of a method of GrowPrune before it runs, and what that returns afterwards."""
    original = getattr(GrowPrune, name)

    def watched(*arguments: Any) -> Any:
        after = see(*arguments)
        result = original(*arguments)
        after()
        return result

    monkeypatch.setattr(GrowPrune, name, watched)


def rounds(parts: Components) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(parts.trainer.default_root_dir, "growth.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("backbone", covered(("lenet5", "resnet20"), ("lenet5",)))
def test_every_epoch_is_booked_with_the_flops_of_its_sampled_network_which_fits_the_budget(
    fit: Fit, backbone: str, tmp_path: Path
) -> None:
    short = ("dataset.limit_train=60", "dataset.validation=20", f"backbone={backbone}")
    parts = fit(*GROWN, *short, "budget.params=60%")
    method, table, entries = parts.method, metrics(parts), rounds(parts)
    cost = CostModel(full(tmp_path, backbone))
    sampled = [parts.full["seed_widths"], *(entry["widths"] for entry in entries)]
    assert [row["phase"] for row in table] == ["grow"] * 4 + ["finetune"] * 2
    assert len(entries) == 4 and [entry["stop"] is None for entry in entries] == [True, True, True, False]
    spent = 0
    for row, widths in zip(table, [*sampled, sampled[-1]]):
        assert {kind: int(row[kind]) for kind in ("flops", "params")} == {
            kind: cost.costs(widths)[kind] for kind in ("flops", "params")
        }
        assert all(int(row[kind]) <= method.training.budget.limits[kind] for kind in ("flops", "params"))
        spent += method.training.ledger.images_per_epoch * int(row["flops"])
        assert int(row["train_cost_flops"]) == spent
    assert len({row["flops"] for row in table}) > 2
    assert method.graph.widths == sampled[-1]
    assert sum(p.numel() for p in parts.learner.parameters()) == cost.params(sampled[-1])  # no indicator is left


def test_channels_that_are_not_sampled_stay_as_they_are_bit_by_bit(fit: Fit, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def see(method: GrowPrune, plan: WidthPlan, *_: Any) -> Callable[[], None]:
        assert method.indicators is not None
        active = method.indicators.active.clone()
        full = method.full
        values = full.tensors["conv2.weight"].clone()
        velocity = full.momentum.get("conv2.weight", torch.zeros_like(values)).clone()

        def after() -> None:
            first, second = active[:6], active[6:22]  # LeNet-5: conv1 has 6 filters, conv2 16
            trained = torch.zeros_like(values, dtype=torch.bool)
            trained[second.nonzero(), first.nonzero()[:, 0]] = True
            now, momentum = full.tensors["conv2.weight"], full.momentum["conv2.weight"]
            assert torch.equal(now[~trained], values[~trained]) and (now[trained] != values[trained]).all()
            assert torch.equal(momentum[~trained], velocity[~trained]) and (momentum[trained] != 0).any()
            seen.append(int((~trained).sum()))

        return after

    watch(monkeypatch, "apply", see)
    fit(*GROWN)
    assert len(seen) == 4 and all(seen)


def test_indicators_that_were_not_sampled_are_moved_by_the_distance_from_the_budget_alone(
    fit: Fit, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved = []

    def see(method: GrowPrune, *_: Any) -> Callable[[], None]:
        if method.indicators is not None:
            idle = ~method.indicators.active & (method.indicators.activity == 0)
            scores = method.indicators.scores.detach()[idle]
            moved.append((method.distance, len(scores), scores.unique()))
        return lambda: None

    watch(monkeypatch, "after_epoch", see)
    fit(*GROWN)
    assert moved[0][0] < 0 and moved[0][1] > 10
    assert len(moved[0][2]) == 1 and moved[0][2] > torch.tensor(0.2).logit()  # all alike, and likelier


def test_folding_the_masks_keeps_the_function(fit: Fit, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def see(method: GrowPrune, *_: Any) -> Callable[[], None]:
        images = torch.randn(4, *method.training.input_shape)
        method.net.eval()
        with torch.no_grad():
            expected, bare = method.forward(images), method.net(images)

        def after() -> None:
            with torch.no_grad():
                torch.testing.assert_close(method.net(images), expected)
            assert method.indicators is None and not torch.allclose(bare, expected)
            method.net.train()
            seen.append(True)

        return after

    watch(monkeypatch, "_fold", see)
    fit(*GROWN)
    assert seen


def test_a_sample_is_a_function_of_the_seed_and_the_epoch(tmp_path: Path) -> None:
    modules = [built(tmp_path, f"seed={seed}").method for seed in (0, 0, 1)]
    drawn = []
    for method in modules:
        assert isinstance(method, GrowPrune) and method.indicators is not None
        drawn.append([method._sampled(method.indicators, epoch) for epoch in range(3)])
    assert all(torch.equal(one, other) for one, other in zip(drawn[0], drawn[1]))
    assert not torch.equal(drawn[0][0], drawn[0][1]) and not torch.equal(drawn[0][0], drawn[2][0])


def test_a_run_continues_to_the_same_bits(fit: Fit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save, steps = pl.Trainer.save_checkpoint, (8, 15, 20, 22)  # five an epoch: within two of them, and between

    def saved(trainer: pl.Trainer, path: Path, *arguments: Any) -> None:
        save(trainer, path, *arguments)
        if path.name == "last.ckpt":
            shutil.copy(path, tmp_path / f"{trainer.global_step}.ckpt")

    monkeypatch.setattr(pl.Trainer, "save_checkpoint", saved)
    whole = fit(*GROWN, "checkpoint.every_n_steps=2")
    monkeypatch.undo()
    for step in steps:
        again = built(tmp_path)
        _fit(again, tmp_path / f"{step}.ckpt")
        first, second = weights(whole), weights(again)
        assert all(torch.equal(value, second[name]) for name, value in first.items()), step
        assert again.method.training.ledger.spent == whole.method.training.ledger.spent


def test_the_train_cost_is_never_exceeded(fit: Fit) -> None:
    parts = fit(*GROWN, "budget.flops=null", "budget.train_cost=4%")  # of the baseline's 300 epochs
    method = parts.method
    assert (
        0.5 * method.training.budget.limits["train_cost"]
        < method.training.ledger.spent
        <= method.training.budget.limits["train_cost"]
    )
    assert parts.learner.stop_reason == "train_cost"


def test_only_inner_filters_are_chosen_where_that_is_asked_for(tmp_path: Path) -> None:
    method = built(tmp_path, "backbone=resnet20", "prune.scope=inner", "budget.flops=80%").method
    inner = {name for each in coupled_channels(method.graph, "inner") for name in each.groups}
    for name, width in full(tmp_path, "resnet20").widths.items():
        assert (method.graph.widths[name] < width) == (name in inner), name


@pytest.mark.parametrize(
    ("override", "text"),
    [
        ("method.start=0", "method.start=0"),
        ("method.start=1", "method.start=1"),
        ("method.temperature=0.5", "method.temperature=0.5"),
        ("method.pull=0", "method.pull=0"),
        ("method.pull=much", "method.pull=much"),
        ("epochs=5", "do not fit into epochs=5"),
        ("budget.flops=100%", "the full backbone is within the budget"),
        ("budget.flops=1000", "budget.flops=1,000 is below the"),
        ("budget.train_cost=1000", "budget.train_cost=1,000 is below the"),
        ("budget.flops=null", "no budget"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_line(override: str, text: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as error:
        built(tmp_path, override)
    assert text in str(error.value) and "\n" not in str(error.value)


def test_the_pull_is_scaled_as_the_loss_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for scale in (1.0, 1024.0):
        parts = built(tmp_path)
        method = parts.method
        assert isinstance(method, GrowPrune) and method.indicators is not None
        parts.learner.trainer = parts.trainer
        scaler = SimpleNamespace(get_scale=lambda scale=scale: scale)
        monkeypatch.setattr(parts.trainer.precision_plugin, "scaler", scaler, raising=False)
        method.indicators.scores.grad = torch.zeros_like(method.indicators.scores)
        method.before_step()
        found.append(method.indicators.scores.grad)
    assert found[0].any()
    torch.testing.assert_close(found[1], 1024 * found[0])


@pytest.mark.parametrize(("precision", "dtype"), [("bf16-true", torch.bfloat16), ("64-true", torch.float64)])
def test_indicators_learn_in_single_precision_whatever_the_networks(
    fit: Fit, precision: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def see(method: GrowPrune, *_: Any) -> Callable[[], None]:
        if method.indicators is not None:
            weights = {parameter.dtype for parameter in method.net.parameters()}
            seen.append((weights, method.indicators.scores.dtype, method.indicators.scores.detach().clone()))
        return lambda: None

    watch(monkeypatch, "after_epoch", see)
    fit(*GROWN, f"trainer.precision={precision}", "method.pull=0.01")
    assert all(weights == {dtype} and of_scores == torch.float32 for weights, of_scores, _ in seen)
    assert (seen[0][2] != torch.tensor(0.2).logit()).all()  # those that are not sampled too, however small the pull
