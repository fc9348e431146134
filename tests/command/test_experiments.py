"""What experiments/ says: its numbers are those of the runs. Its commands: tests/test_documentation.py."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path

import pytest

from budgetnet.reports.rows import Row
from budgetnet.reports.tables import as_csv
from budgetnet.tasks import Classification
from experiments.exits_small.__main__ import BUDGETS, with_table

FOLDERS = Path(__file__).parents[2] / "experiments"
RESULTS = sorted(FOLDERS.glob("*/*/runs.csv"))


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: f"{path.parts[-3]}/{path.parts[-2]}")
def test_results_have_every_column_and_the_readme_their_table(path: Path) -> None:
    rows = list(csv.DictReader(io.StringIO(path.read_text())))
    (empty,) = csv.DictReader(io.StringIO(as_csv([Row("", "", "", "", 0, True, 1, Classification.metrics)])))
    assert set(empty) <= set(rows[0])
    assert all(row["hardware"] and row["versions"] for row in rows)
    table = path.with_name("table.md").read_text()
    for row in rows:
        (line,) = (line for line in table.splitlines() if line.startswith(f"| {row['name']} |"))
        assert f"| {float(row['test_top1']):.2f} | {float(row['test_top1_last']):.2f} |" in line
    readme = path.parents[1].joinpath("README.md").read_text()
    if path.parts[-3] == "pareto":  # a table of its own, with two seeds to a line
        assert all(f"{float(row['test_top1']):.2f}" in readme for row in rows)
    else:
        assert table in readme


def test_the_table_of_weighted_samples_is_that_of_its_runs() -> None:
    lines = list(csv.DictReader(io.StringIO((FOLDERS / "exits_small" / "results.csv").read_text())))
    readme = (FOLDERS / "exits_small" / "README.md").read_text()
    assert with_table(readme, lines) == readme
    assert all(float(line[f"{name} val_mean_flops"]) <= most for line in lines for name, most in BUDGETS.items())
    costs = {line["samples"]: int(line["train_cost_flops"]) for line in lines}
    assert costs["weighted"] == costs["equal, at its train cost"]


def test_figure_4s_rounds_are_those_that_were_recorded() -> None:
    folder = FOLDERS / "fig4_filters"
    entries = [json.loads(line) for line in (folder / "results" / "growth.jsonl").read_text().splitlines()]
    lines = re.findall(r"^\| \d+ \|.*\|$", (folder / "README.md").read_text(), re.MULTILINE)
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert len(rows) == len(entries)
    width = {"conv1": 4, "conv2": 4}
    for (number, *cells), entry in zip(rows, entries, strict=True):
        assert int(number) == entry["round"]
        for layer, (selected, grows_to) in zip(width, (cells[:2], cells[2:]), strict=True):
            assert selected == f"{round(entry['saturation'][layer] * width[layer])} of {width[layer]}"
            width[layer] = entry["widths"][layer]
            assert grows_to == (str(width[layer]) if layer in entry["plan"] else "")
