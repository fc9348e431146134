"""The demo as `make run` starts it, with every file of the run directory."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
from commands import run

from budgetnet import ChannelGraph, CostModel, backbones, resize

SHORTER = (
    "run.name=default", "epochs=16", "finetune.epochs=2", "growth.epochs_per_round=1", "dataset.limit_train=320",
)  # fmt: skip
"""What all but `make soak` makes of the demo: every file is there, and the network has learned less."""


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> tuple[Path, str]:
    root, shorter = tmp_path_factory.mktemp("demo"), getattr(request, "param", SHORTER)
    finished = run("experiment=demo", *shorter, f"run.root={root}", figures=True)
    assert finished.returncode == 0, finished.stderr
    return root / "demo" / "default", finished.stdout


def summary_of(directory: Path) -> dict[str, Any]:
    summary: dict[str, Any] = json.loads((directory / "summary.json").read_text())
    return summary


def network_of(directory: Path) -> torch.nn.Module:
    """The trained network, rebuilt from the widths and the checkpoint alone."""
    state = torch.load(directory / "best.ckpt", weights_only=True)
    net = backbones.build("lenet5", widths=state["budgetnet"]["widths"])
    net.load_state_dict(
        {key.removeprefix("net."): v for key, v in state["state_dict"].items() if key.startswith("net.")}
    )
    return net.eval()


@pytest.mark.soak
@pytest.mark.parametrize("demo", [()], indirect=True, ids=["whole"])
def test_it_reaches_98_percent(demo: tuple[Path, str]) -> None:
    summary = summary_of(demo[0])
    assert summary["test_top1"] >= 98
    assert summary["stop_reason"] == "flops"


def test_it_stays_within_the_budget(demo: tuple[Path, str]) -> None:
    summary = summary_of(demo[0])
    assert summary["stop_reason"] == "flops"
    assert summary["flops"] <= summary["budget"]["flops"]["limit"]
    assert min(summary["seed_widths"]["conv1"], summary["seed_widths"]["conv2"]) == 4


def test_the_costs_in_the_summary_are_those_of_the_trained_network(demo: tuple[Path, str]) -> None:
    summary, net = summary_of(demo[0]), network_of(demo[0])
    cost = CostModel(ChannelGraph.trace(net, torch.empty(1, 1, 28, 28)))
    assert cost.costs() == {kind: summary[kind] for kind in ("params", "flops", "macs")}
    assert summary["params"] == sum(p.numel() for p in net.parameters())


def test_the_run_directory_is_complete(demo: tuple[Path, str]) -> None:
    files = {str(path.relative_to(demo[0])) for path in demo[0].rglob("*") if path.is_file()}
    assert files >= {
        "config.yaml", "metrics.csv", "saturation.csv", "growth.jsonl", "summary.json", "last.ckpt", "best.ckpt",
        "model.pt2", "model.onnx", "report.md", "done.json",
    }  # fmt: skip
    assert len([name for name in files if name.startswith("figures/") and name.endswith(".png")]) == 7
    assert [name for name in files if name.startswith("wandb/offline-run")]
    assert not [name for name in files if name.endswith(".tmp")]


def test_the_train_cost_is_the_sum_of_flops_over_the_images_of_every_epoch(demo: tuple[Path, str]) -> None:
    with open(demo[0] / "metrics.csv") as file:
        rows = list(csv.DictReader(file))
    images = 64 * (320 // 64)
    spent = 0
    for epoch, row in enumerate(rows, start=1):
        spent += images * int(row["flops"])
        assert (int(row["epoch"]), int(row["train_cost_flops"])) == (epoch, spent)
    summary = summary_of(demo[0])
    assert summary["train_cost_flops"] == spent
    assert summary["train_cost_baseline_percent"] == pytest.approx(100 * spent / (summary["full_flops"] * 60 * images))


def test_every_growth_round_is_recorded_with_its_plan_and_price(demo: tuple[Path, str]) -> None:
    rounds = [json.loads(line) for line in (demo[0] / "growth.jsonl").read_text().splitlines()]
    summary = summary_of(demo[0])
    cost = CostModel(ChannelGraph.trace(backbones.build("lenet5"), torch.empty(1, 1, 28, 28)))
    widths = summary["seed_widths"]
    for number, record in enumerate(rounds, start=1):
        assert record["round"] == number
        assert {name: old for name, (old, _) in record["plan"].items()} == {
            name: widths[name] for name in record["plan"]
        }
        widths = {**widths, **{name: new for name, (_, new) in record["plan"].items()}}
        assert record["widths"] == widths
        assert record["flops"] == cost.flops(widths) <= summary["budget"]["flops"]["limit"]
        assert record["plan"].keys() <= set(record["candidates"]) <= record["saturation"].keys()
    assert widths == summary["widths"]
    assert [record["stop"] for record in rounds] == [None] * (len(rounds) - 1) + ["flops"]


def test_the_exported_network_gives_the_logits_of_the_trained_one(demo: tuple[Path, str]) -> None:
    images = torch.randn(5, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    logits = network_of(demo[0])(images)
    session = onnxruntime.InferenceSession(demo[0] / "model.onnx")
    (onnx_logits,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    assert torch.allclose(torch.from_numpy(onnx_logits), logits, atol=1e-4)
    exported = torch.export.load(demo[0] / "model.pt2").module()
    assert torch.allclose(exported(images), logits, atol=1e-4)


def test_it_ends_with_the_table_and_the_path_of_the_report(demo: tuple[Path, str]) -> None:
    directory, output = demo
    summary = summary_of(directory)
    assert f"{summary['test_top1']:.2f}" in output and "flops" in output
    assert output.strip().splitlines()[-1] == f"report: {directory / 'report.md'}"


def test_a_finished_run_is_not_run_again(demo: tuple[Path, str]) -> None:
    directory = demo[0]

    def written() -> dict[Path, int]:  # W&B's own process may end its log later
        return {path: path.stat().st_mtime_ns for path in directory.rglob("*") if path.suffix != ".log"}

    before = written()
    again = run("experiment=demo", *SHORTER, f"run.root={directory.parents[1]}")
    line, _, table = again.stdout.partition("\n")
    assert line == f"done     {directory} was finished before, and nothing is trained"
    assert again.returncode == 0 and table and demo[1].endswith(table)
    assert written() == before


def test_another_configuration_in_its_directory_is_refused(demo: tuple[Path, str]) -> None:
    other = run("experiment=demo", *SHORTER, f"run.dir={demo[0]}", "optim.lr=0.5", "seed=3")
    assert other.returncode == 2
    assert "differing: dataset.seed, optim.lr, seed" in other.stderr


def test_the_trained_network_can_be_resized_further(demo: tuple[Path, str]) -> None:
    net = network_of(demo[0])
    graph = ChannelGraph.trace(net, torch.empty(1, 1, 28, 28))
    images = torch.randn(3, 1, 28, 28)
    before = net(images)
    resize(net, {"conv1": graph.widths["conv1"] + 3}, init="zero_out")
    assert torch.allclose(net(images), before, atol=1e-5)
