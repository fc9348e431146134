"""Rows of the papers' tables, as a folder of experiments/ holds them: rows.csv and results.csv."""

from __future__ import annotations

import csv
import io
import re
import shlex
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path

from budgetnet.errors import UsageError

FULL, SHORT = "full", "short run"
"""How long a run was: as the paper's, or a few epochs and images."""

MEASURES = (
    *("test_top1_last", "test_top1", "test_top1_best", "test_top5_last", "test_top5", "params", "flops"),
    *("train_cost_flops", "train_cost_baseline_percent", "train_cost_final_percent"),
)
RESULT_COLUMNS = ("row", "length", "seed", *MEASURES, "hardware", "versions")
"""Of results.csv: accuracies in percent, of the last epoch, of the one that validation selects, and (best) of the one
that the test set would. A table of sequential operations has them too, after the FLOPs."""

Result = dict[str, str]
"""A line of results.csv by column, as text; the README is made of this text alone."""

PSNR = ("test_psnr", "test_psnr_DIV2K_valid_HR")
"""Columns of a table of restored images beside these: on BSD68 and on DIV2K, in dB."""

_NUMBER = r"([-+]?\d+(\.\d+)?(e[-+]?\d+)?)?"  # or nothing


@dataclass(frozen=True)
class PaperRow:
    """A row of the paper: what it prints, as text, and how it is repeated here.

    Columns of rows.csv that have a default here may be missing there. params_M in millions, flops_G in 10⁹
    multiply-accumulates, sequential_ops on so many machines. counted: what flops_G counts beside them. psnr: in dB,
    on two test sets, "24.9/26.7", in place of top1. exits: how many a network has; then top1, params_M and flops_G
    have a number for each, between slashes. cost: what train_cost_percent is relative to: "a" the
    full backbone, "b" the final network, "neither". overrides: empty for a method that does not exist here; `{name}` in
    them stands for the run directory of another row. short: further overrides, for minutes instead of days.
    """

    row: str
    method: str
    backbone: str
    dataset: str
    budget: str
    top1: str
    top5: str = field(default="", kw_only=True)
    params_M: str = field(default="", kw_only=True)
    flops_G: str = field(default="", kw_only=True)
    counted: str = field(default="", kw_only=True)
    psnr: str = field(default="", kw_only=True)
    sequential_ops: str = field(default="", kw_only=True)
    machines: str = field(default="", kw_only=True)
    exits: str = field(default="", kw_only=True)
    train_cost_percent: str = field(default="", kw_only=True)
    cost: str = field(default="", kw_only=True)
    second_hand: str = field(default="", kw_only=True)
    overrides: str
    short: str

    @property
    def source(self) -> str | None:
        """The row whose run this one starts from."""
        named = re.search(r"\{([^{}]+)\}", self.overrides)
        return named[1] if named else None

    def all_overrides(self, length: str) -> list[str]:
        """The overrides of a run of this row; the run it starts from is the one of the same seed and length."""
        overrides = shlex.split(self.overrides) + (shlex.split(self.short) if length == SHORT else [])
        if self.source is None:
            return overrides
        directory = "${run.root}/${run.experiment}/" + run_name(self.source, length)
        return [override.replace(f"{{{self.source}}}", directory) for override in overrides]


def top1_of_exits(exits: str) -> tuple[str, ...]:
    """The columns of results.csv, and entries of summary.json, with the accuracy of every exit in the last epoch."""
    return tuple(f"test_exit{number}_top1_last" for number in range(1, 1 + int(exits or 0)))


def run_name(row: str, length: str) -> str:
    """What the run of a row is called (run.name)."""
    return f"{row}-short-${{seed}}" if length == SHORT else f"{row}-${{seed}}"


def read_rows(path: Path) -> dict[str, PaperRow]:
    """rows.csv by row, in the paper's order. Raises UsageError where it is missing or damaged."""
    columns = fields(PaperRow)
    optional = {column.name for column in columns if column.kw_only}
    lines = _read(path, [column.name for column in columns], optional)
    return {line["row"]: PaperRow(**line) for line in lines}


def read_results(path: Path, columns: Sequence[str], rows: Collection[str]) -> list[Result]:
    """results.csv, with these columns, of these rows. Raises UsageError where it is missing or damaged."""
    lines = _read(path, columns)
    measures = [name for name in columns if name not in ("row", "length", "seed", "hardware", "versions")]
    for number, line in enumerate(lines, 2):
        numbers = all(re.fullmatch(_NUMBER, line[name]) for name in measures)
        if line["row"] not in rows or line["length"] not in (FULL, SHORT) or not numbers:
            raise UsageError(f"{path}, line {number}: expected a row of rows.csv and numbers; restore it")
    return lines


def as_csv(results: Iterable[Result], columns: Sequence[str]) -> str:
    """The text of results.csv."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(results)
    return text.getvalue()


def _read(path: Path, columns: Sequence[str], optional: Collection[str] = ()) -> list[dict[str, str]]:
    try:
        with open(path, newline="") as file:
            reader = csv.DictReader(file, strict=True)
            lines = list(reader)
    except (OSError, ValueError, csv.Error) as error:
        raise UsageError(f"{path} cannot be read ({error}): restore it") from error
    header = reader.fieldnames or ()
    columns = [name for name in columns if name not in optional or name in header]
    if list(header) != columns:
        raise UsageError(f"{path}: expected the columns {','.join(columns)}; restore it")
    for number, line in enumerate(lines, 2):
        if None in line or None in line.values():
            raise UsageError(f"{path}, line {number}: expected {len(columns)} cells; restore it")
    return lines
