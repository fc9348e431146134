"""What went wrong beside a run's training: one line each on standard error, and in summary.json."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from budgetnet.errors import in_one_line


class Warnings:
    """The warnings of a run, which cost neither its result nor its exit code. lines: in the order in which they came.

    They are part of a checkpoint, so that the summary of a continued run has those from before, too.
    """

    def __init__(self) -> None:
        self.lines: list[str] = []

    def add(self, line: str) -> None:
        """Print a warning and keep it, unless it is there already."""
        if line not in self.lines:
            self.lines.append(line)
            print(f"warning: {line}", file=sys.stderr, flush=True)

    def restore(self, lines: Iterable[str]) -> None:
        """Put the warnings of a checkpoint before those since the start of this process."""
        self.lines[:0] = [line for line in lines if line not in self.lines]

    @contextmanager
    def instead_of_failing(self, step: str, advice: str = "") -> Iterator[None]:
        """A context in which an error becomes a warning. step: what is tried, such as "the report"."""
        try:
            yield
        except Exception as error:
            self.add(f"{step} failed ({in_one_line(error)}){advice and f': {advice}'}")
