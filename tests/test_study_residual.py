"""The study of residual networks: its tables are those of its CSV files, and rows are compared seed by seed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from budgetnet import ChannelGraph, CostModel
from experiments.study_capacity.small import resnet20
from experiments.study_residual import __main__ as study

FOLDER = Path(study.__file__).parent


def line(row: str, seed: int, top1: float) -> dict[str, str]:
    numbers = {"flops": "1200000", "params": "20000", "train_cost": "24000000", "widths": "4-4"}
    return {"row": row, "seed": str(seed), "test_top1": str(top1), **numbers}


def test_rows_are_compared_over_the_seeds_that_both_have() -> None:
    lines = [line("width", 0, 60.0), line("width", 1, 70.0), line("path", 1, 72.0), line("path", 0, 61.0)]
    assert study.above(lines, "path") == "+1.50 ± 0.50"  # differences 1 and 2: deviation 0.71, over the root of 2
    assert study.above([*lines, line("path", 2, 99.0)], "path") == "+1.50 ± 0.50 (2 pairs)"
    assert study.above(lines[:1] + lines[2:], "path") == "+1.00 (1 pairs)"
    assert study.above(lines[2:], "path") == study.above(lines, "width") == ""


def test_runs_whose_directories_are_gone_stay_in_the_table() -> None:
    before = [line("width", 0, 60.0), line("width", 1, 70.0)]
    again = {**line("width", 1, 71.0), "seed": 1}
    assert [run["test_top1"] for run in study.kept(before, [again])] == ["60.0", "71.0"]


def test_a_table_has_the_rows_that_have_runs() -> None:
    text = study.table([line("width", 0, 60.0), line("importance", 0, 61.0), line("unheard of", 0, 99.0)])
    assert text.count("\n") == 4 and "| importance | s by importance | 1 | 61.00 | +1.00 | 1.20M | 20.0k" in text


@pytest.mark.parametrize("name", sorted(study.tables(FOLDER / "results")))
def test_a_table_is_made_of_the_committed_runs_and_stands_in_the_readme(name: str) -> None:
    table = study.tables(FOLDER / "results")[name]
    assert (FOLDER / "results" / name).read_text() == table and table in (FOLDER / "README.md").read_text()


def test_the_deeper_network_has_the_costs_that_the_readme_names() -> None:
    flops = CostModel(ChannelGraph.trace(resnet20(10), torch.empty(1, 3, 16, 16))).flops()
    assert f"{flops / 1e6:.1f}M" in (FOLDER / "README.md").read_text()
