"""The figures as CSV, a file for each hardware, and the table made of all of them."""

from __future__ import annotations

import csv
import os
import platform
import re
import statistics
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from budgetnet.reports.tables import markdown_table

from .measures import MEASURES, Measure

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Figure:
    """A row on one hardware: the median, the extremes and the number of the repeats."""

    row: str
    unit: str
    median: float
    low: float
    high: float
    n: int
    device: str
    hardware: str
    threads: int
    torch_version: str
    python_version: str

    @property
    def column(self) -> str:
        """What figures of one column of the table have in common."""
        threads = f"{self.threads} CPU thread{'s' * (self.threads > 1)}"
        return f"{self.hardware}; {threads}, torch {self.torch_version}, Python {self.python_version}"

    @staticmethod
    def of(measure: Measure, values: list[float], device: torch.device, threads: int) -> Figure:
        median, low, high = (float(f"{value:.4g}") for value in (statistics.median(values), min(values), max(values)))
        where = device.type, hardware(device), threads, torch.__version__, platform.python_version()
        return Figure(measure.name, measure.unit, median, low, high, len(values), *where)


def hardware(device: torch.device) -> str:
    """The name of the GPU, or of the CPU with its cores."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    name, file = platform.machine(), Path("/proc/cpuinfo")
    if file.exists() and (model := re.search(r"model name\s*: (.*)", file.read_text())):
        name = model[1]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{name}, {cores} cores"


def _file(hardware: str) -> Path:
    return RESULTS / (re.sub(r"[^a-z0-9]+", "-", hardware.lower()).strip("-") + ".csv")


def read(file: Path) -> list[Figure]:
    """The figures of one hardware; none if there is no such file."""
    if not file.exists():
        return []
    with open(file, newline="") as lines:
        rows = list(csv.DictReader(lines))
    kinds = {"str": str, "int": int, "float": float}
    return [Figure(**{field.name: kinds[str(field.type)](row[field.name]) for field in fields(Figure)}) for row in rows]


def add(figure: Figure) -> None:
    """Put a figure in the place of that of its row and column. Rows that are no longer measured are dropped."""
    file = _file(figure.hardware)
    figures = {(old.row, old.column): old for old in read(file)} | {(figure.row, figure.column): figure}
    order = {measure.name: number for number, measure in enumerate(MEASURES)}
    kept = sorted((key for key in figures if key[0] in order), key=lambda key: (key[1], order[key[0]]))
    RESULTS.mkdir(exist_ok=True)
    with open(file, "w", newline="") as lines:
        table = csv.DictWriter(lines, [field.name for field in fields(Figure)], lineterminator="\n")
        table.writeheader()
        table.writerows(asdict(figures[key]) for key in kept)


def show() -> None:
    """Print the table of all hardware so far, and keep it in results/table.md. GPUs have a column from the start."""
    figures = [figure for file in sorted(RESULTS.glob("*.csv")) for figure in read(file)]
    columns: list[tuple[str, str]] = []
    for kind in ("cpu", "cuda"):
        names = dict.fromkeys(figure.column for figure in figures if figure.device == kind)
        columns += [(kind, name) for name in names] or [(kind, kind.upper().replace("CUDA", "GPU"))]
    header, previous = ["measured"], ""
    for kind, name in columns:
        header += ([f"target, {'GPU' if kind == 'cuda' else 'CPU'}"] if kind != previous else []) + [name]
        previous = kind
    lines = []
    for measure in MEASURES:
        line, previous = [measure.name], ""
        for kind, name in columns:
            line += [measure.target_text(kind)] if kind != previous else []
            previous = kind
            found = [figure for figure in figures if (figure.row, figure.column) == (measure.name, name)]
            line.append(_text(measure, found[0]) if found else "" if measure.target(kind) is None else "not measured")
        lines.append(line)
    RESULTS.joinpath("table.md").write_text(markdown_table(header, lines))
    table = Table(*header, show_lines=True)
    for line in lines:
        table.add_row(*line)
    Console(width=None if Console().is_terminal else 180).print(table)


def _text(measure: Measure, figure: Figure) -> str:
    unit = "" if figure.unit == "ratio" else f" {figure.unit}"
    spread = f" ({figure.low:.3g} to {figure.high:.3g}, n = {figure.n})" if figure.n > 1 else ""
    return f"{figure.median:.4g}{unit}{spread}" + ("" if measure.met(figure.median, figure.device) else ", missed")
