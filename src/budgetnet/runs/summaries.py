"""Widths and edges from the summary.json of another run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from budgetnet.channels.untrained import UNBOUNDED
from budgetnet.errors import UsageError
from budgetnet.runs.reading import read_json, read_text


def widths_of_run(path: str) -> Mapping[str, int]:
    """The final widths of another run. path: its directory or its summary.json.

    Raises UsageError if there is no finished run.
    """
    widths: dict[str, int] = _summary_of(path)["widths"]
    return widths


def edges_of_run(path: str) -> list[str] | None:
    """The edges that another run has selected, or None if it is not a search for edges. path: as in `widths_of_run`.

    Raises UsageError if there is no finished run.
    """
    edges: list[str] | None = _summary_of(path).get("edges")
    return edges


def _summary_of(path: str) -> dict[str, Any]:
    """The summary of a finished run. Raises UsageError if there is none."""
    try:
        file = Path(path)
        file = file / "summary.json" if file.is_dir() else file
        if not file.is_file():
            raise FileNotFoundError(f"{file} is not a file")
        summary: dict[str, Any] = dict(read_json(read_text(file)))
        widths = dict(summary["widths"])
        if not all(type(width) is int and 0 < width <= UNBOUNDED for width in widths.values()):
            raise ValueError("its widths are not numbers of channels")
        if not all(isinstance(edge, str) for edge in summary.get("edges", [])):
            raise ValueError("its edges are not names")
    except (OSError, TypeError, ValueError, KeyError) as error:
        raise UsageError(f"method.widths_from={path}: no finished run's summary.json there ({error})") from error
    return summary
