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
from budgetnet.reports.run_directory import RunDirectory

NAMES = ("conv1", "layer1.0.conv1", "layer1.1.conv1", "layer2.0.conv1", "layer2.1.conv1")
SEED = {"conv1": 16, "layer1.0.conv1": 16, "layer2.0.conv1": 64}
DEEPER = {"conv1": 16, "layer1.0.conv1": 16, "layer1.1.conv1": 16, "layer2.0.conv1": 64}
FINAL = {**DEEPER, "layer2.1.conv1": 64}


@pytest.fixture
def deepened(make_run: Callable[..., Path]) -> RunDirectory:
    """A block in layer1 after 3 epochs, in layer2 after 6 (deeper than the full backbone), none after 9 and 12."""
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
    full = {name: width for name, width in FINAL.items() if name != "layer2.1.conv1"}
    summary |= {"widths": FINAL, "seed_widths": SEED, "full_widths": full, "stop_reason": "accuracy"}
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


def test_the_report_names_the_blocks_and_shows_no_saturation(deepened: RunDirectory) -> None:
    text = write_report(deepened.path).read_text()
    assert "| layer1 1→2 blocks |" in text and "| layer2 1→2 blocks |" in text and "| nobody |" in text
    assert "| layer2.1.conv1 |  | 64 |  |  |" in text
    assert "saturation.png" not in text and not (deepened.path / "figures" / "saturation.png").exists()


def test_the_page_draws_depths_and_leaves_out_what_is_not_there(deepened: RunDirectory) -> None:
    text = page([deepened])
    path = '{"names":["layer1","layer2"],"axis":"depth (blocks)","epochs":[0,3,6,9,12],"widths":'
    assert f'"path":{path}[[1,2,2,2,2],[1,1,2,2,2]]}}' in text
    assert '"seed_widths":[16,16,null,64,null]' in text and '"full_widths":[16,16,16,64,null]' in text


def test_an_unfinished_run_is_reported_too(deepened: RunDirectory) -> None:
    (deepened.path / "summary.json").unlink()
    (deepened.path / "done.json").unlink()
    assert "Unfinished" in write_report(deepened.path).read_text()
