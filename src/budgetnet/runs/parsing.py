"""The tables, lines and arrays in the files of a run, and the errors that name a damaged file."""

from __future__ import annotations

import csv
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from budgetnet.errors import UsageError
from budgetnet.runs.reading import Unreadable, a_number, a_score, read_json, read_text

_MOST_BYTES = 2**30
"""The most memory for the arrays of one file."""

Record = dict[str, Any]
Line = TypeVar("Line")


def damaged(path: Path, problem: str) -> UsageError:
    """The error for a file that is damaged."""
    return UsageError(f"{path} is damaged: {problem}; restore the file or repeat the run")


@contextmanager
def blamed_on(path: Path, place: str = "") -> Iterator[None]:
    """A context in which what cannot be read is an error that names the file. Raises UsageError."""
    try:
        yield
    except (OSError, Unreadable) as error:
        raise damaged(path, f"{place}{error}") from error


def read_csv(path: Path, required: Sequence[str] = (), texts: Sequence[str] = ()) -> list[Record]:
    """The rows of a table of numbers, none if there is no such file; an incomplete last line is dropped.

    required: columns that every row has a value in. texts: the columns of text. Raises UsageError if it is damaged.
    """
    if not path.exists():
        return []

    def parse(line: str) -> Record:
        cells = next(csv.reader([line]))
        if len(cells) != len(header):
            raise ValueError(f"{len(cells)} cells under {len(header)} names")
        row = {name: cell or None if name in texts else _number(cell) for name, cell in zip(header, cells, strict=True)}
        for name, value in row.items():
            a_kind = a_score if name.startswith(("train_", "val_", "test_")) else a_number
            if value is not None and name not in texts and not a_kind(value):
                raise ValueError(f"{name!r} is {cells[header.index(name)][:40]!r}, expected a number")
        for name in required:
            if row.get(name) is None:
                raise ValueError(f"it has no {name!r}")
        return row

    with blamed_on(path):
        text = read_text(path)
    first, _, rest = text.partition("\n")
    header = next(csv.reader([first]), [])
    # without its line end, the last number of a row may have lost digits
    complete = rest[: rest.rfind("\n") + 1]
    return _parse_lines(path, complete, parse, first_line=2)


def read_json_lines(path: Path) -> list[Record]:
    """The JSON object of each line, none if there is no such file; an incomplete last line is dropped.

    Raises UsageError if it is damaged.
    """

    def parse(line: str) -> Record:
        record = read_json(line)
        if not isinstance(record, dict):
            raise ValueError("expected a JSON object")
        return record

    if not path.exists():
        return []
    with blamed_on(path):
        return _parse_lines(path, read_text(path), parse)


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a file by name. Raises UsageError if it is damaged, or would fill the memory."""
    try:
        with zipfile.ZipFile(path) as packed:
            if sum(item.file_size for item in packed.infolist()) > _MOST_BYTES:
                raise Unreadable(f"its arrays take more than {_MOST_BYTES} bytes, which no run writes")
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise damaged(path, " ".join(str(error).split())) from error


def _parse_lines(path: Path, text: str, parse: Callable[[str], Line], first_line: int = 1) -> list[Line]:
    """Parse every line, and drop the last one if it cannot be parsed.

    Raises UsageError for any other line that cannot be parsed.
    """
    lines = [(number, line) for number, line in enumerate(text.splitlines(), first_line) if line.strip()]
    parsed = []
    for number, line in lines:
        try:
            parsed.append(parse(line))
        except (ValueError, csv.Error) as error:
            if number != lines[-1][0]:
                raise damaged(path, f"line {number}: {error}") from error
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
