"""RunDirectory: reads the files of a run, finished or not."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from budgetnet.errors import UsageError
from budgetnet.runs.parsing import Record, blamed_on, damaged, read_arrays, read_csv, read_json_lines
from budgetnet.runs.reading import (
    FURTHER_IN_ROUND,
    ROUND,
    SUMMARY,
    Unreadable,
    a_count,
    a_score,
    a_text,
    checked,
    or_none,
    read_json,
    read_text,
    read_yaml,
)

if TYPE_CHECKING:
    from budgetnet.tasks import Metric

SUMMARY_FORMAT = 1


class Sizes(NamedTuple):
    """Widths of the groups, or depths of the stages if blocks are added, by name in network order.

    seed: sizes of the network that training began with. now: current or final sizes. full: sizes of the full backbone,
    empty if unknown.
    """

    seed: Mapping[str, int]
    now: Mapping[str, int]
    full: Mapping[str, int]


class RunDirectory:
    """The files of one run, each of which is read on first access.

    An unfinished run has no summary, and its other files are read as far as they go. An incomplete last line is
    dropped. Raises UsageError for a path that is not a run directory. Every property raises UsageError for a file that
    is damaged elsewhere than in its last line.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not is_run_directory(self.path):
            raise UsageError(
                f"{self.path} is not a run directory: expected config.yaml and metrics.csv in it; "
                f"give a directory that python -m src.run wrote"
            )

    @cached_property
    def config(self) -> Record:
        """config.yaml: the resolved configuration. Raises UsageError if the file is damaged."""
        path = self.path / "config.yaml"
        with blamed_on(path):
            config = read_yaml(path)
            checked(config, {"seed": or_none(a_count)})
            return config

    @cached_property
    def task_metrics(self) -> tuple[Metric, ...]:
        """task.json: the metrics of the task, of which the first selected the network.

        A run of a version without this file is a classification, or a segmentation that was selected by pixel accuracy.
        Raises UsageError if the file is damaged.
        """
        from budgetnet.tasks import Classification, Metric  # torchmetrics takes a second to load
        from budgetnet.tasks.classification import TOP1
        from budgetnet.tasks.segmentation import MIOU

        path = self.path / "task.json"
        if not path.exists():
            return (TOP1, MIOU) if any("val_miou" in row for row in self.metrics) else Classification.metrics
        with blamed_on(path):
            entries = read_json(read_text(path))
            try:
                metrics = tuple(Metric(**entry) for entry in entries["metrics"])
            except (KeyError, TypeError) as error:
                raise Unreadable(f"expected the metrics of a task ({error})") from error
            for metric in metrics:
                texts, truths = (metric.name, metric.title, metric.unit), (metric.higher_is_better, metric.in_tables)
                if not all(map(a_text, texts)) or not all(isinstance(truth, bool) for truth in truths):
                    raise Unreadable(f"{metric} is no metric of a task")
        if not metrics:
            raise damaged(path, "a task has at least one metric")
        return metrics

    @cached_property
    def metrics(self) -> list[Record]:
        """metrics.csv: a row per epoch in order. Numbers are parsed, and an empty cell is None.

        Raises UsageError if the file is damaged.
        """
        return read_csv(self.path / "metrics.csv", required=("epoch", "phase"), texts=("phase",))

    @cached_property
    def saturation(self) -> list[Record]:
        """saturation.csv: epoch, round and the saturations (0..1) of all groups that may grow, for each growing epoch.

        Raises UsageError if the file is damaged.
        """
        return read_csv(self.path / "saturation.csv", required=("epoch", "round"))

    @cached_property
    def edges(self) -> list[Record]:
        """edges.csv: epoch, fraction decided, costs, all edge probabilities, and learned weights of the costs.

        It has a row for each epoch of a search for edges.

        Raises UsageError if the file is damaged.
        """
        path = self.path / "edges.csv"
        rows = read_csv(path, required=("epoch", "decided"))
        for kind in [name.removeprefix("full_") for row in rows[:1] for name in row if name.startswith("full_")]:
            if not {f"sampled_{kind}", f"pruned_{kind}"} <= rows[0].keys():
                raise damaged(path, f"it has no column sampled_{kind} or pruned_{kind}")
        return rows

    @property
    def leaves_early(self) -> bool:
        """Whether it is a finished run of a method with exits."""
        return bool((self.summary or {}).get("exits"))

    def table(self, name: str) -> list[Record]:
        """The rows of a file of the method's own, <name>.csv; none if there is no such file.

        Raises UsageError if the file is damaged.
        """
        return read_csv(self.path / f"{name}.csv")

    @cached_property
    def rounds(self) -> list[Record]:
        """growth.jsonl: an object per round. Raises UsageError if the file is damaged."""
        path = self.path / "growth.jsonl"
        records = read_json_lines(path)
        for number, record in enumerate(records, 1):
            with blamed_on(path, f"round {number}: "):
                checked(record, ROUND, required=True)
                checked(record, FURTHER_IN_ROUND)
        return records

    @cached_property
    def filters(self) -> list[tuple[int, np.ndarray, np.ndarray]]:
        """For each round (round, filters of the first layer (filters, channels, height, width), which are selected)."""
        found = []
        for record in self.rounds:
            path = self.path / "filters" / f"round_{record['round']:03d}.npz"
            if path.exists():
                arrays = read_arrays(path)
                if not {"weights", "selected"} <= arrays.keys():
                    raise damaged(path, "it holds no filters")
                found.append((int(record["round"]), arrays["weights"], arrays["selected"]))
        return found

    @cached_property
    def examples(self) -> dict[str, np.ndarray]:
        """examples.npz: a few test images and outputs of the network for them, by name in drawing order.

        Pictures are (N, C, H, W) in 0..1, class maps (N, H, W) of integers. Empty if the task has no examples.
        Raises UsageError if the file is damaged.
        """
        path = self.path / "examples.npz"
        return read_arrays(path) if path.exists() else {}

    @cached_property
    def confusion(self) -> tuple[np.ndarray, list[str]] | None:
        """confusion.npz: how many test images of class i (rows) were predicted as class j, (K, K), and their names.

        None if the task has no such counts. Raises UsageError if the file is damaged.
        """
        path = self.path / "confusion.npz"
        if not path.exists():
            return None
        arrays = read_arrays(path)
        counts, names = arrays.get("counts", np.zeros(0)), arrays.get("classes", np.zeros(0))
        if counts.dtype.kind not in "iu" or counts.shape != (len(names), len(names)):
            raise damaged(path, "it holds no counts of pairs of classes")
        return counts, [str(name) for name in names]

    @cached_property
    def summary(self) -> Record | None:
        """summary.json, or None while the run is unfinished. Raises UsageError if the file is damaged."""
        path = self.path / "summary.json"
        if not path.exists():
            return None
        with blamed_on(path):
            summary = read_json(read_text(path))
            if not isinstance(summary, dict) or summary.get("format") != SUMMARY_FORMAT:
                raise Unreadable(f"expected a summary of format {SUMMARY_FORMAT}")
            scores = {name: a_score for name in summary if name.startswith(("test_", "val_"))}
            checked(summary, {**SUMMARY, **scores})
        return {str(name): value for name, value in summary.items()}

    def fact(self, name: str) -> Any:
        """An entry that the summary of every finished run has. Raises UsageError if it is missing."""
        summary = self.summary or {}
        if summary.get(name) is None:
            raise damaged(self.path / "summary.json", f"it has no {name!r}")
        return summary[name]

    @property
    def done(self) -> bool:
        """Whether the run is trained and evaluated: done.json is written after summary.json."""
        return (self.path / "done.json").exists()

    def column(self, name: str) -> list[Any]:
        """One column of metrics.csv, with None in rows without such a cell."""
        return [row.get(name) for row in self.metrics]

    def option(self, name: str) -> str:
        """The name of the "method", "backbone" or "dataset" of the run, from the summary or the configuration."""
        if self.summary is not None and name in self.summary:
            return str(self.summary[name])
        chosen = self.config.get(name, "")
        return str(chosen.get("name", chosen.get("_target_", "")) if isinstance(chosen, dict) else chosen)

    @property
    def grew(self) -> bool:
        """Whether the run has a growing phase."""
        return bool(self.saturation) or any(row["phase"] == "grow" for row in self.metrics)

    def widths(self) -> list[tuple[int, dict[str, int]]]:
        """(finished epochs, widths from then on) for the seed network, at 0, and for every round that changed widths.

        Groups are in network order; those of blocks that do not exist yet have width 0. Empty for an unfinished run
        before its first round.
        """
        changed = [record for record in self.rounds if record["plan"]]
        if changed:
            before = dict(changed[0]["widths"])
            before.update({name: old for name, (old, _) in changed[0]["plan"].items()})
        elif self.summary is not None:
            before = self.fact("widths")
        elif self.rounds:
            before = self.rounds[0]["widths"]
        else:
            return []
        path = [(0, before)] + [(record["epoch"], record["widths"]) for record in changed]
        return [(epoch, {name: widths.get(name, 0) for name in path[-1][1]}) for epoch, widths in path]

    def depths(self) -> list[tuple[int, dict[str, int]]]:
        """(finished epochs, number of blocks of each stage from then on), as `widths`; empty if no blocks are added."""
        found = [(record["epoch"], record["depths"]) for record in self.rounds if "depths" in record]
        seed = [(0, {stage: before for stage, (before, _) in depths.items()}) for _, depths in found[:1]]
        return seed + [(epoch, {stage: after for stage, (_, after) in depths.items()}) for epoch, depths in found]

    def path_of_sizes(self) -> list[tuple[int, dict[str, int]]]:
        """`depths` if blocks are added, else `widths`."""
        return self.depths() or self.widths()

    def sizes(self) -> Sizes | None:
        """The first and last sizes of `path_of_sizes` and those of the full backbone, or None if it is empty."""
        path, summary, kind = self.path_of_sizes(), self.summary or {}, "depths" if self.depths() else "widths"
        if not path:
            return None
        return Sizes(summary.get(f"seed_{kind}") or path[0][1], path[-1][1], summary.get(f"full_{kind}") or {})

    def __repr__(self) -> str:
        state = "done" if self.done else "unfinished"
        return f"RunDirectory({str(self.path)!r}, {len(self.metrics)} epochs, {state})"


def is_run_directory(path: Path) -> bool:
    """Whether `path` is the directory of a run, with config.yaml and metrics.csv."""
    return (path / "config.yaml").is_file() and (path / "metrics.csv").is_file()


def find_run_directories(paths: Iterable[str | Path]) -> list[RunDirectory]:
    """All run directories at or below `paths`, without duplicates, sorted by path.

    Raises UsageError for a path that does not exist or contains none.
    """
    found: dict[Path, Path] = {}
    for path in map(Path, paths):
        below = [path] if is_run_directory(path) else [config.parent for config in path.rglob("config.yaml")]
        for run in below:
            if (run / "summary.json").is_file() and not (run / "metrics.csv").is_file():
                raise damaged(run / "metrics.csv", "it is lost")
        runs = [run for run in below if is_run_directory(run)]
        if not runs:
            missing = "there is no such directory" if not path.is_dir() else "expected config.yaml and metrics.csv"
            raise UsageError(f"{path} holds no run directory: {missing}; give one that python -m src.run wrote")
        found.update({run.resolve(): run for run in runs})
    return [RunDirectory(run) for run in sorted(found.values())]
