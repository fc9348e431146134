"""python -m experiments.real_size runs/real_size      add finished runs to the tables of this folder and of its README

Runs whose directories are gone stay; a run of the same name is replaced. Runs that differ in their seeds alone are
those whose names do, such as adenel-0 and adenel-1.
"""

from __future__ import annotations

import argparse
import ast
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from budgetnet.reports.rows import Row, final_row
from budgetnet.reports.tables import as_csv, as_markdown
from budgetnet.runs.directory import find_run_directories
from budgetnet.runs.records import write_text
from budgetnet.tasks import Classification
from experiments.study_capacity.__main__ import read_csv

HERE = Path(__file__).parent


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m experiments.real_size", description=__doc__)
    parser.add_argument("folder", type=Path, help="holds a folder of run directories for each backbone")
    for folder in sorted(path for path in parser.parse_args().folder.iterdir() if path.is_dir()):
        found = [row for row in map(final_row, find_run_directories([folder])) if row.finished]
        if found:
            own = HERE / folder.name
            before = committed(own)
            after = merged(before, found)
            readme = with_table((HERE / "README.md").read_text(encoding="utf-8"), folder.name, before, after)
            own.mkdir(exist_ok=True)
            write_text(own / "runs.csv", as_csv(after))
            write_text(own / "table.md", as_markdown(after))
            write_text(HERE / "README.md", readme)


def with_table(readme: str, backbone: str, before: Sequence[Row], after: Sequence[Row]) -> str:
    """The README with a table in place of another, or with a table more at its end if there was none."""
    if not before:
        return f"{readme}\n{backbone}:\n\n{as_markdown(after)}"
    if as_markdown(before) not in readme:
        raise SystemExit(f"README.md does not hold the table of {backbone}/runs.csv: put it there")
    return readme.replace(as_markdown(before), as_markdown(after))


def committed(folder: Path) -> list[Row]:
    """The rows of runs.csv in a folder, none if there is no such file."""
    return [row_of(line) for line in read_csv(folder / "runs.csv")]


def row_of(line: Mapping[str, str]) -> Row:
    """A row of a table out of its line in runs.csv, with its name without the seed as its settings."""
    cells = {name: value(cell) for name, cell in line.items() if cell}
    return Row(
        **{item.name: cells[item.name] for item in fields(Row) if item.name in cells},
        metrics=Classification.metrics,
        scores={name: cells.get(name) for name in line if name.startswith(("test_", "val_"))},
        budget={name[len("budget_") : -len("_percent")]: cells[name] for name in cells if name.startswith("budget_")},
        settings=row_name(line["name"]),
    )


def value(cell: str) -> Any:
    """A number or a truth value out of its text, or the text itself."""
    try:
        return ast.literal_eval(cell)
    except (ValueError, SyntaxError):
        return cell


def row_name(run: str) -> str:
    """The name of a run without its seed."""
    return run.rpartition("-")[0]


def merged(before: Sequence[Row], found: Sequence[Row]) -> list[Row]:
    """The rows found, and those before of other runs, in the order of their names, which are their settings, too."""
    rows = {row.name: replace(row, settings=row_name(row.name)) for row in (*before, *found)}
    return sorted(rows.values(), key=lambda row: (row.settings, row.seed or 0))


if __name__ == "__main__":
    main()
