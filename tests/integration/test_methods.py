"""Every method, on the same small task: it meets its budget and is continued to the same bits."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import run
from covering import covered
from killed import At, learned, rounds, rows

import budgetnet
from budgetnet import backbones
from budgetnet.backbones import cnf
from budgetnet.channels import ChannelGraph
from budgetnet.channels.depth import change_depth, find_stages
from budgetnet.costs import CostModel
from budgetnet.costs.edges import EdgeCosts
from budgetnet.data.readers import digits
from budgetnet.errors import RunError
from budgetnet.methods.pruning.coupled import coupled_channels

DIGITS = (
    "dataset=digits", "dataset.limit_train=80", "dataset.batch_size=16", "dataset.validation=60",
    "budget.flops=50%", "optim.lr=0.02", "logger=csv", "trainer.progress=false",
)  # fmt: skip
TUNED = ("backbone=lenet5", "finetune.epochs=2")
SLIM = ("backbone=resnet20", "backbone.multiplier=0.25", "finetune.epochs=2")
IN_STEPS = ("epochs=6", "prune.epochs=2", "prune.steps=2", "prune.epochs_per_step=1")
PRUNED = (*TUNED, *IN_STEPS)
METHODS: dict[str, tuple[str, ...]] = {
    "adenel": (
        *TUNED, "growth.seed_shape=equal", "growth.epochs_per_round=1", "epochs=12", "growth.cost_ratio=0.2",
    ),
    "width": ("backbone=lenet5", "epochs=3"),
    "l1": PRUNED,
    "fpgm": PRUNED,
    "soft": PRUNED,
    "slimming": (*SLIM, *IN_STEPS),
    "thinet": PRUNED,
    "pfp": PRUNED,
    "grow_prune": (*TUNED, "epochs=6", "method.search_epochs=4"),
    "replay": (*TUNED, "epochs=12", "method.schedule_from={grown}"),
    "autogrow": (*SLIM, "growth.epochs_per_round=1", "method.threshold=-100", "epochs=8"),
    "bsn": (
        "backbone=cnf", "backbone.columns=2", "backbone.channels=4", "method.warmup_epochs=1", "method.lr=20",
        "epochs=4", "method.search_epochs=3", "method.images=64", "finetune.epochs=1",
    ),
    "lwdna": ("backbone=lenet5", "epochs=3"),
    "dhp": (*TUNED, "epochs=6", "method.search_epochs=4", "method.sparsity=1", "method.check_every=5"),
}  # fmt: skip


KINDS = ("autogrow", "bsn")
"""Methods whose networks differ in depth and in edges: one of each is exported. test_demo.py has one of widths."""
KILLED = ("l1", "bsn")
"""Where a killed run goes on in every run of the tests: after a change of widths and of edges. test_autogrow.py has one
of depth, test_hypernet_runs.py one of a search for widths, and test_exit_methods.py one of exits.
"""


def one_more_fits(summary: dict[str, Any]) -> bool:
    """Whether some convolution, or all that shortcuts join, could have had a filter more within budget and full widths.

    Of a network that grew in depth: whether some stage could have had one block more within the budget; of a network of
    edges: whether one that is likely could have been kept.
    """
    if summary["method"] == "bsn":
        return one_more_edge_fits(summary)
    slim = 0.25 if "resnet" in summary["backbone"] else None
    net = backbones.build(summary["backbone"], num_classes=10, in_channels=1, multiplier=slim)
    cost = CostModel(ChannelGraph.trace(net, torch.empty(1, 1, 28, 28)))
    if summary["method"] == "autogrow":
        stages = find_stages(net)
        blocks = {name.rpartition(".")[0] for name in summary["widths"]}
        deep = {stage.name: sum(block.startswith(f"{stage.name}.") for block in blocks) for stage in stages}
        deeper = ({**deep, name: deep[name] + 1} for name in deep)
        limit = summary["budget"]["flops"]["limit"]
        return any(CostModel(change_depth(net, stages, plan)).flops() <= limit for plan in deeper)
    coupled = coupled_channels(cost.graph)
    counts = torch.linalg.lstsq(  # a width is the sum of what the sets of its group keep
        torch.tensor([[float(name in each.groups) for each in coupled] for name in summary["widths"]]),
        torch.tensor([[float(width)] for width in summary["widths"].values()]),
    ).solution.round()
    wider = [
        {**summary["widths"], **{name: summary["widths"][name] + 1 for name in each.groups}}
        for each, count in zip(coupled, counts.flatten().tolist(), strict=True)
        if count < len(each)
    ]
    return any(cost.flops(widths) <= summary["budget"]["flops"]["limit"] for widths in wider)


def one_more_edge_fits(summary: dict[str, Any]) -> bool:
    net = cnf.build(10, 1, (28, 28), columns=2, channels=4)
    ChannelGraph.trace(net, torch.empty(1, 1, 28, 28))
    costs, kept = EdgeCosts(net), net.layout.mask(summary["edges"])
    assert costs.price(kept)["flops"] == summary["flops"]
    wider = (kept | net.layout.mask([name]) for name, _, _, gamma, _ in summary["fabric"]["edges"] if gamma > 0.5)
    alive = [net.layout.alive(choice) for choice in wider if not torch.equal(choice, kept)]
    limit = summary["budget"]["flops"]["limit"]
    return any(costs.price(choice)["flops"] <= limit for choice in alive if not torch.equal(choice, kept))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The finished run of a method."""
    root = tmp_path_factory.mktemp("whole")

    def made_once(method: str) -> Path:
        if not (root / method).exists():
            kind = [] if method in KINDS else ["export=false"]
            finished = run(*command(method, made_once), *kind, f"run.dir={root}/{method}")
            assert finished.returncode == 0, finished.stderr
        return root / method

    return made_once


