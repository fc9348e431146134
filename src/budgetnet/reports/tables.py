"""The final table: one row per run, and a mean over seeds where runs differ in nothing else."""

from __future__ import annotations

import csv
import io
import json
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any, NamedTuple

from budgetnet.costs.budget import format_quantity
from budgetnet.runs.directory import RunDirectory
from budgetnet.sections import affecting

if TYPE_CHECKING:
    from rich.console import Console


@dataclass(frozen=True)
class Row:
    """The final numbers of one run, or of as many epochs as an unfinished one got through.

    Accuracies in percent; FLOPs are multiply-accumulates of one image. None: not known (yet).
    train_cost_baseline_percent (a): against the full backbone for the baseline's epochs. train_cost_final_percent
    (b): against the final network for the same epochs. test_top1_best: the highest of the final network's epochs,
    which no validation selects; None where the test set was not read after every epoch. Of a segmentation, accuracies
    are of pixels, and test_miou is the mean intersection over union. budget: used percent by kind.
    settings: the configuration without seed and directory as text; runs that share it are repetitions. seconds: of all
    epochs, growth_seconds: of the rounds between them. hardware, versions: as text.
    """

    name: str
    method: str
    backbone: str
    dataset: str
    seed: int | None
    finished: bool
    epochs: int
    test_top1: float | None = None
    test_top1_last: float | None = None
    test_top1_best: float | None = None
    val_top1: float | None = None
    test_miou: float | None = None
    sequential_ops: int | None = None
    latency: int | None = None
    params: int | None = None
    flops: int | None = None
    macs: int | None = None
    train_cost_flops: int | None = None
    train_cost_baseline_percent: float | None = None
    train_cost_final_percent: float | None = None
    stop_reason: str | None = None
    rounds: int | None = None
    seconds: float | None = None
    growth_seconds: float | None = None
    budget: dict[str, float] = field(default_factory=dict)
    settings: str = field(default="", repr=False)
    directory: str = ""
    hardware: str = ""
    versions: str = ""


class Spread(NamedTuple):
    """Mean and sample standard deviation (n - 1; 0 for a single run)."""

    mean: float
    deviation: float


@dataclass(frozen=True)
class Repetitions:
    """Runs that differ in nothing but their seed."""

    rows: tuple[Row, ...]

    @property
    def finished(self) -> tuple[Row, ...]:
        """Those that count."""
        return tuple(row for row in self.rows if row.finished)

    def spread(self, measure: str) -> Spread | None:
        """Mean and deviation of one numeric field of Row over the finished runs; None where one of them lacks it."""
        values = [getattr(row, measure) for row in self.finished]
        if not values or any(value is None for value in values):
            return None
        return Spread(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0)


def final_row(run: RunDirectory) -> Row:
    """The row of one run: summary.json's numbers, or the last line of metrics.csv where the run is unfinished."""
    known: dict[str, Any] = {
        "name": run.path.resolve().name,
        "seed": run.config.get("seed"),
        "epochs": len(run.metrics),
    }
    if run.summary is not None:
        known |= {item.name: run.summary[item.name] for item in fields(Row) if item.name in run.summary}
        known["budget"] = {kind: entry["percent"] for kind, entry in (run.summary.get("budget") or {}).items()}
    elif run.metrics:
        now = ("params", "flops", "macs", "train_cost_flops", "train_cost_baseline_percent")
        known |= {name: run.metrics[-1].get(name) for name in now}
        known["val_top1"] = max((value for value in run.column("val_top1") if value is not None), default=None)
        known["seconds"] = sum(value or 0.0 for value in run.column("seconds"))
    known |= {name: run.choice(name) for name in ("method", "backbone", "dataset")}
    known |= {name: listed((run.summary or {}).get(name)) for name in ("hardware", "versions")}
    known |= {"finished": run.summary is not None, "settings": settings(run.config), "directory": str(run.path)}
    return Row(**known)


def listed(facts: Mapping[str, object] | None) -> str:
    """Facts of summary.json in one line: "torch 2.13.0, python 3.11.7"."""
    return ", ".join(f"{name} {value}" for name, value in (facts or {}).items())


def settings(config: Mapping[str, Any]) -> str:
    """A configuration as text, without what repetitions of one run may differ in: seeds, names, what is kept where."""

    def strip(value: object) -> object:
        if isinstance(value, dict):
            return {str(key): strip(item) for key, item in value.items() if key not in ("seed", "test_every_epoch")}
        return [strip(item) for item in value] if isinstance(value, list) else value

    compared = {key: value for key, value in affecting(config).items() if key != "task"}  # the dataset says it
    return json.dumps(strip(compared), sort_keys=True, default=str)


