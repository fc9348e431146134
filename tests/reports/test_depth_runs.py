"""Reports of a run in which blocks were added: groups that are there only from a round on."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

from budgetnet.reports import figures
from budgetnet.reports.page import page
from budgetnet.reports.report import write_report
from budgetnet.runs.directory import RunDirectory

NAMES = ("conv1", "layer1.0.conv1", "layer1.1.conv1", "layer2.0.conv1", "layer2.1.conv1")
SEED = {"conv1": 16, "layer1.0.conv1": 16, "layer2.0.conv1": 64}
DEEPER = {"conv1": 16, "layer1.0.conv1": 16, "layer1.1.conv1": 16, "layer2.0.conv1": 64}
FINAL = {**DEEPER, "layer2.1.conv1": 64}
FULL = {**DEEPER, "layer1.2.conv1": 16}


@pytest.fixture
def deepened(make_run: Callable[..., Path]) -> RunDirectory:
    """A block in layer1 after 3 epochs, in layer2 after 6, none after 9 and 12.

    In the end layer1 is shallower and layer2 deeper than in the full backbone.
    """
    path = make_run("deep", names=NAMES, full=(16, 16, 16, 64, 64), method="autogrow")
    (path / "saturation.csv").unlink()
    records = [json.loads(line) for line in (path / "growth.jsonl").read_text().splitlines()]
    rounds = [
        ({"layer1.1.conv1": [0, 16]}, DEEPER, {"layer1": [1, 2], "layer2": [1, 1]}),
        ({"layer2.1.conv1": [0, 64]}, FINAL, {"layer1": [2, 2], "layer2": [1, 2]}),
        ({}, FINAL, {"layer1": [2, 2], "layer2": [2, 2]}),
        ({}, FINAL, {"layer1": [2, 2], "layer2": [2, 2]}),
    ]
    for record, (plan, widths, depths) in zip(records, rounds, strict=True):
        record |= {"saturation": {}, "candidates": ["layer1"], "plan": plan, "widths": widths, "depths": depths}
    (path / "growth.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    summary = json.loads((path / "summary.json").read_text())
    summary |= {"widths": FINAL, "seed_widths": SEED, "full_widths": FULL, "stop_reason": "accuracy"}
    summary["full_depths"] = {"layer1": 3, "layer2": 1}
    (path / "summary.json").write_text(json.dumps(summary))
    return RunDirectory(path)


def test_a_group_has_width_0_until_its_block_is_there(deepened: RunDirectory) -> None:
    first, second, third = deepened.widths()
    assert first == (0, {**dict.fromkeys(FINAL, 0), **SEED})
    assert second == (3, {**DEEPER, "layer2.1.conv1": 0}) and third == (6, FINAL)
    assert list(first[1]) == list(FINAL)


def test_the_growth_path_draws_the_depth_of_every_stage(deepened: RunDirectory) -> None:
    assert [epoch for epoch, _ in deepened.depths()] == [0, 3, 6, 9, 12]
    assert [tuple(depths.values()) for _, depths in deepened.depths()] == [(1, 1), (2, 1), (2, 2), (2, 2), (2, 2)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        axes = figures.growth_path(deepened).axes[0]
    drawn = [list(line.get_ydata()) for line in axes.lines if len(line.get_xdata()) == 6]
    assert drawn == [[1, 2, 2, 2, 2, 2], [1, 1, 2, 2, 2, 2]]
    assert axes.get_ylabel() == "depth (blocks)"
    assert {"layer1  2", "layer2  2"} <= {text.get_text() for text in axes.texts}


@pytest.mark.usefixtures("not_drawn")
def test_the_report_names_the_blocks_and_shows_no_saturation(deepened: RunDirectory) -> None:
    text = write_report(deepened.path).read_text()
    assert "| layer1 1→2 blocks |" in text and "| layer2 1→2 blocks |" in text and "| none |" in text
    assert "## Depths (blocks)" in text and "## Widths" not in text
    assert "| layer1 | 1 | 2 | 3 | 67 % |\n| layer2 | 1 | 2 | 1 | 200 % |" in text
    assert "saturation.png" not in text and not (deepened.path / "figures" / "saturation.png").exists()


def test_the_last_figure_draws_the_depth_of_every_stage_beside_the_full_backbones(deepened: RunDirectory) -> None:
    axes = figures.final_sizes(deepened).axes[0]
    heights = {bars.get_label(): [bar.get_height() for bar in bars] for bars in axes.containers}
    assert heights == {"full backbone": [3, 1], "final": [2, 2]}
    assert axes.get_ylabel() == "depth (blocks)"
    assert [label.get_text() for label in axes.get_xticklabels()] == ["layer1", "layer2"]


def test_the_page_draws_depths(deepened: RunDirectory) -> None:
    text = page([deepened])
    path = '{"names":["layer1","layer2"],"epochs":[0,3,6,9,12],"sizes":[[1,2,2,2,2],[1,1,2,2,2]]}'
    assert '"deep":true' in text
    assert f'"path":{path},"sizes":{{"seed":[1,1],"final":[2,2],"full":[3,1]}}' in text


@pytest.mark.usefixtures("not_drawn")
def test_an_unfinished_run_is_reported_too(deepened: RunDirectory) -> None:
    (deepened.path / "summary.json").unlink()
    (deepened.path / "done.json").unlink()
    assert "Unfinished" in write_report(deepened.path).read_text()
