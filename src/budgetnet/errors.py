"""Errors with a message of one line that a user can act on."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UsageError(ValueError):
    """A request that cannot be carried out.

    The message is one line: the thing, its value, what was expected, and what to do. At the command line it becomes
    exit code 2.
    """


class RunError(RuntimeError):
    """A valid run that failed. The message is one line; at the command line it becomes exit code 1."""


def nearest(name: str, options: Iterable[str]) -> str:
    """A suffix for an error message that names the closest options.

    >>> nearest("resnet21", ["resnet20", "vgg16"])
    "; did you mean 'resnet20'?"
    """
    options = sorted(options)
    close = difflib.get_close_matches(name, options, n=3, cutoff=0.6)
    if close:
        return "; did you mean " + " or ".join(repr(option) for option in close) + "?"
    return f"; known: {', '.join(options)}" if 0 < len(options) <= 20 else ""


def in_one_line(error: BaseException, longest: int = 300) -> str:
    """What an error says on one line: its own message, or, of an error that is not this project's, its type too."""
    text = " ".join(str(error).split())
    if not isinstance(error, (UsageError, RunError)):
        text = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return text if len(text) <= longest else f"{text[:longest]} ..."


class Interrupted(KeyboardInterrupt):
    """Ctrl-C, with a line that says how to continue; at the command line it becomes exit code 130."""


class Preempted(BaseException):
    """SIGTERM or SIGUSR1, with a line that says how to continue; at the command line it becomes exit code 143."""