def repetitions(rows: Sequence[Row]) -> list[Repetitions]:
    """The rows by settings, in order of appearance; a run without a repetition stands alone."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.settings, []).append(row)
    return [Repetitions(tuple(group)) for group in groups.values()]


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _count(value: float | None) -> str:
    return "" if value is None else f"{value:,.1f}" if value % 1 else f"{value:,.0f}"


def _quantity(value: float | None) -> str:
    return "" if value is None else format_quantity(value)


_IDENTITY: dict[str, Callable[[Row], str]] = {
    "Run": lambda row: row.name,
    "Method": lambda row: row.method,
    "Backbone": lambda row: row.backbone,
    "Dataset": lambda row: row.dataset,
    "Seed": lambda row: "" if row.seed is None else str(row.seed),
}
_BEST = "best test epoch %"
_SOMETIMES = {"Test mIoU %": "Params", "Operations": "Budget used", "Latency (µs)": "Budget used"}
"""Columns of tables in which some run has such a number, and what they stand before."""
NUMBERS: dict[str, tuple[str, Callable[[float | None], str]]] = {
    "Test top-1 %": ("test_top1", _percent),
    "last epoch %": ("test_top1_last", _percent),
    _BEST: ("test_top1_best", _percent),
    "Params": ("params", _quantity),
    "FLOPs": ("flops", _quantity),
    "Train cost (a) %": ("train_cost_baseline_percent", _percent),
    "(b) %": ("train_cost_final_percent", _percent),
    "Test mIoU %": ("test_miou", _percent),
    "Operations": ("sequential_ops", _count),
    "Latency (µs)": ("latency", _count),
}


def _state(row: Row) -> str:
    if not row.finished:
        return f"unfinished, epoch {row.epochs}"
    return row.stop_reason or "-"


def _budget_used(row: Row) -> str:
    return ", ".join(f"{kind} {percent:.1f}%" for kind, percent in row.budget.items())


HEADER = (*_IDENTITY, *list(NUMBERS)[:5], "Budget used", *list(NUMBERS)[5:7], "Stop reason")
"""Every column that a table may have, but those of _SOMETIMES."""


def header(rows: Sequence[Row]) -> tuple[str, ...]:
    """The columns of the table of `rows`: the best test epoch and _SOMETIMES only where some run has such numbers."""
    measured = any(row.test_top1_best is not None for row in rows)
    names = [name for name in HEADER if measured or name != _BEST]
    for name, place in _SOMETIMES.items():
        if any(getattr(row, NUMBERS[name][0]) is not None for row in rows):
            names.insert(names.index(place), name)
    return tuple(names)


def cells(rows: Sequence[Row], columns: Sequence[str] | None = None) -> list[list[str]]:
    """The table's text under `columns`: a line per run, repetitions together, their mean ± deviation after them.

    columns: some of HEADER; by default `header(rows)`.
    """
    lines, columns = [], columns or header(rows)
    for group in repetitions(rows):
        for row in group.rows:
            line = {name: text(row) for name, text in _IDENTITY.items()}
            line |= {name: text(getattr(row, key)) for name, (key, text) in NUMBERS.items()}
            line |= {"Budget used": _budget_used(row), "Stop reason": _state(row)}
            lines.append([line[name] for name in columns])
        if len(group.finished) > 1:
            line = {name: text(group.rows[0]) for name, text in _IDENTITY.items()}
            line |= {"Run": "mean ± std", "Seed": f"{len(group.finished)} seeds"}
            line |= {name: _spread_text(group.spread(key), text) for name, (key, text) in NUMBERS.items()}
            lines.append([line.get(name, "") for name in columns])
    return lines


def _spread_text(spread: Spread | None, text: Callable[[float | None], str]) -> str:
    if spread is None:
        return ""
    return f"{text(spread.mean)} ± {text(spread.deviation)}" if spread.deviation else text(spread.mean)


def markdown_table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table; bars inside cells are escaped."""
    ruled = [header, ["---"] * len(header), *lines]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in ruled) + "\n"


def as_markdown(rows: Sequence[Row]) -> str:
    """The table of `rows` in Markdown."""
    return markdown_table(header(rows), cells(rows))


def as_csv(rows: Sequence[Row]) -> str:
    """Every number of `rows` in full, a line per run; a column per kind of budget holds its used percent.

    What only some tables have (_SOMETIMES) is a column only where some run has it.
    """
    lines, sometimes = [], [NUMBERS[name][0] for name in _SOMETIMES]
    left_out = {name for name in sometimes if all(getattr(row, name) is None for row in rows)} | {"budget", "settings"}
    for row in rows:
        line = {name: value for name, value in asdict(row).items() if name not in left_out}
        lines.append(line | {f"budget_{kind}_percent": percent for kind, percent in row.budget.items()})
    text = io.StringIO()
    header = dict.fromkeys(name for line in lines for name in line)
    writer = csv.DictWriter(text, list(header), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


def print_table(rows: Sequence[Row], console: Console | None = None) -> None:
    """Print the table of `rows` (at least one). Columns that say the same of every run stand once, in the title."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    lines, names = cells(rows), header(rows)
    told = {names[number] for number in range(len(names)) if len({line[number] for line in lines}) > 1}
    once = [(name, cell) for name, cell in zip(names, lines[0], strict=True) if name in _IDENTITY and name not in told]
    shown = [number for number, name in enumerate(names) if (name, lines[0][number]) not in once]
    table = Table(title=", ".join(f"{name.lower()} {cell}" for name, cell in once) or None)
    for number in shown:
        table.add_column(names[number], justify="right" if names[number] in NUMBERS else "left", overflow="fold")
    for line in lines:
        table.add_row(*(Text(line[number]) for number in shown))
    if console is None:
        # Nobody reads a pipe at 80 columns; a terminal keeps its own width.
        console = Console(width=None if sys.stdout.isatty() else 200)
    console.print(table)
