"""The figures of a network with exits show what the run's files say."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from budgetnet.reports.exits import (
    accuracy_against_mean_flops,
    accuracy_of_exits,
    images_of_exits,
    weights_of_exits,
)
from budgetnet.reports.report import write_report
from budgetnet.runs.directory import RunDirectory

BUDGETED = [
    {"q": q, "val_accuracy": 50 + q, "val_mean_flops": 2e6 * q, "test_accuracy": 49 + q, "test_mean_flops": 2.1e6 * q}
    for q in (0.5, 1.0, 1.5)
]
WEIGHTS = [
    {f"{kind}_{exit}": value * epoch * exit for kind, value in (("weight", 0.5), ("loss", 2.0), ("correlation", 0.1))
     for exit in (1, 2)} | {"epoch": epoch} for epoch in (1, 2, 3)
]  # fmt: skip


def with_exits(run: Path) -> Path:
    for name, rows in (("budgeted", BUDGETED), ("weights", WEIGHTS)):
        write(run / f"{name}.csv", rows)
    with open(run / "metrics.csv", newline="") as file:
        metrics = [
            {**row, "val_exit1_top1": 10 + n, "val_exit2_top1": 20 + n} for n, row in enumerate(csv.DictReader(file))
        ]
    write(run / "metrics.csv", metrics)
    summary = json.loads((run / "summary.json").read_text())
    summary |= {"budget": {"mean_flops": {"limit": 2_000_000, "used": 1_900_000, "percent": 95.0}}}
    summary |= {"test_exit1_top1": 44.0, "test_exit2_top1": 55.0}
    summary["exits"] = {
        "params": [100_000, 200_000], "flops": [1_000_000, 3_000_000], "thresholds": [0.75], "val_mean_flops": 1.9e6,
        "test_mean_flops": 1.8e6, "test_leaving": [3, 1],
    }  # fmt: skip
    (run / "summary.json").write_text(json.dumps(summary))
    pictures = {"exit 1": np.full((3, 3, 4, 4), 0.25, np.float32), "exit 2": np.zeros((0, 3, 4, 4), np.float32)}
    np.savez(run / "examples.npz", **pictures)  # type: ignore[arg-type]
    return run


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def lines(axes: Any) -> dict[str, list[tuple[float, float]]]:
    return {line.get_label(): [(float(x), float(y)) for x, y in zip(*line.get_data())] for line in axes.lines}


def test_the_curves_of_both_splits_are_drawn_with_the_exits_and_the_budget(make_run: Callable[..., Path]) -> None:
    (axes,) = accuracy_against_mean_flops(RunDirectory(with_exits(make_run()))).axes
    found = lines(axes)
    assert found["held out"] == [(row["val_mean_flops"], row["val_accuracy"]) for row in BUDGETED]
    assert found["test"] == [(row["test_mean_flops"], row["test_accuracy"]) for row in BUDGETED]
    assert found["test, all images at one exit"] == [(1e6, 44.0), (3e6, 55.0)]
    assert {x for x, _ in found["budget"]} == {2e6}


def test_every_exit_has_its_line_over_the_epochs_and_its_path_of_weights(make_run: Callable[..., Path]) -> None:
    run = RunDirectory(with_exits(make_run()))
    found = lines(accuracy_of_exits(run).axes[0])
    assert found["exit 2"][:2] == [(1.0, 20.0), (2.0, 21.0)] and found["exit 1"][0] == (1.0, 10.0)
    paths, times = weights_of_exits(run).axes
    assert lines(paths)["exit 2"] == [(4.0, 1.0), (8.0, 2.0), (12.0, 3.0)]
    assert [round(float(y), 9) for y in times.lines[0].get_ydata()] == [0.1, 0.2, 0.3]


def test_the_strip_has_a_row_for_each_exit_and_the_report_shows_all_four(
    make_run: Callable[..., Path], drawn_alone: Callable[..., None]
) -> None:
    run = with_exits(make_run())
    figure = images_of_exits(RunDirectory(run))
    assert len(figure.axes) == 6 and sum(len(axes.images) for axes in figure.axes) == 3
    assert [text.get_text() for axes in figure.axes for text in axes.texts] == ["exit 1\n75.0 %", "exit 2\n25.0 %"]
    names = ("accuracy_against_mean_flops", "accuracy_of_exits", "weights_of_exits", "images_of_exits")
    drawn_alone(*names, "examples")
    text = write_report(run).read_text()
    assert all(f"](figures/{name}.png)" in text and (run / "figures" / f"{name}.png").exists() for name in names)
    assert "](figures/examples.png)" not in text
    assert (
        "| 1 | 1.00M | 100k | 44.00 | 0.7500 | 3 |" in text and "| 2 | 3.00M | 200k | 55.00 | all leave | 1 |" in text
    )
    assert re.search(r"\| held out \| [\d.]+ \| 1.90M \|\n\| test \| [\d.]+ \| 1.80M \|", text)
