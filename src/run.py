"""Train one configuration, or a sweep of them.

    python -m src.run backbone=resnet32 budget.flops=0.5G
    python -m src.run experiment=demo
    python -m src.run -m backbone=vgg16 budget.flops=20M,42M,80M seed=0,1,2

The same command continues a run that was interrupted, and prints the table of one that is done.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from src.output import keep_output

CONF = Path(__file__).resolve().parents[1] / "conf"


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
def job(config: DictConfig) -> float | None:
    """Run one job of the command and return its objective, or None for a failed job of a sweep."""
    from budgetnet.command.compose import plain
    from budgetnet.command.explain import explain
    from budgetnet.command.job import run_job
    from budgetnet.reports import ending

    multirun = HydraConfig.get().mode == RunMode.MULTIRUN
    overrides = list(map(str, OmegaConf.to_container(HydraConfig.get().overrides.task, resolve=False)))
    try:
        return run_job(plain(config), overrides, multirun, ending)
    except Exception as error:
        if not multirun:
            sys.exit(explain(error))
        from budgetnet.command.sweeps import job_failed

        return job_failed(overrides, error)


def main() -> int:
    """Return the exit code: 0, 1 after a failure, 2 if nothing can run, 130 after SIGINT, or 143 after SIGTERM."""
    keep_output()
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises its errors, and `explain` prints them on one line
    code = 0
    try:
        job()
    except BaseException as error:
        from budgetnet.command.explain import explain

        code = explain(error)
    from budgetnet.command.sweeps import SweepStart

    return max(code, SweepStart.sweep.end()) if SweepStart.sweep else code


if __name__ == "__main__":
    sys.exit(main())
