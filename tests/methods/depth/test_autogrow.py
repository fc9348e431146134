"""AutoGrow in whole short runs: what it builds, when it stops, and that it is continued to the same bits."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import pytest
import torch
from short_run import metrics, weights

from budgetnet.backbones.resnet_cifar import CifarResNet, full_widths
from budgetnet.channels import ChannelGraph
from budgetnet.channels.depth import change_depth, depths
from budgetnet.command.build import Components, build
from budgetnet.command.compose import composed
from budgetnet.costs import CostModel
from budgetnet.errors import UsageError
from budgetnet.methods.depth.autogrow import AutoGrow, block_costs

TINY = (
    "method=autogrow", "backbone=own", "backbone._target_=test_autogrow.narrow", "dataset=digits",
    "dataset.limit_train=60", "dataset.batch_size=20", "dataset.validation=40", "dataset.limit_test=40",
    "growth.epochs_per_round=1", "finetune.epochs=2", "epochs=8", "optim.lr=0.05", "logger=csv", "threads=1",
    "trainer.progress=false", "trainer.accelerator=cpu",
)  # fmt: skip
FULL = (2, 2, 2)
Grow = Callable[..., Components]
EVERY = "method.threshold=-100"  # every block counts as an improvement


def narrow(num_classes: int, in_channels: int) -> torch.nn.Module:
    """A ResNet of two blocks a stage with 2 to 4 filters a layer."""
    widths = {name: 2 if "layer3" not in name else 4 for name in full_widths(FULL)}
    return CifarResNet(FULL, widths, num_classes, in_channels)


def built(*overrides: str, directory: Path = Path("nowhere")) -> Components:
    return build(composed([*TINY, *overrides]), directory)


@pytest.fixture
def grow(tmp_path: Path) -> Iterator[Callable[..., Components]]:
    """Train a configuration as a run does, in this process."""
    threads, numbers = torch.get_num_threads(), count()

    def trained(*overrides: str) -> Components:
        directory = tmp_path / f"run{next(numbers)}"
        directory.mkdir()
        parts = built(*overrides, directory=directory)
        parts.trainer.fit(parts.learner, datamodule=parts.data)
        return parts

    yield trained
    torch.set_num_threads(threads)


def autogrow(parts: Components) -> AutoGrow:
    assert isinstance(parts.method, AutoGrow)
    return parts.method


def growth(parts: Components) -> list[dict[str, object]]:
    file = Path(parts.trainer.default_root_dir, "growth.jsonl")
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_the_seed_network_is_the_backbone_with_one_block_a_stage_and_its_price_is_a_closed_form() -> None:
    method = autogrow(built("budget.flops=100%"))
    assert depths(method.net, method.stages) == {"layer1": 1, "layer2": 1, "layer3": 1}
    prices = block_costs(method.net, method.stages)
    for deep in ((2, 1, 1), (1, 4, 2), (3, 3, 3)):
        net = copy.deepcopy(method.net)
        plan = dict(zip(prices, deep, strict=True))
        expected = CostModel(change_depth(net, method.stages, plan)).costs()
        more = [{kind: (depth - 1) * prices[name][kind] for kind in expected} for name, depth in plan.items()]
        assert {kind: cost + sum(one[kind] for one in more) for kind, cost in method.costs().items()} == expected


def test_stages_grow_in_turn_until_no_block_fits_and_are_then_tuned(grow: Grow) -> None:
    parts = grow("budget.flops=95%", EVERY)
    method, records, rows = autogrow(parts), growth(parts), metrics(parts)
    limit = method.training.budget.limits["flops"]
    assert parts.learner.stop_reason == "flops" and method.costs()["flops"] <= limit
    assert all(method.costs()["flops"] + block["flops"] > limit for block in method.block_costs.values())
    new = [sorted(record["plan"]) for record in records]  # type: ignore[call-overload]
    assert new[:2] == [["layer1.1.conv1", "layer1.1.conv2"], ["layer2.1.conv1", "layer2.1.conv2"]]
    assert all(old == 0 for record in records for old, _ in record["plan"].values())  # type: ignore[attr-defined]
    assert records[-1]["widths"] == method.graph.widths and list(method.graph.widths) == list(records[-1]["widths"])  # type: ignore[call-overload]
    phases = [row["phase"] for row in rows]
    assert phases == ["grow"] * len(records) + ["finetune"] * 2
    assert [int(row["flops"]) for row in rows[1:]] == [record["flops"] for record in records] + [
        method.costs()["flops"]
    ]
    spent = sum(60 * int(row["flops"]) for row in rows)
    assert method.training.ledger.spent == spent == int(rows[-1]["train_cost_flops"])
    assert {row["lr"] for row in rows if row["phase"] == "grow"} == {"0.05"}
    assert parts.full["seed_widths"].keys() < method.graph.widths.keys()


def test_growth_ends_when_no_stage_brings_the_threshold(grow: Grow) -> None:
    parts = grow("budget.flops=200%", "method.threshold=100")
    assert [record["stop"] for record in growth(parts)] == [None, None, None, "accuracy"]
    assert growth(parts)[-1]["plan"] == {}
    assert set(depths(parts.method.net, autogrow(parts).stages).values()) == {2}


def test_a_stage_may_get_deeper_than_in_the_full_backbone_up_to_max_depth(grow: Grow) -> None:
    parts = grow("budget.params=400%", EVERY, "epochs=40", "method.max_depth=3", "dataset.limit_train=20")
    assert set(depths(parts.method.net, autogrow(parts).stages).values()) == {3}
    assert parts.learner.stop_reason == "max_depth" and parts.method.training.round == 6


def test_the_train_cost_is_never_exceeded_with_the_fine_tuning_in_it(grow: Grow) -> None:
    parts = grow("budget.train_cost=12%", EVERY, "epochs=30", "dataset.limit_train=20")
    assert parts.learner.stop_reason == "train_cost" and metrics(parts)[-1]["phase"] == "finetune"
    assert parts.method.training.ledger.spent <= parts.method.training.budget.limits["train_cost"]
    assert [row["phase"] for row in metrics(parts)].count("finetune") == 2


def test_growth_leaves_the_fine_tuning_its_epochs_and_counts_rounds(grow: Grow) -> None:
    ended = grow("budget.flops=900%", EVERY, "epochs=5")
    assert ended.learner.stop_reason == "epochs" and len(metrics(ended)) == 5
    counted = grow("budget.flops=900%", EVERY, "growth.max_rounds=2")
    assert counted.learner.stop_reason == "max_rounds" and len(metrics(counted)) == 4


def test_accuracy_is_the_best_so_far_of_every_epoch(grow: Grow) -> None:
    parts = grow("budget.flops=900%", EVERY, "growth.epochs_per_round=2", "epochs=6")
    accuracies = [float(row["val_top1"]) for row in metrics(parts)]
    method = autogrow(parts)
    assert method.reached == max(accuracies) and method.stage_order.reached == max(
        accuracies[: 2 * method.training.round]
    )


@pytest.mark.parametrize("state", [pytest.param("reset", marks=pytest.mark.soak), "carry"])  # test_methods.py: reset
def test_a_continued_run_has_the_same_bits(state: str, grow: Grow, tmp_path: Path) -> None:
    options = (EVERY, "budget.flops=150%", "growth.epochs_per_round=2", f"growth.state={state}", "epochs=7")
    whole = grow(*options)
    (tmp_path / "run").mkdir()
    cut = built(*options, directory=tmp_path / "run")
    cut.trainer.fit_loop.max_epochs = 3
    cut.trainer.fit(cut.learner, datamodule=cut.data)
    again = built(*options, directory=tmp_path / "run")
    again.trainer.fit(again.learner, datamodule=again.data, ckpt_path=tmp_path / "run" / "last.ckpt", weights_only=True)
    assert depths(again.method.net, autogrow(again).stages) == depths(whole.method.net, autogrow(whole).stages)
    first, second = weights(whole), weights(again)
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
    assert (
        autogrow(again).stage_order == autogrow(whole).stage_order
        and again.method.training.ledger.spent == whole.method.training.ledger.spent
    )


def test_a_users_network_grows_too_also_by_blocks_that_have_no_width_of_their_own(grow: Grow) -> None:
    parts = grow("backbone._target_=nets.Stages", "budget.flops=150%", EVERY, "growth.init=zero_out", "epochs=7")
    assert depths(parts.method.net, autogrow(parts).stages) == dict.fromkeys(
        ("body.wide", "body.deep", "body.joined", "body.plain"), 2
    ) | {"body.wide": 3}
    assert growth(parts)[2]["plan"] == {} and growth(parts)[2]["depths"]["body.joined"] == [1, 2]  # type: ignore[index]
    assert ChannelGraph.of(parts.method.net).verify()
    assert (
        parts.method.training.round >= 1
        and parts.method.costs()["flops"] <= parts.method.training.budget.limits["flops"]
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ("backbone._target_=nets.Small",),
            "backbone=nets.Small has no stage that method=autogrow could add blocks to",
        ),
        (("budget.flops=1",), r"budget.flops=1 is below the [\d,]+ of the seed network, one block in each stage"),
        (("budget.flops=55%",), "budget.flops=.* leaves nothing to grow: one block beside"),
        (("budget.train_cost=1000",), r"budget.train_cost=1,000 is below the"),
        (("budget.flops=null",), "no budget"),
        (("method.max_depth=1",), "method.max_depth=1: expected 2 blocks or more"),
        (("method.threshold=much",), "method.threshold=much"),
        (("growth.init=gradmax",), "growth.init=gradmax starts new channels: new blocks start by he or zero_out"),
        (("dataset.validation=0",), "hold out images with dataset.validation"),
        (("trainer.check_val_every_n_epoch=2",), "a multiple of trainer.check_val_every_n_epoch=2"),
        (("epochs=2",), "do not fit into epochs=2"),
    ],
)
def test_what_cannot_grow_is_told_in_one_line(options: tuple[str, ...], message: str) -> None:
    with pytest.raises(UsageError, match=message) as error:
        built("budget.flops=75%", *options)
    assert "\n" not in str(error.value)


def test_widths_of_another_depth_are_not_taken_for_those_of_the_backbone(tmp_path: Path) -> None:
    full = full_widths(FULL)
    seed = {name: width for name, width in full.items() if ".0." in name or name == "conv1"}
    (tmp_path / "config.yaml").write_text("{}")
    (tmp_path / "metrics.csv").write_text("epoch,phase\n1,grow\n")
    (tmp_path / "summary.json").write_text(json.dumps({"format": 1, "seed_widths": seed, "widths": seed}))
    record = {"round": 1, "epoch": 1, "plan": {}, "widths": full}
    (tmp_path / "growth.jsonl").write_text(json.dumps(record) + "\n")
    for method, option in (("train", "widths_from"), ("replay", "schedule_from")):
        with pytest.raises(UsageError, match="its width groups are not those of this backbone"):
            built(f"method={method}", f"method.{option}={tmp_path}")
