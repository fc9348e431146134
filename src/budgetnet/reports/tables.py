"""The final table: a row for each run, and the mean over runs that differ in their seeds alone."""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from budgetnet.costs.budget import format_quantity
from budgetnet.reports.rows import Repetitions, Row, Spread, names_in_tables, repetitions, score_names
from budgetnet.reports.told_apart import told_apart

if TYPE_CHECKING:
    from rich.console import Console

    from budgetnet.tasks import Metric


# Numbers as text, which is empty for unknown numbers ------------------------------------------------------------------

Text = Callable[[float | None], str]


def score_text(metric: Metric) -> Text:
    """A function that formats values of a metric without the unit: two decimals, or four digits if it has no unit."""
    return _decimals if metric.unit else lambda value: "" if value is None else f"{value:#.4g}"


def with_unit(metric: Metric, text: str) -> str:
    """The value of a metric, as text, with its unit if it has one; an empty text stays empty."""
    return f"{text} {metric.unit}".rstrip() if text else ""


def _decimals(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _count(value: float | None) -> str:
    return "" if value is None else f"{value:,.1f}" if value % 1 else f"{value:,.0f}"


def _quantity(value: float | None) -> str:
    return "" if value is None else format_quantity(value)


def spread_text(spread: Spread | None, text: Text) -> str:
    """A spread as text such as "91.21 ± 0.13", or the mean alone if the deviation is 0."""
    if spread is None:
        return ""
    return f"{text(spread.mean)} ± {text(spread.deviation)}" if spread.deviation else text(spread.mean)


# Columns --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Column:
    """A column of the table.

    cell, mean: functions that give the text for a run, and for repetitions.
    number: the name of its number for `Row.number`; empty for a column of text.
    unit: the unit at the end of the heading.
    alone: the heading outside a table, if it differs.
    smallest_first: whether it is first sorted in ascending order.
    optional: whether it is left out if no run has such a number.
    """

    heading: str
    cell: Callable[[Row], str]
    mean: Callable[[Repetitions], str]
    number: str = ""
    unit: str = ""
    alone: str = ""
    smallest_first: bool = False
    optional: bool = False

    @property
    def full_heading(self) -> str:
        """The heading outside a table."""
        return self.alone or self.heading[:1].upper() + self.heading[1:]

    @classmethod
    def of_numbers(cls, title: str, name: str, text: Text, unit: str = "", **options: Any) -> Column:
        """A column of the numbers `name` of rows (see `Row.number`), formatted by `text`."""
        return cls(
            f"{title} {unit}".rstrip(),
            lambda row: text(row.number(name)),
            lambda group: spread_text(group.spread(name), text),
            name,
            unit,
            **options,
        )

    @classmethod
    def of_text(cls, title: str, text: Callable[[Row], str], shared: bool = False) -> Column:
        """A column of text. shared: whether repetitions have the same text."""
        return cls(title, text, lambda group: text(group.rows[0]) if shared else "", smallest_first=True)


def _state(row: Row) -> str:
    if not row.finished:
        return f"unfinished, epoch {row.epochs}"
    return row.stop_reason or "-"


_IDENTITY = (
    Column("Run", lambda row: row.name, lambda _: "mean ± std", smallest_first=True),
    Column.of_text("Method", lambda row: row.method, shared=True),
    Column.of_text("Backbone", lambda row: row.backbone, shared=True),
    Column.of_text("Dataset", lambda row: row.dataset, shared=True),
    Column(
        "Seed",
        lambda row: "" if row.seed is None else str(row.seed),
        lambda group: f"{len(group.finished)} seeds",
        number="seed",
    ),
)
_COSTS = (
    Column.of_numbers("Params", "params", _quantity),
    Column.of_numbers("FLOPs", "flops", _quantity),
    Column.of_numbers("Operations", "sequential_ops", _count, optional=True),
    Column.of_numbers("Latency (µs)", "latency", _count, optional=True),
    Column.of_text("Budget used", lambda row: ", ".join(f"{kind} {used:.1f}%" for kind, used in row.budget.items())),
    Column.of_numbers("Train cost (a)", "train_cost_baseline_percent", _decimals, "%"),
    Column.of_numbers("(b)", "train_cost_final_percent", _decimals, "%", alone="Train cost (b) %"),
    Column.of_text("Stop reason", _state),
)


def _scores(metrics: Sequence[Metric]) -> list[Column]:
    """The columns of the test scores for the metrics of one task."""
    metric, others = metrics[0], [metric for metric in metrics[1:] if metric.in_tables]
    titles = (f"Test {metric.title}", "last epoch", "best test epoch")
    shown = [(metric, title, name) for title, name in zip(titles, score_names(metric), strict=False)]
    shown += [(other, f"Test {other.title}", f"test_{other.name}") for other in others]
    return [
        Column.of_numbers(
            title, name, score_text(of), of.unit, smallest_first=not of.higher_is_better, optional=title == titles[2]
        )
        for of, title, name in shown
    ]  # fmt: skip


def columns(rows: Sequence[Row]) -> list[Column]:
    """The columns of the table of `rows`, with those for the metrics of every task and the optional ones in use."""
    scores = list({column.number: column for row in rows for column in _scores(row.metrics)}.values())
    return [
        column
        for column in (*_IDENTITY, *scores, *_COSTS)
        if not column.optional or any(row.number(column.number) is not None for row in rows)
    ]


def header(rows: Sequence[Row]) -> tuple[str, ...]:
    """The headings of the table of `rows`."""
    return tuple(column.heading for column in columns(rows))


def names_beside(rows: Sequence[Row]) -> list[str]:
    """What the runs of `rows` are called in a table of them."""
    return told_apart([row.name for row in rows], [row.overrides for row in rows])


def cells(rows: Sequence[Row]) -> list[list[str]]:
    """The text of the table: a line for each run, and after repetitions a line with their mean ± deviation."""
    lines, shown = [], columns(rows)[1:]
    called = dict(zip(map(id, rows), names_beside(rows), strict=True))
    for group in repetitions(rows):
        lines += [[called[id(row)], *(column.cell(row) for column in shown)] for row in group.rows]
        if len(group.finished) > 1:
            lines.append([_IDENTITY[0].mean(group), *(column.mean(group) for column in shown)])
    return lines


def markdown_table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A table in Markdown, with bars and what could be markup of HTML in cells escaped."""
    ruled = [header, ["---"] * len(header), *lines]
    escaped = [[plain(cell).replace("|", "\\|") for cell in line] for line in ruled]
    return "\n".join("| " + " | ".join(line) + " |" for line in escaped) + "\n"


def plain(text: str) -> str:
    """A value of a run's files for Markdown: one line, which holds no HTML."""
    return " ".join(text.splitlines()).replace("<", "&lt;")


def as_markdown(rows: Sequence[Row]) -> str:
    """The table of `rows` in Markdown."""
    return markdown_table(header(rows), cells(rows))


def as_csv(rows: Sequence[Row]) -> str:
    """All numbers of `rows` with all digits, a line for each run, with columns for the scores of all tasks.

    Optional costs have a column only if some run has them.
    """
    lines = [row.line() for row in rows]
    absent = {column.number for column in _COSTS if column.optional} - {
        name for line in lines for name, value in line.items() if value is not None
    }
    names = [name for line in lines for name in line if name not in absent]
    scores = [name for row in rows for name in names_in_tables(row.metrics)]
    before = names[: names.index(scores[0])]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys([*before, *scores, *names])), lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: value for name, value in line.items() if name not in absent} for line in lines)
    return text.getvalue()


def print_table(rows: Sequence[Row], console: Console | None = None) -> None:
    """Print the table of `rows` (at least one). A column with equal cells for all runs is moved to the title."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    lines, shown = cells(rows), columns(rows)
    same = [number for number in range(len(_IDENTITY)) if len({line[number] for line in lines}) == 1]
    table = Table(title=", ".join(f"{shown[number].heading.lower()} {lines[0][number]}" for number in same) or None)
    for number, column in enumerate(shown):
        if number not in same:
            table.add_column(
                column.heading,
                justify="right" if column.number and column not in _IDENTITY else "left",
                overflow="fold",
            )
    for line in lines:
        table.add_row(*(Text(cell) for number, cell in enumerate(line) if number not in same))
    if console is None:
        # a pipe would have 80 columns; a terminal has its own width
        console = Console(width=None if sys.stdout.isatty() else 200)
    console.print(table)
