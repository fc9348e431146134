"""The command `budgetnet`, which is `python -m src.run` too: one run, or a sweep of them.

What is wrong with a command is said before torch is imported, where that is known without it.
"""

from __future__ import annotations

import gc
import os
import sys
from typing import Any

import hydra
from hydra._internal.hydra import Hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from budgetnet.command.compose import CONF, map_choices_where_read, plain, read_quickly, saved
from budgetnet.command.explain import explain
from budgetnet.command.names import SWEEP
from budgetnet.errors import UsageError
from budgetnet.output import keep_output

_OF_HYDRA = ("--config-path", "--config-name", "--config-dir", "--cfg", "--package", "--info", "--experimental-rerun")
"""What Hydra itself takes with a value."""


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
def job(config: DictConfig) -> float | None:
    """Run one job of the command and return its objective, or None for a failed job of a sweep."""
    multirun = HydraConfig.get().mode == RunMode.MULTIRUN
    task: Any = OmegaConf.to_container(HydraConfig.get().overrides.task, resolve=False)
    overrides = [str(each) for each in task]
    try:
        from budgetnet.command.early import check_early

        composed = plain(config)
        begun = saved(composed, overrides)
        values = composed if begun is None else begun
        check_early(values, () if SWEEP in os.environ else overrides)  # those of a sweep are checked before it begins
        gc.enable()
        from budgetnet.command.job import run_job
        from budgetnet.reports import ending

        return run_job(values, overrides, multirun, ending, begun is not None)
    except Exception as error:
        if not multirun:
            sys.exit(explain(error))
        from budgetnet.command.sweeps import job_failed

        job_failed(overrides, error)
        return None


def _no_mode(*_: Any, **__: Any) -> None:
    """The option hydra.mode, if it is not given."""


def _is_dashed(word: str) -> bool:
    """Whether it is an override with dashes before it, as others take their options: --budget.flops=50% or --seed=1."""
    name, equals, _ = word.partition("=")
    return name.startswith("--") and name not in _OF_HYDRA and (bool(equals) or "." in name)


def _quoted(word: str) -> str:
    """An override whose value is a path that exists, in quotes if it has characters that mean something to Hydra.

    The names of run directories have: `run.dir=runs/default/seed=1,epochs=3`.
    """
    option, _, value = word.partition("=")
    if not {*value} & {*"=,()[]{}"} or value[0] in "'\"[{" or len(value) > 4096 or not os.path.lexists(value):
        return word
    text = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'{option}="{text}"'


def main() -> int:
    """Return the exit code: 0, 1 after a failure, 2 if nothing can run, 130 after SIGINT, or 143 after SIGTERM."""
    keep_output()
    if {"-h", "--help"} & {*sys.argv[1:]}:
        from budgetnet.command.help import text

        print(text())
        return 0
    if dashed := [word for word in sys.argv[1:] if _is_dashed(word)]:
        option, equals, value = dashed[0].lstrip("-").partition("=")
        return explain(UsageError(f"{dashed[0]}: options have no dashes, write {option}={value if equals else '...'}"))
    sys.argv[1:] = map(_quoted, sys.argv[1:])
    read_quickly()
    map_choices_where_read()
    gc.disable()  # composing makes a hundred thousand objects, and looking through them takes a fifth of a refusal
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises its errors, and `explain` prints them on one line
    code = 0
    try:
        if not any("hydra.mode" in word for word in sys.argv):
            Hydra.get_mode = _no_mode  # type: ignore[method-assign]  # it composes everything once more to see it
        job()
    except BaseException as error:
        code = explain(error)
    finally:
        gc.enable()
        gc.freeze()  # nor are they looked through at exit
    sweeps = sys.modules.get("budgetnet.command.sweeps")
    sweep = sweeps.SweepStart.sweep if sweeps else None
    return sweep.end(code) if sweep else code


if __name__ == "__main__":
    sys.exit(main())
