"""The inverse scale space path of every growth round: when each filter was selected."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytorch_lightning as pl
import torch
from torch import Tensor

from budgetnet.optim import LBI
from budgetnet.runs.records import write_text

if TYPE_CHECKING:
    from budgetnet.methods.growth.adenel import AdeNeL

COLUMNS = ("layer", "filter", "step", "mean_norm", "norm")


class SelectionPath(pl.Callback):
    """Writes selection/round_NNN.csv, with a row for every filter of every growing layer. Only AdeNeL has such a path.

    python -m src.run +callbacks.path._target_=budgetnet.training.callbacks.selection_path.SelectionPath

    step: the step of the round in which the filter was first seen in the support, empty if never.
    mean_norm: ‖Z‖ν/(lr·steps) at the end of the round, which for an unselected filter is the norm of the mean of its
    weights over the steps.
    norm: the norm of its weights at the end of the round.

    every: the support is read every so many steps, each of which waits for the device.
    """

    def __init__(self, every: int = 10) -> None:
        self.every = every
        self.round, self.steps = 0, 0
        self.entered: dict[str, Tensor] = {}
        self.last: dict[str, tuple[Tensor, Tensor]] = {}

    def state_dict(self) -> dict[str, Any]:
        return {"round": self.round, "steps": self.steps, "entered": self.entered, "last": self.last}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        vars(self).update(state_dict)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        method = _method(pl_module)
        if method is None or not method.growing:
            return
        self.steps += 1
        if self.steps % self.every == 0 or trainer.is_last_batch:
            self._look(method)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the path of a round after its growth; the norms were read before it."""
        method = _method(pl_module)
        if method is None or method.training.round == self.round:
            return
        round = method.training.round
        if trainer.is_global_zero:
            self._write(Path(trainer.default_root_dir) / "selection" / f"round_{round:03d}.csv")
        self.round, self.steps, self.entered, self.last = round, 0, {}, {}

    @torch.no_grad()
    def _look(self, method: AdeNeL) -> None:
        optimizer, rate = method.optimizer, method.optim.lr
        for group in method.graph.groups:
            for path in group.producers if group.name in method.planner.max_widths else ():
                weight = method.net.get_parameter(f"{path}.weight")
                nu = next(g["nu"] for g in optimizer.param_groups if any(weight is p for p in g["params"]))
                entered = self.entered.setdefault(path, torch.full((len(weight),), -1))
                entered[optimizer.support(weight).cpu() & (entered < 0)] = self.steps
                pulled, now = (x.detach().flatten(1).norm(dim=1).cpu() for x in (optimizer.state[weight]["z"], weight))
                self.last[path] = pulled * nu / (rate * self.steps), now

    def _write(self, path: Path) -> None:
        path.parent.mkdir(exist_ok=True)
        lines = [",".join(COLUMNS)]
        for layer, entered in self.entered.items():
            for number, (step, *norms) in enumerate(zip(entered.tolist(), *(n.tolist() for n in self.last[layer]))):
                lines.append(",".join([layer, str(number), "" if step < 0 else str(step), *map(repr, norms)]))
        write_text(path, "\n".join(lines) + "\n")


def _method(learner: pl.LightningModule) -> AdeNeL | None:
    """The method of a learner if it is AdeNeL, else None."""
    method = getattr(learner, "method", None)
    under_lbi = method is not None and isinstance(method.training.optimizer, LBI)
    return cast("AdeNeL", method) if under_lbi else None