def command(method: str, whole: Callable[[str], Path]) -> list[str]:
    options = (option.format(grown=whole("adenel")) if "{" in option else option for option in METHODS[method])
    return [*DIGITS, *options, f"method={method}"]


def test_a_replayed_run_has_the_widths_and_the_train_cost_of_the_first_epoch_by_epoch(
    whole: Callable[[str], Path],
) -> None:
    grown, replayed = whole("adenel"), whole("replay")
    columns = ("epoch", "phase", "round", "lr", "params", "flops", "train_cost_flops")
    first, second = ([[row[c] for c in columns] for row in rows(d / "metrics.csv")] for d in (grown, replayed))
    assert first == second and len({row[5] for row in first}) > 2
    assert [entry["widths"] for entry in rounds(grown)] == [entry["widths"] for entry in rounds(replayed)]


@pytest.mark.parametrize("method", METHODS)
def test_a_method_meets_its_budget(method: str, whole: Callable[[str], Path]) -> None:
    directory = whole(method)
    summary = json.loads((directory / "summary.json").read_text())
    assert summary["method"] == method
    assert summary["flops"] <= summary["budget"]["flops"]["limit"] == summary["full_flops"] // 2
    assert summary["budget"]["flops"]["percent"] >= 99 or not one_more_fits(summary)
    with open(directory / "metrics.csv") as file:
        flops = [int(row["flops"]) for row in csv.DictReader(file)]
    assert flops[-1] == summary["flops"]


@pytest.mark.parametrize("method", KINDS)
def test_a_network_of_every_kind_is_exported(method: str, whole: Callable[[str], Path]) -> None:
    assert all((whole(method) / name).stat().st_size for name in ("model.onnx", "model.pt2"))


@pytest.mark.parametrize("method", METHODS)
def test_a_network_that_is_loaded_is_the_one_that_was_tested(method: str, whole: Callable[[str], Path]) -> None:
    net = budgetnet.load(whole(method))
    _, test = digits("data", False)
    mean, std = net.preprocess.mean[0], net.preprocess.std[0]
    with torch.no_grad():
        correct = (net((test.images.float() / 255 - mean) / std).argmax(1) == test.labels).float().mean()
    assert 100 * correct.item() == pytest.approx(net.summary["test_top1"], abs=1e-4)
    assert net.widths == net.summary["widths"]


@pytest.mark.parametrize("method", covered(METHODS, KILLED))
def test_a_method_that_is_killed_goes_on_to_the_same_bits(
    method: str, whole: Callable[[str], Path], tmp_path: Path
) -> None:
    again = [*command(method, whole), "export=false", f"run.dir={tmp_path}/run"]
    own = {"autogrow": "depth.autogrow.AutoGrow._deepen", "bsn": "edges.bsn.BSN._extract"}
    change = own.get(method, "method.Training.resize")
    resized = At(f"budgetnet.methods.{change}", 1, after=True)
    in_an_epoch = At("budgetnet.training.learner.Learner.training_step", 15)
    killed = run(*again, before=resized if rounds(whole(method)) else in_an_epoch)
    assert killed.returncode == -9
    if method == "bsn":
        with pytest.raises(RunError, match=r"still searches for its network, .* budgetnet run.dir=.* continues it"):
            budgetnet.load(tmp_path / "run")
    elif method in KILLED:
        with pytest.warns(UserWarning, match=r"is not finished: this is its network after [0-9]+ epochs; budgetnet"):
            budgetnet.load(tmp_path / "run")
    continued = run(*again)
    assert continued.returncode == 0, continued.stderr
    assert learned(tmp_path / "run") == learned(whole(method))


@pytest.mark.soak
@pytest.mark.parametrize("method", ["adenel", "slimming", *KINDS])
def test_a_network_of_every_kind_is_exported_and_drawn(
    method: str, whole: Callable[[str], Path], tmp_path: Path
) -> None:
    finished = run(*command(method, whole), f"run.dir={tmp_path}/run", figures=True)
    assert finished.returncode == 0, finished.stderr
    assert all((tmp_path / "run" / name).stat().st_size for name in ("model.onnx", "model.pt2"))
    assert list((tmp_path / "run" / "figures").glob("*.png"))


def test_the_table_holds_every_method() -> None:
    files = (Path(__file__).parents[2] / "conf" / "method").glob("*.yaml")
    with_exits = {"exits", "l2w"}  # test_exit_methods.py
    assert {file.stem for file in files} - {"train", "own"} - with_exits == set(METHODS)
