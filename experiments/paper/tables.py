"""The papers' tables, row by row beside what has been run here: experiments/*table*/.

A folder holds rows.csv (the paper's numbers, and the overrides that repeat a row), results.csv (a line per finished
run that did) and README.md, where the two stand side by side between two markers.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from budgetnet.command.compose import composed
from budgetnet.command.configuration import checked
from budgetnet.errors import UsageError, nearest
from budgetnet.reports.rows import listed, settings
from budgetnet.runs.directory import RunDirectory, is_run_directory
from budgetnet.runs.records import write_text
from experiments.paper.markdown import alone, beside
from experiments.paper.rows import (
    FULL,
    MEASURES,
    PSNR,
    RESULT_COLUMNS,
    SHORT,
    PaperRow,
    Result,
    as_csv,
    read_results,
    read_rows,
    run_name,
    top1_of_exits,
)

EXPERIMENTS = Path(__file__).parents[1]
BEGIN, END = "<!-- the table, by python -m src.report -->", "<!-- end of the table -->"

_SOURCES = ("widths_from", "schedule_from")
_GROUPS = ("method", "backbone", "dataset")


@dataclass(frozen=True)
class PaperTable:
    """One of the paper's tables and its folder.

    Raises UsageError, on reading, for files that are missing or damaged.
    """

    folder: Path

    @property
    def name(self) -> str:
        """What it is called on the command line, such as table1 (table1_slimming) or bsn_table5."""
        named = re.match(r"([a-z]+_)?table\d+", self.folder.name)
        return named[0] if named else self.folder.name

    @property
    def experiment(self) -> str:
        """Of its rows, in conf/experiment: table1, or bsn or l2w, which the tables of those papers share."""
        return self.name.partition("_table")[0]

    @property
    def result_columns(self) -> tuple[str, ...]:
        """Of its results.csv."""
        after = RESULT_COLUMNS.index("flops") + 1
        own: tuple[str, ...] = ("sequential_ops",) if any(row.machines for row in self.rows.values()) else ()
        own = PSNR if any(row.psnr for row in self.rows.values()) else own
        exits = top1_of_exits(next(iter(self.rows.values())).exits)
        return (*RESULT_COLUMNS[:after], *own, *RESULT_COLUMNS[after:-2], *exits, *RESULT_COLUMNS[-2:])

    @cached_property
    def rows(self) -> dict[str, PaperRow]:
        """rows.csv by row, in the paper's order."""
        return read_rows(self.folder / "rows.csv")

    @property
    def results(self) -> list[Result]:
        """results.csv."""
        path = self.folder / "results.csv"
        return read_results(path, self.result_columns, self.rows) if path.exists() else []

    def commands(self, length: str = FULL) -> list[str]:
        """A command per row that can be run, those that others start from first.

        At full length it is a sweep over seeds. The same command continues what was interrupted and skips what is done.
        """
        can_run = [row for row in self.rows.values() if row.overrides]
        lines: dict[str, str] = {}
        for row in sorted(can_run, key=lambda row: row.source is not None):
            overrides = row.all_overrides(length)
            words = [] if length == SHORT else ["-m"]
            words += [f"experiment={self.experiment}", *overrides, f"run.name={run_name(row.row, length)}"]
            command = shlex.join(["python", "-m", "src.run", *words])
            lines.setdefault(" ".join(overrides), command)  # the paper shows some networks twice
        return list(lines.values())

    def matches(self, runs: Sequence[RunDirectory]) -> Iterator[tuple[PaperRow, str, RunDirectory]]:
        """Every row, its length, and the finished runs that repeat it: those of the same resolved configuration.

        What may differ is the seed, how the run is called, and where it is computed and kept. A run that starts from
        another must have started from one that repeats the row in question, still at its place.
        """
        finished = [run for run in runs if run.done and run.summary is not None]
        found = [(run, configuration) for run in finished if (configuration := _comparable(run.config)) is not None]
        for row in self.rows.values():
            alike = [(run, its) for run, its in found if _chosen(row) <= set(_choices(run.config))]
            for length in (FULL, SHORT) if alike else ():
                expected, start = self._configuration(row, length), None
                if row.source is not None:
                    start = self._configuration(self.rows[row.source], length)
                for run, its in alike:
                    if its == expected and _start(run.config) == start:
                        yield row, length, run

    def _configuration(self, row: PaperRow, length: str) -> str | None:
        return _comparable(composed([f"experiment={self.experiment}", *row.all_overrides(length)]))

    def collect(self, runs: Sequence[RunDirectory]) -> int:
        """Add the runs that repeat a row to results.csv; how many lines they gave.

        A run replaces what the file has of its row, length and seed; of two such runs the first counts.
        Raises UsageError if no finished run repeats a row.
        """
        results = {(line["row"], line["length"], line["seed"]): line for line in self.results}
        new: dict[tuple[str, str, str], Result] = {}
        for row, length, run in self.matches(runs):
            line = _result(row, length, run)
            new.setdefault((line["row"], length, line["seed"]), line)
        if not new:
            raise UsageError(
                f"none of {len(runs)} runs is a finished one of a row of {self.name}: for the commands of its rows, "
                f"python -m src.report --table {self.name} --commands"
            )
        order = {name: number for number, name in enumerate(self.rows)}
        merged = sorted(
            (results | new).values(), key=lambda line: (order[line["row"]], line["length"], line["seed"].zfill(20))
        )
        write_text(self.folder / "results.csv", as_csv(merged, self.result_columns))
        return len(new)

    def markdown(self) -> str:
        """What stands between the markers: the paper's numbers beside ours, then the short runs, if there are any."""
        rows, results = list(self.rows.values()), self.results
        text = beside(rows, [line for line in results if line["length"] == FULL])
        short = [line for line in results if line["length"] == SHORT]
        if short:
            text += "\nShort runs: they show that the rows can be run, and nothing about the methods.\n\n"
            text += alone(rows, short, SHORT)
        hardware = sorted({f"{line['hardware']}; {line['versions']}" for line in results})
        return text + "".join(f"\nRun on {each}.\n" for each in hardware)

    def readme(self) -> str:
        """README.md with its table made anew. Raises UsageError where the markers are missing."""
        path = self.folder / "README.md"
        text = path.read_text() if path.exists() else ""
        before, begin, rest = text.partition(BEGIN)
        _, end, after = rest.partition(END)
        if not begin or not end:
            raise UsageError(f"{path}: expected the lines '{BEGIN}' and '{END}', with the table between them")
        return f"{before}{BEGIN}\n{self.markdown()}{END}{after}"

    def regenerate(self) -> None:
        """Write README.md with its table made anew from rows.csv and results.csv."""
        write_text(self.folder / "README.md", self.readme())


