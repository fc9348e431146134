"""RunDirectory: what one run left on disk, finished or not."""

from __future__ import annotations

import csv
import json
import zipfile
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np

from budgetnet.errors import UsageError

if TYPE_CHECKING:
    from budgetnet.tasks import Metric

SUMMARY_FORMAT = 1

Record = dict[str, Any]
Line = TypeVar("Line")


class Sizes(NamedTuple):
    """Widths of the groups, or depths of the stages where blocks are added, by name in network order.

    seed: of what training began with. now: of the final network, or so far. full: of the full backbone; empty where it
    is not known.
    """

    seed: Mapping[str, int]
    now: Mapping[str, int]
    full: Mapping[str, int]


class RunDirectory:
    """The files of one run, each read when it is first asked for.

    A run that was killed has no summary and is read as far as it got; a last line that was cut off while being
    written is dropped. Raises UsageError for a path that is not a run directory, and, on reading, for a file that
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
        """config.yaml: the resolved configuration."""
        from omegaconf import OmegaConf
        from omegaconf.errors import OmegaConfBaseException

        yaml: Any = import_module("yaml")  # it has no type hints
        try:
            config = OmegaConf.to_container(OmegaConf.load(self.path / "config.yaml"), resolve=True)
        except (OSError, yaml.YAMLError, OmegaConfBaseException) as error:
            raise _damaged(self.path / "config.yaml", " ".join(str(error).split())) from error
        if not isinstance(config, dict):
            raise _damaged(self.path / "config.yaml", "it holds no keys")
        return {str(key): value for key, value in config.items()}

    @cached_property
    def task_metrics(self) -> tuple[Metric, ...]:
        """task.json: the metrics of what the network was trained for; the first selected it.

        A run of a version that wrote no such file is a classification, or a segmentation that pixel accuracy selected.
        """
        from budgetnet.tasks import Classification, Metric  # torchmetrics takes a second to load
        from budgetnet.tasks.classification import TOP1
        from budgetnet.tasks.segmentation import MIOU

        path = self.path / "task.json"
        if not path.exists():
            return (TOP1, MIOU) if any("val_miou" in row for row in self.metrics) else Classification.metrics
        try:
            metrics = tuple(Metric(**entry) for entry in json.loads(path.read_text())["metrics"])
        except (ValueError, KeyError, TypeError) as error:
            raise _damaged(path, f"expected the metrics of a task ({error})") from error
        if not metrics:
            raise _damaged(path, "a task has at least one metric")
        return metrics

    @cached_property
    def metrics(self) -> list[Record]:
        """metrics.csv: a row per epoch, oldest first. Numbers are numbers, an empty cell is None."""
        return _read_csv(self.path / "metrics.csv")

    @cached_property
    def saturation(self) -> list[Record]:
        """saturation.csv: a row per epoch of the growing phase: epoch, round, and s (0..1) of every growable group."""
        return _read_csv(self.path / "saturation.csv")

    @cached_property
    def edges(self) -> list[Record]:
        """edges.csv: a row per epoch of a search for edges: epoch, decided, costs, the probability of every edge."""
        return _read_csv(self.path / "edges.csv")

    @cached_property
    def rounds(self) -> list[Record]:
        """growth.jsonl: an object per growth round."""
        return _read_json_lines(self.path / "growth.jsonl")

    @cached_property
    def filters(self) -> list[tuple[int, np.ndarray, np.ndarray]]:
        """(round, the first layer's filters (filters, channels, height, width), which were selected) by round."""
        found = []
        for record in self.rounds:
            path = self.path / "filters" / f"round_{record['round']:03d}.npz"
            if path.exists():
                with np.load(path, allow_pickle=False) as arrays:
                    found.append((int(record["round"]), arrays["weights"], arrays["selected"]))
        return found

    @cached_property
    def examples(self) -> dict[str, np.ndarray]:
        """examples.npz: a few test images and what was made of them, by name, in the order they are to be drawn.

        Pictures (N, C, H, W) of numbers from 0 to 1, class maps (N, H, W) of integers. Empty where the task shows none.
        """
        path = self.path / "examples.npz"
        if not path.exists():
            return {}
        try:
            with np.load(path, allow_pickle=False) as arrays:
                return {name: arrays[name] for name in arrays.files}
        except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
            raise _damaged(path, str(error)) from error

    @cached_property
    def summary(self) -> Record | None:
        """summary.json; None while the run is unfinished."""
        path = self.path / "summary.json"
        if not path.exists():
            return None
        try:
            summary = json.loads(path.read_text())
        except ValueError as error:
            raise _damaged(path, str(error)) from error
        if not isinstance(summary, dict) or summary.get("format") != SUMMARY_FORMAT:
            raise _damaged(path, f"expected a summary of format {SUMMARY_FORMAT}")
        return summary

    @property
    def done(self) -> bool:
        """Whether the run wrote everything: done.json is its last file."""
        return (self.path / "done.json").exists()

    def column(self, name: str) -> list[Any]:
        """One column of metrics.csv; None where a row has no such cell."""
        return [row.get(name) for row in self.metrics]

    def choice(self, name: str) -> str:
        """The option chosen for `name` ("method", "backbone", "dataset"), by the summary or the configuration."""
        if self.summary is not None and name in self.summary:
            return str(self.summary[name])
        chosen = self.config.get(name, "")
        return str(chosen.get("name", chosen.get("_target_", "")) if isinstance(chosen, dict) else chosen)

    @property
    def grew(self) -> bool:
        """Whether there is a growing phase, which saturation is measured in."""
        return bool(self.saturation) or any(row["phase"] == "grow" for row in self.metrics)

    def widths(self) -> list[tuple[int, dict[str, int]]]:
        """(epochs finished, widths from then on): the seed network at 0, then every round that changed widths.

        Groups stand in network order; those of blocks that are not there yet have width 0. Empty for an unfinished run
        that has not grown yet.
        """
        changed = [record for record in self.rounds if record["plan"]]
        if changed:
            before = dict(changed[0]["widths"])
            before.update({name: old for name, (old, _) in changed[0]["plan"].items()})
        elif self.summary is not None:
            before = self.summary["widths"]
        elif self.rounds:
            before = self.rounds[0]["widths"]
        else:
            return []
        path = [(0, before)] + [(record["epoch"], record["widths"]) for record in changed]
        return [(epoch, {name: widths.get(name, 0) for name in path[-1][1]}) for epoch, widths in path]

    def depths(self) -> list[tuple[int, dict[str, int]]]:
        """(epochs finished, blocks in each stage from then on), as `widths`; empty for a run that adds no blocks."""
        found = [(record["epoch"], record["depths"]) for record in self.rounds if "depths" in record]
        seed = [(0, {stage: before for stage, (before, _) in depths.items()}) for _, depths in found[:1]]
        return seed + [(epoch, {stage: after for stage, (_, after) in depths.items()}) for epoch, depths in found]

    def path_of_sizes(self) -> list[tuple[int, dict[str, int]]]:
        """`depths` where blocks are added, else `widths`: what tells how the network changed."""
        return self.depths() or self.widths()

    def sizes(self) -> Sizes | None:
        """Where `path_of_sizes` began and where it ended, beside the full backbone; None where it is empty."""
        path, summary, kind = self.path_of_sizes(), self.summary or {}, "depths" if self.depths() else "widths"
        if not path:
            return None
        return Sizes(summary.get(f"seed_{kind}") or path[0][1], path[-1][1], summary.get(f"full_{kind}") or {})

    def __repr__(self) -> str:
        state = "done" if self.done else "unfinished"
        return f"RunDirectory({str(self.path)!r}, {len(self.metrics)} epochs, {state})"


def is_run_directory(path: Path) -> bool:
    """Whether a run has written to `path`: it holds config.yaml and metrics.csv."""
    return (path / "config.yaml").is_file() and (path / "metrics.csv").is_file()


def find_run_directories(paths: Iterable[str | Path]) -> list[RunDirectory]:
    """Every run directory at or below `paths`, each once, sorted by path.

    Raises UsageError for a path that does not exist or holds none.
    """
    found: dict[Path, Path] = {}
    for path in map(Path, paths):
        below = [path] if is_run_directory(path) else [config.parent for config in path.rglob("config.yaml")]
        runs = [run for run in below if is_run_directory(run)]
        if not runs:
            missing = "there is no such directory" if not path.is_dir() else "expected config.yaml and metrics.csv"
            raise UsageError(f"{path} holds no run directory: {missing}; give one that python -m src.run wrote")
        found.update({run.resolve(): run for run in runs})
    return [RunDirectory(run) for run in sorted(found.values())]


def _damaged(path: Path, problem: str) -> UsageError:
    return UsageError(f"{path} is damaged: {problem}; restore the file or repeat the run")


def _read_csv(path: Path) -> list[Record]:
    if not path.exists():
        return []

    def parse(line: str) -> list[str]:
        cells = next(csv.reader([line]))
        if len(cells) != len(header):
            raise ValueError(f"{len(cells)} cells under {len(header)} names")
        return cells

    text = path.read_text(errors="replace")
    first, _, rest = text.partition("\n")
    header = next(csv.reader([first]), [])
    # A row without its line end may have lost digits of its last number.
    complete = rest[: rest.rfind("\n") + 1]
    rows = _parse_lines(path, complete, parse, first_line=2)
    return [{name: _number(cell) for name, cell in zip(header, row, strict=True)} for row in rows]


def _read_json_lines(path: Path) -> list[Record]:
    def parse(line: str) -> Record:
        record = json.loads(line)
        if not isinstance(record, dict):
            raise ValueError("expected a JSON object")
        return record

    return _parse_lines(path, path.read_text(errors="replace"), parse) if path.exists() else []


def _parse_lines(path: Path, text: str, parse: Callable[[str], Line], first_line: int = 1) -> list[Line]:
    """Every line parsed; a last line that cannot be is dropped."""
    lines = [(number, line) for number, line in enumerate(text.splitlines(), first_line) if line.strip()]
    parsed = []
    for number, line in lines:
        try:
            parsed.append(parse(line))
        except (ValueError, csv.Error) as error:
            if number != lines[-1][0]:
                raise _damaged(path, f"line {number}: {error}") from error
    return parsed


def _number(cell: str) -> int | float | str | None:
    if not cell:
        return None
    for kind in (int, float):
        try:
            return kind(cell)
        except ValueError:
            continue
    return cell
