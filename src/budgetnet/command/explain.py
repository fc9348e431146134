"""Error messages of one line, and their exit codes."""

from __future__ import annotations

import re
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException, OverrideParseException
from omegaconf.errors import OmegaConfBaseException

from budgetnet.command.compose import CONF
from budgetnet.errors import Interrupted, Preempted, RunError, UsageError, nearest
from budgetnet.processes.launch import launch
from budgetnet.sections import REPLACED

Line = tuple[str, int]
"""The message of an error, and the exit code."""


def explain(error: BaseException) -> int:
    """Print an error as one line on standard error and return the exit code. A bug is printed with its traceback."""
    error = _cause(error) or error
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    if isinstance(error, KeyboardInterrupt):
        return _say(f"interrupted: {error if isinstance(error, Interrupted) else 'no training was under way'}", 130, "")
    if isinstance(error, Preempted):
        return _say(f"stopped {error}", 143, "")
    if launch().rank and isinstance(error, (HydraException, OmegaConfBaseException)):
        return 2  # every process has the same error, and rank 0 prints it
    for kind, line_of in _LINES:
        if isinstance(error, kind) and (line := line_of(error)) is not None:
            return _say(*line)
    traceback.print_exception(error)
    return 1


def _cause(error: BaseException) -> BaseException | None:
    """The error of this project that another one wraps, or None."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, (UsageError, RunError)):
        cause = cause.__cause__
    return cause


def _unknown_file(error: MissingConfigException) -> Line | None:
    if error.missing_cfg_file is None:
        return None
    group, _, name = error.missing_cfg_file.rpartition("/")
    choices = [each for each in error.options or [] if not each.startswith("_")]
    if "." in name and "own" in choices:
        return f"{group}={name} is unknown; for a class of your own write {group}=own {group}._target_={name}", 2
    return f"{group}={name} is unknown{nearest(name, choices) or '; known: ' + ', '.join(choices)}", 2


def _no_override(error: OverrideParseException) -> Line:
    if re.fullmatch(r"[\w.]+", word := str(error.override)):
        return f"{word!r} has no value: write {word}=..., without spaces", 2
    reason = error.message.splitlines()[0].removesuffix(f": {error.override}")
    return f"{error.override!r} is not an override such as optim.lr=0.1 ({reason}); quote special characters", 2


def _unknown_option(error: ConfigCompositionException) -> Line | None:
    found = re.search(r"override '([^']+)'", str(error))
    if found is None:
        return None
    key, known = found[1], known_options()
    section, _, option = key.partition(".")
    if section == "trainer" and option in REPLACED:
        return f"{key} is not an option: use {REPLACED[option]}", 2
    if key in known:
        return f"{key} does not go with the {key.partition('.')[0]} chosen: to add it, write +{key}=", 2
    if same := sorted((each for each in known if each.endswith(f".{key}")), key=_most_changed_first):
        return f"no option is called {key!r}; did you mean {' or '.join(map(repr, same[:3]))}?", 2
    own = any(word.startswith(f"{section}._target_=") for word in sys.argv)
    further = f"; to give it to a class of your own, write +{key}=" if own else ""
    return f"no option is called {key!r}{nearest(key, known)}{further}", 2


def _most_changed_first(option: str) -> tuple[int, str]:
    section = option.partition(".")[0]
    order = ("optim", "dataset", "budget", "growth", "finetune", "trainer")
    return order.index(section) if section in order else len(order), option


def _of_a_sweep(error: Exception) -> Line | None:
    if isinstance(error, ValueError) and str(error) == "No trials are completed yet.":  # the message of Optuna
        return "every trial of the search failed", 1
    if type(error).__module__.startswith(("joblib.", "submitit.")):
        return f"a job of the sweep died: {error}", 1
    return None


def _of_hydra(error: Exception) -> Line | None:
    if _is_ours(error):
        return None
    reason = str(error) or str(traceback.extract_tb(error.__traceback__)[-1].line)
    return f"hydra does not take these overrides ({reason}): {' '.join(sys.argv[1:])}", 2


_LINES: tuple[tuple[type[BaseException], Callable[[Any], Line | None]], ...] = (
    (UsageError, lambda error: (str(error), 2)),
    (RunError, lambda error: (str(error), 1)),
    (MissingConfigException, _unknown_file),
    (OverrideParseException, _no_override),
    (ConfigCompositionException, _unknown_option),
    (HydraException, lambda error: (str(error), 2)),
    (OmegaConfBaseException, lambda error: (str(error), 2)),
    (Exception, _of_a_sweep),
    (Exception, _of_hydra),
)
"""Functions that give the message for an error by its type. The first message is used; without one it is a bug."""


def _is_ours(error: BaseException) -> bool:
    """Whether the error was raised through code of this package, rather than by Hydra composing the configuration."""
    package, entry = str(Path(__file__).parents[1]), str(Path(__file__).with_name("main.py"))
    frames = traceback.extract_tb(error.__traceback__)
    return any(frame.filename.startswith(package) and frame.filename != entry for frame in frames)


@cache
def known_options() -> list[str]:
    """All options and groups of conf/, as they are written on the command line."""
    found = set()
    for file in CONF.rglob("*.yaml"):
        group = ".".join(file.relative_to(CONF).parts[:-1])
        if group in ("experiment", "debug", "recipe"):
            continue
        found |= {group} - {""}
        tree = yaml.load(file.read_text(encoding="utf-8"), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        found |= set(_keys(tree, f"{group}." if group else ""))
    return sorted(
        key for key in found if not key.startswith("hydra") and not {"defaults", "_target_"} & {*key.split(".")}
    )


def _keys(tree: Any, prefix: str) -> Iterable[str]:
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            yield f"{prefix}{key}"
            yield from _keys(value, f"{prefix}{key}.")


def _say(text: str, code: int, prefix: str = "error: ") -> int:
    """Print a message on one line, without control characters and of limited length, and return the exit code."""
    line = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in " ".join(text.split()))
    if prefix and len(line) > 700:
        line = f"{line[:400]} ... {line[-250:]}"
    print(prefix + line, file=sys.stderr)
    return code
