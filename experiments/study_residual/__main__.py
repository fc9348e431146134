"""python -m experiments.study_residual runs      tables and figures of the study out of its run directories

Runs of results/*.csv whose directories are gone stay in the tables.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from budgetnet.costs.budget import format_quantity
from budgetnet.reports.tables import markdown_table
from budgetnet.runs.directory import find_run_directories
from budgetnet.runs.records import write_text
from experiments.study_capacity import summary
from experiments.study_capacity.__main__ import read_csv

HERE = Path(__file__).parent
FAMILIES = ("study_resnet", "study_resnet20", "study")
ROWS = {
    "width": "the backbone scaled down, from scratch",
    "path": "s along the path",
    "proportional": "every layer by one factor (the default)",
    "rounds4": "the same, rounds of four epochs, 11 epochs of fine-tuning",
    "steep225": "by one factor, of a backbone that rises by 2.25 a stage",
    "uniform": "every layer by a ratio of its width",
    "uniform17": "`uniform`, 17 epochs of fine-tuning",
    "uniform_few": "`uniform`, rounds of twice the FLOPs, 19 epochs of fine-tuning",
    "uniform_params": "`uniform`, to the parameters of `width` too",
    "importance": "s by importance",
    "gradient": "s by the gradient of a new channel",
    "importance_tied": "`importance`, a width a stage, shortcuts pad",
    "importance_pad": "`importance`, shortcuts pad",
    "width_params": "`width` to the parameters of `path` too, from scratch",
    "scratch": "the widths of `importance`, from scratch",
    "scratch_uniform": "the widths of `uniform17`, from scratch",
    "steep": "times 2.5 a stage, from scratch",
    "narrow_2": "times 2 a stage, half within blocks, from scratch",
    "narrow_159": "times 1.59 a stage, half within blocks, from scratch",
    "wide_159": "times 1.59 a stage, double within blocks, from scratch",
}
HEADER = ("Row", "What", "n", "Test top-1 %", "Above `width`", "FLOPs", "Params", "Train cost", "Widths, seed 0")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m experiments.study_residual", description=__doc__)
    parser.add_argument("folder", type=Path, help=f"holds {', '.join(FAMILIES)}")
    parser.add_argument("--out", type=Path, default=HERE / "results")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    for name in FAMILIES:
        if (options.folder / name).is_dir():
            found = find_run_directories([options.folder / name])
            for file, columns, lines in (
                (options.out / f"{name}.csv", summary.RUNS, summary.runs(found)),
                (options.out / f"{name}_saturation.csv", summary.SATURATION, summary.saturations(found)),
            ):
                write_text(file, summary.as_csv(columns, kept(read_csv(file), lines)))
    for name, text in tables(options.out).items():
        write_text(options.out / name, text)
        summary.draw_accuracy(read_csv(options.out / f"{Path(name).stem}.csv"), ROWS, options.out / f"{name[:-3]}.png")


def kept(before: Sequence[Mapping[str, Any]], found: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The lines of the runs found, and those before of other runs, by row and seed."""
    runs = {(line["row"], str(line["seed"])) for line in found}
    lines = [line for line in before if (line["row"], line["seed"]) not in runs]
    return sorted([*lines, *found], key=lambda line: (line["row"], int(line["seed"])))


def tables(folder: Path) -> dict[str, str]:
    """File name -> the table made of the CSV files in `folder`."""
    return {f"{name}.md": table(lines) for name in FAMILIES if (lines := read_csv(folder / f"{name}.csv"))}


def table(lines: Sequence[Mapping[str, str]]) -> str:
    """A line per row of `ROWS` that has runs: mean ± deviation over seeds, and what it is above `width`."""
    cells = []
    for row, what in ROWS.items():
        own = {int(line["seed"]): line for line in lines if line["row"] == row}
        if not own:
            continue
        means = [
            statistics.fmean(float(line[kind]) for line in own.values()) for kind in ("flops", "params", "train_cost")
        ]
        cells.append([
            row, what, str(len(own)), summary.plus_minus([float(line["test_top1"]) for line in own.values()]),
            above(lines, row), *map(format_quantity, means), own[min(own)]["widths"],
        ])  # fmt: skip
    return markdown_table(HEADER, cells)


def above(lines: Sequence[Mapping[str, str]], row: str, other: str = "width") -> str:
    """The mean difference in accuracy between two rows and its standard error, over the seeds that both have."""
    if row == other:
        return ""
    found = paired(lines, row, other)
    if not found:
        return ""
    pairs = "" if len(found) == sum(line["row"] == row for line in lines) else f" ({len(found)} pairs)"
    error = f" ± {statistics.stdev(found) / math.sqrt(len(found)):.2f}" if len(found) > 1 else ""
    return f"{statistics.fmean(found):+.2f}{error}{pairs}"


def paired(lines: Sequence[Mapping[str, str]], row: str, other: str) -> list[float]:
    """The differences in test accuracy, in points, between the runs of two rows that share their seed."""
    scores = {(line["row"], line["seed"]): float(line["test_top1"]) for line in lines}
    return [
        score - scores[other, seed] for (name, seed), score in scores.items() if name == row and (other, seed) in scores
    ]


if __name__ == "__main__":
    main()
