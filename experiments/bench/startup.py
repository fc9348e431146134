"""From the command to the first training step."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile

import pytorch_lightning as pl

from .timing import ratios


class FirstStep(pl.Callback):
    """Ends the process when the first gradients are there."""

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: object) -> None:
        os._exit(0)


def command_against_import(pairs: int, accelerator: str) -> list[float]:
    """Seconds of `python -m src.run backbone=resnet32 budget.flops=0.5G` until its first step, with W&B (offline) as by
    default, divided by those of `python -c 'import pytorch_lightning'`."""

    def command() -> None:
        with tempfile.TemporaryDirectory() as folder:
            _python(
                "-m", "src.run", "backbone=resnet32", "budget.flops=0.5G", f"trainer.accelerator={accelerator}",
                f"run.dir={folder}/run", f"+callbacks.first._target_={__name__}.FirstStep",
            )  # fmt: skip

    return ratios(command, lambda: _python("-c", "import pytorch_lightning"), pairs)


def _python(*arguments: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL, env=environment)
