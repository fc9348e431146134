"""The study of what to grow: its tables are those of its CSV files, and its statistics are right."""

from __future__ import annotations

import copy
import csv
from pathlib import Path

import pytest
import torch

from budgetnet import ChannelGraph, CostModel
from budgetnet.channels.untrained import resize_untrained
from budgetnet.data.arrays import ImageArrays
from budgetnet.methods.growth import GrowthRule, Limit, Planner
from experiments.study_capacity import __main__ as study
from experiments.study_capacity import summary
from experiments.study_capacity.small import VGG8, halved, resnet8

FOLDER = Path(study.__file__).parent


@pytest.mark.parametrize("name", sorted(study.tables(FOLDER / "results")))
def test_a_table_is_made_of_the_committed_runs_and_stands_in_the_readme(name: str) -> None:
    table = study.tables(FOLDER / "results")[name]
    assert (FOLDER / "results" / name).read_text() == table
    assert table in (FOLDER / "README.md").read_text()


@pytest.mark.parametrize("file", sorted((FOLDER / "results").glob("*_saturation.csv")), ids=lambda file: file.stem)
def test_no_run_of_the_study_is_above_its_budget_and_rounds_lead_to_its_widths(file: Path) -> None:
    runs = {
        (line["row"], line["seed"]): line
        for line in study.read_csv(file.with_name(file.name.replace("_saturation", "")))
    }
    assert all(int(line["flops"]) <= 1_200_000 for line in runs.values())
    ends: dict[tuple[str, str], dict[str, str]] = {}
    for line in study.read_csv(file):
        known = ends.setdefault((line["row"], line["seed"]), {})
        assert known.get(line["layer"], line["before"]) == line["before"]
        known[line["layer"]] = line["after"]
    for run, widths in ends.items():
        assert "-".join(widths.values()) == runs[run]["widths"]


NETS = {"study": VGG8(10), "study_flat": VGG8(10, 3, (32,) * 8), "study_resnet": resnet8(10)}


@pytest.mark.parametrize("name", sorted(NETS))
def test_the_rule_makes_the_committed_rounds_of_the_committed_readings(name: str) -> None:
    rounds: dict[tuple[str, str, str], list[dict[str, str]]] = {}
    for line in study.read_csv(FOLDER / "results" / f"{name}_saturation.csv"):
        if line["row"] in ("path", "norescale_path", "balanced"):
            rounds.setdefault((line["row"], line["seed"], line["round"]), []).append(line)
    assert len(rounds) >= 12
    for (row, _, number), lines in rounds.items():
        net = copy.deepcopy(NETS[name])
        cost = CostModel(ChannelGraph.trace(net, torch.empty(1, 3, 16, 16)))
        full = {line["layer"]: cost.graph.widths[line["layer"]] for line in lines}
        resize_untrained(net, {line["layer"]: int(line["before"]) for line in lines})
        policy = "balanced" if row == "balanced" else "cost_aware"
        planner = Planner(cost, GrowthRule(policy=policy), {layer: 8 * width for layer, width in full.items()})
        s = {line["layer"]: float(line["saturation"]) for line in lines}
        after = planner.plan(int(number), s, [Limit("flops", "flops", 1_200_000)]).after
        assert {layer: after[layer] for layer in s} == {line["layer"]: int(line["after"]) for line in lines}


def test_agreement_is_spearmans_correlation_over_pairs() -> None:
    assert summary.agreement([[1, 2, 3], [10, 20, 30]]) == pytest.approx(1)
    assert summary.agreement([[1, 2, 3], [3, 2, 1]]) == pytest.approx(-1)
    assert summary.agreement([[1, 2, 3], [1, 2, 3], [3, 2, 1]]) == pytest.approx(-1 / 3)
    assert summary.agreement([[1, 1, 2], [1, 2, 2]]) == pytest.approx(0.5)  # ties share their ranks
    assert summary.agreement([[1, 1, 1], [1, 2, 3]]) == 0


def test_what_a_read_out_says_of_a_path() -> None:
    said = summary.what_is_read({"conv1": [0.6, 1.2, 1.5, 2.4], "conv2": [2.1, 1.7]})
    assert said["published λ"] == {"conv1": 1.0, "conv2": 1.0}
    assert said["clock, bar 0.9"] == {"conv1": 0.5, "conv2": 1.0}  # 0.9 of a fresh filter's norm of 1.41
    assert said["clock, bar 1.1"] == {"conv1": 0.25, "conv2": 1.0}
    assert said["path, 50%"] == {"conv1": 0.25, "conv2": 1.0}
    assert said["path, 30%"] == {"conv1": 0.25, "conv2": 0.5}
    assert said["path, 50%, norm per root of its size"] == {"conv1": 0.5, "conv2": 0.5}  # roots of 27 and 36


def test_the_networks_of_the_study_have_the_costs_that_the_readme_names() -> None:
    image = torch.empty(1, 3, 16, 16)
    costs = [
        CostModel(ChannelGraph.trace(net, image)).costs() for net in (VGG8(10), VGG8(10, 3, (32,) * 8), resnet8(10))
    ]
    text = (FOLDER / "README.md").read_text()
    for cost in costs:
        assert f"{cost['flops'] / 1e6:.2f}M" in text


def test_its_images_are_means_of_two_by_two_pixels() -> None:
    image = torch.tensor([[0, 2, 10, 11], [4, 6, 12, 13]], dtype=torch.uint8).expand(1, 3, 2, 4)
    small = halved(ImageArrays(image, torch.tensor([0]), 10, tuple("abcdefghij")))
    assert small.images.tolist() == [[[[3, 12]]] * 3]
    assert small.images.dtype == torch.uint8


def test_results_name_their_hardware() -> None:
    for file in (FOLDER / "results").glob("study*.csv"):
        if "saturation" not in file.name:
            assert all(line["hardware"] and line["versions"] for line in csv.DictReader(file.read_text().splitlines()))
