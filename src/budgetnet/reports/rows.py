"""The final numbers of runs, and of runs that differ in their seeds alone."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, NamedTuple

from budgetnet.reports.told_apart import overrides_of
from budgetnet.runs.directory import RunDirectory
from budgetnet.sections import affecting

if TYPE_CHECKING:
    from budgetnet.tasks import Metric


@dataclass(frozen=True)
class Row:
    """The final numbers of a run, or the current ones of an unfinished run. None stands for unknown numbers.

    metrics: the metrics of the task, of which the first selects the network.
    scores: values by name: test_<metric> of the epoch that validation selects, test_<metric>_last of the last epoch,
    val_<metric>, and test_<metric>_best of the first metric at the best epoch of the final network, which selects
    nothing and is known if the test set was evaluated after every epoch.
    params, flops, macs, latency: parameters, FLOPs and multiply-accumulates of one image, microseconds for one image.
    train_cost_baseline_percent: (a), in percent of the full backbone for the epochs of the baseline.
    train_cost_final_percent: (b), in percent of the final network for the epochs of the baseline.
    seconds, growth_seconds: the time of the whole run, and of its rounds.
    budget: the percentage used, by kind.
    settings: the configuration without seed and directory, as text, which is equal for repetitions.
    overrides: those of the command that a table has no column for.
    """

    name: str
    method: str
    backbone: str
    dataset: str
    seed: int | None
    finished: bool
    epochs: int
    metrics: tuple[Metric, ...]
    scores: Mapping[str, float | None] = field(default_factory=dict)
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
    budget: Mapping[str, float] = field(default_factory=dict)
    settings: str = field(default="", repr=False)
    overrides: tuple[str, ...] = ()
    directory: str = ""
    hardware: str = ""
    versions: str = ""

    @property
    def metric(self) -> Metric:
        """The metric that selected the network."""
        return self.metrics[0]

    def number(self, name: str) -> float | None:
        """A score or a cost by its name in runs.csv, or None if it is unknown or of another task."""
        number: float | None = self.scores[name] if name in self.scores else getattr(self, name, None)
        return number

    def line(self) -> dict[str, Any]:
        """The cells of the row in runs.csv by column. Each kind of budget has a column with its percentage used."""
        cells: dict[str, Any] = {}
        for item in fields(self):
            if item.name == "scores":
                cells |= {name: self.number(name) for name in names_in_tables(self.metrics)}
            elif item.name not in ("metrics", "budget", "settings", "overrides"):
                cells[item.name] = getattr(self, item.name)
        return cells | {f"budget_{kind}_percent": percent for kind, percent in self.budget.items()}


def score_names(metric: Metric) -> tuple[str, ...]:
    """The names of the scores of a metric, as in summary.json."""
    test = f"test_{metric.name}"
    return (test, f"{test}_last", f"{test}_best", f"val_{metric.name}")


def names_in_tables(metrics: Sequence[Metric]) -> list[str]:
    """The names of all scores of the first metric, and of the test scores of the other metrics in tables."""
    others = [f"test_{metric.name}" for metric in metrics[1:] if metric.in_tables]
    return [*score_names(metrics[0]), *others]


class Spread(NamedTuple):
    """Mean and sample standard deviation (n - 1; 0 for a single run)."""

    mean: float
    deviation: float


@dataclass(frozen=True)
class Repetitions:
    """Runs that differ in their seeds alone."""

    rows: tuple[Row, ...]

    @property
    def finished(self) -> tuple[Row, ...]:
        """The finished runs."""
        return tuple(row for row in self.rows if row.finished)

    def spread(self, name: str) -> Spread | None:
        """The mean and deviation of a number (`Row.number`) over the finished runs; None if one of them lacks it."""
        values = [value for row in self.finished if (value := row.number(name)) is not None]
        if not values or len(values) < len(self.finished):
            return None
        if not all(map(math.isfinite, values)):
            return Spread(statistics.fmean(values), math.nan)
        return Spread(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0)


def final_row(run: RunDirectory) -> Row:
    """The row of one run, from summary.json or, for an unfinished run, from metrics.csv.

    The validation scores of an unfinished run are those of its best epoch. Raises UsageError for damaged files.
    """
    known: dict[str, Any] = {
        "name": run.path.resolve().name,
        "seed": run.config.get("seed"),
        "epochs": len(run.metrics),
    }
    metrics, scores = run.task_metrics, {}
    if run.summary is not None:
        known |= {item.name: run.summary[item.name] for item in fields(Row) if item.name in run.summary}
        known["budget"] = {kind: entry["percent"] for kind, entry in (run.summary.get("budget") or {}).items()}
        scores = {name: run.summary.get(name) for metric in metrics for name in score_names(metric)}
    elif run.metrics:
        now = ("params", "flops", "macs", "train_cost_flops", "train_cost_baseline_percent")
        known |= {name: run.metrics[-1].get(name) for name in now}
        known["seconds"] = sum(value or 0.0 for value in run.column("seconds"))
        selecting = f"val_{metrics[0].name}"
        validated = [epoch for epoch in run.metrics if epoch.get(selecting) is not None]
        best = max(validated, key=lambda epoch: metrics[0].gain(epoch[selecting]), default={})
        scores = {f"val_{metric.name}": best.get(f"val_{metric.name}") for metric in metrics}
    known |= {name: run.option(name) for name in ("method", "backbone", "dataset")}
    known |= {name: listed((run.summary or {}).get(name)) for name in ("hardware", "versions")}
    known["overrides"] = overrides_of((run.summary or {}).get("command"))
    known |= {"finished": run.summary is not None, "settings": settings(run.config), "directory": str(run.path)}
    return Row(**known, metrics=metrics, scores=scores)


def listed(facts: Mapping[str, object] | None) -> str:
    """Facts of summary.json on one line, such as "torch 2.13.0, python 3.11.7"."""
    return ", ".join(f"{name} {value}" for name, value in (facts or {}).items())


def settings(config: Mapping[str, Any]) -> str:
    """A configuration as text without options in which repetitions may differ: seeds, names and directories."""

    def strip(value: object) -> object:
        if isinstance(value, dict):
            return {str(key): strip(item) for key, item in value.items() if key not in ("seed", "test_every_epoch")}
        return [strip(item) for item in value] if isinstance(value, list) else value

    compared = {key: value for key, value in affecting(config).items() if key != "task"}  # it follows from the dataset
    return json.dumps(strip(compared), sort_keys=True, default=str)


def repetitions(rows: Sequence[Row]) -> list[Repetitions]:
    """The rows in groups of equal settings and metrics, in order of appearance."""
    groups: dict[object, list[Row]] = {}
    for row in rows:
        groups.setdefault((row.settings, row.metrics), []).append(row)
    return [Repetitions(tuple(group)) for group in groups.values()]


def metrics_of(rows: Sequence[Row]) -> list[Metric]:
    """The metrics that selected the networks, without duplicates."""
    return list({row.metric.name: row.metric for row in rows}.values())
