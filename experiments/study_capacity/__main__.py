"""python -m experiments.study_capacity runs      tables and figures of the study out of its run directories"""

from __future__ import annotations

import argparse
import csv
import io
from pathlib import Path

from budgetnet.runs.directory import find_run_directories
from budgetnet.runs.records import write_text

from . import summary

HERE = Path(__file__).parent
ROWS = {
    "path": "cost-aware, s along the path (the default)",
    "balanced": "cost-aware, all s equal",
    "random": "as many layers as have s > 0.5, at random",
    "uniform": "every layer by a ratio of its width",
    "width": "the backbone scaled down, from scratch",
    "scratch": "the widths of `path`, from scratch",
    "norescale_path": "`path`, without rescaling",
}
FAMILIES = ("study", "study_flat", "study_resnet")
DRAWN = ("published λ", "clock, bar 0.9", "path, 50%")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m experiments.study_capacity", description=__doc__)
    parser.add_argument("folder", type=Path, help="holds study, study_flat, study_resnet and study_paths")
    parser.add_argument("--out", type=Path, default=HERE / "results")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    for name in FAMILIES:
        found = find_run_directories([options.folder / name]) if (options.folder / name).is_dir() else []
        if found:
            write_text(options.out / f"{name}.csv", summary.as_csv(summary.RUNS, summary.runs(found)))
            read = summary.as_csv(summary.SATURATION, summary.saturations(found))
            write_text(options.out / f"{name}_saturation.csv", read)
    if (options.folder / "study_paths").is_dir():
        found = find_run_directories([options.folder / "study_paths"])
        write_text(options.out / "readouts.csv", summary.as_csv(summary.READOUTS, summary.readouts(found)))
    for name, text in tables(options.out).items():
        write_text(options.out / name, text)
    for name in FAMILIES:
        if lines := read_csv(options.out / f"{name}.csv"):
            summary.draw_accuracy(lines, ROWS, options.out / f"{name}.png")
    if lines := read_csv(options.out / "readouts.csv"):
        summary.draw_readouts(lines, DRAWN, options.out / "readouts.png")


def tables(folder: Path) -> dict[str, str]:
    """File name -> the table made of the CSV files in `folder`."""
    made = {}
    for name in FAMILIES:
        if lines := read_csv(folder / f"{name}.csv"):
            made[f"{name}.md"] = summary.table(lines, read_csv(folder / f"{name}_saturation.csv"), ROWS)
    if lines := read_csv(folder / "readouts.csv"):
        made["readouts.md"] = summary.readout_table(lines)
    return made


def read_csv(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(path.read_text()))) if path.is_file() else []


if __name__ == "__main__":
    main()
