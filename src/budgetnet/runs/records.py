"""Writers of the text files in a run directory, which are appended during the run and cut when it is resumed."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from budgetnet.runs.files import append_to, folder_within, replacing

if TYPE_CHECKING:
    import numpy as np


def metric_columns(metrics: Sequence[str], taught: bool = False) -> tuple[str, ...]:
    """The columns of metrics.csv for the names of a task's metrics, of which the first has a training column too.

    taught: whether there is a teacher, whose forward cost is a column of its own.
    """
    first = metrics[0]
    return (
        *("epoch", "phase", "round", "step", "lr", "train_loss", f"train_{first}", "val_loss"),
        *(f"val_{name}" for name in metrics),
        *(f"test_{first}", "params", "flops", "macs", "train_cost_flops", "train_cost_baseline_percent"),
        *(("teacher_cost_flops",) if taught else ()),
        "seconds",
    )


class Records:
    """Writes the files of one run directory, which `RunDirectory` reads. columns: the columns of metrics.csv."""

    def __init__(self, directory: Path, columns: Sequence[str] = ()) -> None:
        self.directory = Path(directory)
        self.columns = columns

    def metrics(self, row: Mapping[str, Any]) -> None:
        """Append the row of an epoch to metrics.csv."""
        self._append_csv("metrics.csv", {name: row.get(name, "") for name in self.columns})

    def row(self, name: str, row: Mapping[str, Any]) -> None:
        """Append a row of the method's own to <name>.csv; its first cell is the epoch."""
        self._append_csv(f"{name}.csv", row)

    def table(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """All of <name>.csv, what a method says of its final network."""
        text = io.StringIO()
        writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_text(self.directory / f"{name}.csv", text.getvalue())

    def growth(self, record: Mapping[str, Any]) -> None:
        """Append a round to growth.jsonl."""
        _append(self.directory / "growth.jsonl", json.dumps(record) + "\n")

    def filters(self, round: int, weights: np.ndarray, selected: np.ndarray) -> None:
        """Write filters/round_NNN.npz: the filters of the first layer before a round.

        weights: (filters, channels, height, width). selected: which of them the method selects, bool (filters,).
        """
        import numpy as np

        folder = folder_within(self.directory / "filters")
        with replacing(folder / f"round_{round:03d}.npz", folder / "round.tmp") as file:
            np.savez_compressed(file, weights=weights, selected=selected)

    def task(self, description: Mapping[str, Any]) -> None:
        """Write task.json: the name and metrics of the task."""
        write_json(self.directory / "task.json", description)

    def about(self, description: Mapping[str, Any]) -> None:
        """Write preprocessing.json: what is done to a picture, the names of the classes, the task."""
        write_json(self.directory / "preprocessing.json", description)

    def confusion(self, counts: np.ndarray, classes: Sequence[str]) -> None:
        """Write confusion.npz: how many test images of class i (rows) were predicted as class j, and their names."""
        import numpy as np

        with replacing(self.directory / "confusion.npz", self.directory / "confusion.tmp") as file:
            np.savez_compressed(file, counts=counts, classes=np.array(classes))

    def examples(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Write examples.npz: a few images of the test set and outputs of the network for them, in drawing order."""
        import numpy as np

        with replacing(self.directory / "examples.npz", self.directory / "examples.tmp") as file:
            np.savez_compressed(file, **arrays)  # type: ignore[arg-type]

    def cut(self, epochs: int) -> None:
        """Remove what was written after `epochs` epochs, which a resumed run writes again; -1 removes everything."""
        for path in (*sorted(self.directory.glob("*.csv")), *self.directory.glob("growth.jsonl")):
            lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
            if path.suffix == ".csv" and not "epoch".startswith("".join(lines[:1])[:5]):
                continue  # not written by this class, even if its header is cut off
            whole = [line for line in lines if line.endswith("\n")]
            if path.name == "growth.jsonl":
                remaining = [line for line in whole if (epoch := _epoch_of_json(line)) is not None and epoch <= epochs]
            else:
                remaining = whole[:1] + [
                    line
                    for line in whole[1:]
                    if (number := line.split(",", 1)[0]).isdecimal() and int(number) <= epochs
                ]
            if remaining != lines:
                write_text(path, "".join(remaining))

    def _append_csv(self, name: str, row: Mapping[str, Any]) -> None:
        path = self.directory / name
        text = io.StringIO()
        writer = csv.DictWriter(text, fieldnames=list(row), lineterminator="\n")
        if not path.exists() or path.stat().st_size == 0:  # a run may be killed before it has written a line
            writer.writeheader()
        writer.writerow({key: repr(value) if isinstance(value, float) else value for key, value in row.items()})
        _append(path, text.getvalue())


def _epoch_of_json(line: str) -> int | None:
    """The epoch of a line of growth.jsonl, or None if the line is damaged."""
    try:
        return int(json.loads(line)["epoch"])
    except (ValueError, KeyError, TypeError):
        return None


def _append(path: Path, text: str) -> None:
    with append_to(path) as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())  # the next checkpoint relies on these lines


def write_text(path: Path, text: str) -> None:
    """Replace a file atomically: readers see either the old text or the new one."""
    with replacing(path) as file:
        file.write(text.encode("utf-8", "surrogateescape"))


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Replace a JSON file atomically."""
    write_text(path, json.dumps(value, indent=2) + "\n")
