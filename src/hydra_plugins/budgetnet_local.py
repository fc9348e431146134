"""hydra/launcher=local: the plugin for budgetnet.command.launcher, in the package where Hydra looks for launchers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

_OF_THE_SWEEP = ("hydra/launcher", "hydra.launcher", "hydra/sweep", "hydra.sweep", "hydra.mode")


class LocalLauncher(Launcher):
    """Runs every job of a sweep in a process of its own. n_jobs, gpus: `launcher` in conf/config.yaml."""

    def __init__(self, n_jobs: Any = None, gpus: Any = None) -> None:
        self.n_jobs, self.gpus = n_jobs, gpus

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.context, self.config = hydra_context, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run the jobs. The return value of each is its objective, or None if it failed."""
        from budgetnet.command.compose import plain
        from budgetnet.command.launcher import Job, run_jobs, visible_gpus

        gpus = visible_gpus(self.gpus)
        composed = [self.context.config_loader.load_sweep_config(self.config, list(job)) for job in job_overrides]
        jobs = [
            Job.of(initial_job_idx + number, plain(config), list(overrides), [*self._options(), *overrides], len(gpus))
            for number, (config, overrides) in enumerate(zip(composed, job_overrides, strict=True))
        ]
        if any(job.config.get("plan") for job in jobs):
            from budgetnet.command.plan import show_plans

            values: Sequence[float | None] = show_plans([(job.name, job.config, job.directory) for job in jobs])
        else:
            values = run_jobs(jobs, gpus, self.n_jobs)
        returns = []
        for config, job, value in zip(composed, job_overrides, values, strict=True):
            result = JobReturn(overrides=list(job), cfg=config, working_dir=str(Path.cwd()), status=JobStatus.COMPLETED)
            result.return_value = value
            returns.append(result)
        return returns

    def _options(self) -> list[str]:
        """The arguments of this command that a job needs too: the place of its configuration, and options of Hydra."""
        options = []
        if self.config.hydra.job.config_name != "config":
            options += ["--config-name", str(self.config.hydra.job.config_name)]
        for source in self.config.hydra.runtime.config_sources:
            if source.provider == "command-line":
                options += ["--config-dir", str(source.path)]
        given = cast(list[str], OmegaConf.to_container(self.config.hydra.overrides.hydra, resolve=False))
        return options + [each for each in given if not each.lstrip("+~").startswith(_OF_THE_SWEEP)]
