"""The report of a search for edges."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from matplotlib.colors import to_hex
from matplotlib.patches import FancyArrowPatch

from budgetnet.reports.comparison import score_against_cost
from budgetnet.reports.drawing import BLUE, PALE
from budgetnet.reports.edges import architecture, probabilities
from budgetnet.reports.report import write_report
from budgetnet.reports.rows import final_row
from budgetnet.reports.tables import as_csv, cells, header
from budgetnet.runs.directory import RunDirectory

EDGES = [
    ["b_block", "a", "b", 0.99, True],
    ["b_skip", "a", "b", 0.02, False],
    ["c_block", "b", "c", 0.9, True],
    ["c_skip_a", "a", "c", 0.3, False],
]


def searched(run: Path) -> Path:
    rows = [
        {
            "epoch": epoch, "decided": 0.25 * epoch, "sampled_flops": 9e6 / epoch, "pruned_flops": 2_000_000,
            "full_flops": 9_000_000, **{name: 1 - epoch * (1 - gamma) / 3 for name, _, _, gamma, _ in EDGES},
        }
        for epoch in (1, 2, 3)
    ]  # fmt: skip
    with open(run / "edges.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    summary = json.loads((run / "summary.json").read_text())
    summary |= {"fabric": {"nodes": [["a", 0, 0], ["b", 1, 0], ["c", 1, 1]], "edges": EDGES}}
    (run / "summary.json").write_text(json.dumps(summary))
    return run


def test_what_was_kept_is_blue_and_all_else_is_pale(make_run: Callable[..., Path]) -> None:
    figure = architecture(RunDirectory(searched(make_run())))
    (axes,) = figure.axes
    colours = [to_hex(patch.get_edgecolor()).upper() for patch in axes.patches if isinstance(patch, FancyArrowPatch)]
    assert colours == [BLUE, PALE, BLUE, PALE]
    assert {text.get_text() for text in axes.texts} >= {"a", "b", "c"}
    assert axes.get_title("left").startswith("Architecture: 2 of 4 edges")


def test_probabilities_are_drawn_edge_by_edge_and_epoch_by_epoch(make_run: Callable[..., Path]) -> None:
    mesh = probabilities(RunDirectory(searched(make_run()))).axes[0].collections[0]
    values = mesh.get_array().reshape(4, 3)
    assert [round(float(value), 6) for value in values[:, 2]] == [0.99, 0.02, 0.9, 0.3]


@pytest.mark.usefixtures("not_drawn")
def test_the_report_has_sampled_pruned_and_full_costs_side_by_side(make_run: Callable[..., Path]) -> None:
    run = searched(make_run())
    text = write_report(run).read_text()
    assert "| flops | 3.00M | 2.00M | 9.00M |" in text and "75 % of the edges are decided" in text
    assert (run / "figures" / "architecture.png").exists() and (run / "figures" / "edges.png").exists()


def test_what_was_limited_is_a_column_and_a_panel(make_run: Callable[..., Path]) -> None:
    rows = []
    for name, operations in (("a", 18), ("b", 31), ("c", None)):
        run = make_run(name, seed=len(rows))
        summary = json.loads((run / "summary.json").read_text())
        if operations is not None:
            budget = {"sequential_ops": {"limit": 40, "used": operations, "percent": 2.5 * operations}}
            (run / "summary.json").write_text(json.dumps(summary | {"sequential_ops": operations, "budget": budget}))
        rows.append(final_row(RunDirectory(run)))
    column = header(rows).index("Operations")
    assert [line[column] for line in cells(rows)][:3] == ["18", "31", ""]
    assert "Operations" not in header(rows[2:]) and "sequential_ops" not in as_csv(rows[2:])
    assert [axes.get_xlabel() for axes in score_against_cost(rows).axes][3:] == ["sequential operations"]
    assert len(score_against_cost(rows[2:]).axes) == 3
