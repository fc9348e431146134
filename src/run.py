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

CONF = Path(__file__).resolve().parents[1] / "conf"


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
def job(config: DictConfig) -> float:
    """One job of the command: returns the test accuracy, for sweepers that optimise it."""
    from budgetnet.command import explain, run_job

    multirun = HydraConfig.get().mode == RunMode.MULTIRUN
    plain = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    try:
        return run_job(plain, list(HydraConfig.get().overrides.task), multirun)
    except (Exception, KeyboardInterrupt) as error:
        if multirun and not isinstance(error, KeyboardInterrupt):
            raise  # hydra goes on with the other jobs and raises this in the end
        sys.exit(explain(error))


def main() -> int:
    """The command's exit code: 0, 1 for a run that failed, 2 for a command that cannot run, 130 after Ctrl-C."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # hydra raises its errors, and they are explained here in one line
    try:
        job()
    except BaseException as error:
        from budgetnet.command import explain

        return explain(error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