def paper_tables() -> dict[str, PaperTable]:
    """Every table of experiments/ by name."""
    tables = [PaperTable(path.parent) for path in sorted(EXPERIMENTS.glob("*/rows.csv"))]
    return {table.name: table for table in tables}


def find_table(name: str) -> PaperTable:
    """The table called "table1", or by its folder "table1_slimming". Raises UsageError for any other name."""
    tables = paper_tables()
    known = tables | {table.folder.name: table for table in tables.values()}
    if name not in known:
        raise UsageError(f"--table {name!r} is unknown{nearest(name, tables)}")
    return known[name]


def _comparable(config: Mapping[str, Any]) -> str | None:
    """A configuration as text, without seeds, names, paths and places; None if it is none of this project's."""
    if not all(isinstance(config.get(name), Mapping) for name in (*_GROUPS, "trainer")):
        return None
    try:
        complete = checked(config)
    except UsageError:
        return None
    sources = {key: complete["method"].get(key) is not None for key in _SOURCES}
    taught = {"teacher": complete["distill"]["teacher"] is not None}
    return settings({**complete, "method": {**complete["method"], **sources}, "distill": taught, "threads": None})


def _start(config: Mapping[str, Any]) -> str | None:
    """The configuration of the finished run that a run took its widths from, or that taught it; None if there is none.

    A run that is gone leaves the empty text, which is no configuration.
    """
    taught_by = config.get("distill", {}).get("teacher")
    named = [*(config["method"].get(key) for key in _SOURCES), taught_by]
    path = next((Path(each) for each in named if each), None)
    if path is None:
        return None
    path = path.parent if path.name == "summary.json" else path
    if not is_run_directory(path) or not (run := RunDirectory(path)).done:
        return ""
    return _comparable(run.config) or ""


def _choices(config: Mapping[str, Any]) -> list[str]:
    return [f"{name}={config[name].get('name')}" for name in _GROUPS]


def _chosen(row: PaperRow) -> set[str]:
    """What a run must have chosen to be worth comparing with a row."""
    return {override for override in shlex.split(row.overrides) if override.partition("=")[0] in _GROUPS}


def _result(row: PaperRow, length: str, run: RunDirectory) -> Result:
    summary = run.summary or {}
    measures = (*MEASURES, *(PSNR if row.psnr else ()), *top1_of_exits(row.exits))
    numbers = {name: "" if summary.get(name) is None else str(summary[name]) for name in measures}
    if row.machines:
        counted = (run.config["budget"].get("machines") or 1) == int(row.machines)  # a fixed network's: on one
        numbers["sequential_ops"] = str(summary["sequential_ops"]) if counted and "sequential_ops" in summary else ""
    where = {name: listed(summary[name]) for name in ("hardware", "versions")}
    identity = {"row": row.row, "length": length, "seed": str(summary["seed"])}
    return {**identity, **numbers, **where}
