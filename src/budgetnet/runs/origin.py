"""origin.json: what a run was begun with beside its configuration, which the same command may find changed.

Its configuration names the user's network, data and code; their content is in other files.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from budgetnet.errors import UsageError
from budgetnet.runs.reading import Unreadable, read_json, read_text
from budgetnet.runs.records import write_json

_FILE = "origin.json"
_LONGEST = 2**24
"""The most bytes of a file that is taken for code."""


def write_origin(directory: Path, facts: Mapping[str, Any], files: Iterable[Path]) -> None:
    """Write what a run begins with. facts: numbers and names that must not change. files: those that hold its code."""
    sources = {str(file): digest for file in files if (digest := _digest(file)) is not None}
    write_json(directory / _FILE, {"facts": dict(facts), "sources": sources})


def check_facts(directory: Path, facts: Mapping[str, Any]) -> None:
    """Raises UsageError if a run that is to be continued was begun with others, naming them.

    A run of an earlier version, which has no origin.json, is not checked.
    """
    before = _read(directory).get("facts", {})
    changed = {name: now for name, now in facts.items() if name in before and before[name] != now}
    differing = [
        f"{_text(now, before[name])} {name} instead of {_text(before[name], now)}" for name, now in changed.items()
    ]
    if differing:
        raise UsageError(
            f"{directory} was begun with another network or other data (now {', '.join(differing)}): "
            "bring them back to continue it, or choose another run.name"
        )


def changed_code(directory: Path) -> str | None:
    """A line about files of a run's code that are there and no longer as they were when it began; None without any."""
    sources = _read(directory).get("sources", {})
    files = [file for file, digest in sources.items() if (now := _digest(Path(file))) is not None and now != digest]
    more = f" and {len(files) - 1} more" if len(files) > 1 else ""
    return f"{files[0]}{more} changed since {directory} began" if files else None


def _read(directory: Path) -> dict[str, dict[str, Any]]:
    try:
        found = read_json(read_text(directory / _FILE))
    except (OSError, Unreadable):
        return {}
    if not isinstance(found, dict) or not all(isinstance(part, dict) for part in found.values()):
        return {}
    return found


def _digest(file: Path) -> str | None:
    """Of a file of code; a run directory of somebody else may name anything."""
    try:
        if not file.is_file() or file.stat().st_size > _LONGEST:
            return None
        return hashlib.sha256(file.read_bytes()).hexdigest()
    except (OSError, ValueError):  # the latter for what is no path
        return None


def _text(value: Any, other: Any) -> str:
    """A number, or how many names and the first of those that are not among the others."""
    if not isinstance(value, list):
        return f"{value:,}" if isinstance(value, int) else str(value)
    own = [name for name in value if not isinstance(other, list) or name not in other]
    return f"{len(value):,}" + (f" (with {own[0]!r})" if own else "")
