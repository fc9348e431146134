"""Errors in one line, and the exit code that goes with them."""

from __future__ import annotations

import re
import sys
import traceback
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from budgetnet.command.compose import CONF
from budgetnet.errors import Interrupted, Preempted, RunError, UsageError, nearest
from budgetnet.processes.environment import started


def explain(error: BaseException) -> int:
    """Print an error as one line on standard error and return the exit code; a bug keeps its traceback."""
    from hydra.errors import (
        ConfigCompositionException,
        HydraException,
        MissingConfigException,
        OverrideParseException,
    )
    from omegaconf.errors import OmegaConfBaseException

    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, (UsageError, RunError)):
        cause = cause.__cause__
    if cause is not None:
        return _say(str(cause), 2 if isinstance(cause, UsageError) else 1)
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    if isinstance(error, KeyboardInterrupt):
        text = str(error) if isinstance(error, Interrupted) else "nothing was started"
        return _say(f"interrupted: {text}", 130, "")
    if isinstance(error, Preempted):
        return _say(f"stopped {error}", 143, "")
    if started().rank and isinstance(error, (HydraException, OmegaConfBaseException)):
        return 2  # every process finds the same, and rank 0 says it
    if isinstance(error, MissingConfigException) and error.missing_cfg_file is not None:
        group, _, name = error.missing_cfg_file.rpartition("/")
        return _say(f"{group}={name} is unknown{nearest(name, error.options or [])}", 2)
    if isinstance(error, OverrideParseException):
        reason = error.message.splitlines()[0].removesuffix(f": {error.override}")
        return _say(
            f"{error.override!r} is not an override such as optim.lr=0.1 ({reason}); quote special characters", 2
        )
    if isinstance(error, ConfigCompositionException) and (key := re.search(r"override '([^']+)'", str(error))):
        if key[1] in (known := known_options()):
            group = key[1].partition(".")[0]
            return _say(f"{key[1]} does not go with the {group} chosen: to add it, write +{key[1]}=", 2)
        return _say(f"no option is called {key[1]!r}{nearest(key[1], known)}", 2)
    if isinstance(error, (HydraException, OmegaConfBaseException)):
        return _say(str(error), 2)
    if isinstance(error, ValueError) and str(error) == "No trials are completed yet.":
        return _say("every trial of the search failed", 1)  # what Optuna says then
    if type(error).__module__.startswith(("joblib.", "submitit.")):
        return _say(f"a job of the sweep died: {error}", 1)
    if isinstance(error, Exception) and not _is_ours(error):
        reason = str(error) or str(traceback.extract_tb(error.__traceback__)[-1].line)
        return _say(f"hydra does not take these overrides ({reason}): {' '.join(sys.argv[1:])}", 2)
    traceback.print_exception(error)
    return 1


def _is_ours(error: BaseException) -> bool:
    """Whether code of this package was running: if not, it was hydra putting the configuration together."""
    package = str(Path(__file__).parents[1])
    return any(frame.filename.startswith(package) for frame in traceback.extract_tb(error.__traceback__))


def known_options() -> list[str]:
    """Every option and group of conf/, as it is written on the command line."""
    from omegaconf import OmegaConf

    found = set()
    for file in CONF.rglob("*.yaml"):
        group = ".".join(file.relative_to(CONF).parts[:-1])
        if group in ("experiment", "debug"):
            continue
        found |= {group} - {""}
        tree = OmegaConf.to_container(OmegaConf.load(file))
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
    """Print one line that can be read, whatever was typed: no control characters, and no error without end."""
    line = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in " ".join(text.split()))
    if prefix and len(line) > 700:
        line = f"{line[:400]} ... {line[-250:]}"
    print(prefix + line, file=sys.stderr)
    return code
