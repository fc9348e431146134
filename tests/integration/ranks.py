"""Callbacks for a run of several processes: one notes what its process holds, one makes trouble at a given step.

Both are told by environment variables what to do, and do nothing without: the same command, with and without them.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import signal
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

from budgetnet.errors import RunError
from budgetnet.methods.edges.bsn import BSN
from budgetnet.methods.growth.adenel import AdeNeL
from budgetnet.methods.plan import WidthPlan
from budgetnet.methods.pruning.grow_prune import GrowPrune
from budgetnet.training.learner import Learner

FOLDER = "RANKS_FOLDER"
TROUBLE = "RANKS_TROUBLE"


def sha(*tensors: Tensor) -> str:
    found = hashlib.sha256()
    for tensor in tensors:
        found.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
        found.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()[:16]


def adenel(module: pl.LightningModule) -> AdeNeL | None:
    """The method that is trained, if it is that."""
    assert isinstance(module, Learner)
    return module.method if isinstance(module.method, AdeNeL) else None


def state(method: AdeNeL, *names: str) -> dict[str, str]:
    """Digests of what the optimizer keeps of every parameter it has anything of."""
    slots = [method.optimizer.state.get(parameter, {}) for parameter in method.net.parameters()]
    return {name: sha(*[slot[name] for slot in slots if name in slot]) for name in names}


class Witness(pl.Callback):
    """Appends a line to $RANKS_FOLDER/<rank>.jsonl for every batch, step after a growth, round and epoch."""

    def __init__(self) -> None:
        self.folder = os.environ.get(FOLDER)
        self.grown: dict[str, tuple[int, int]] = {}

    def note(self, trainer: pl.Trainer, event: str, **values: Any) -> None:
        if self.folder is not None:
            with open(Path(self.folder, f"{trainer.global_rank}.jsonl"), "a") as file:
                file.write(json.dumps({"event": event, "epoch": trainer.current_epoch, **values}) + "\n")

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        method = adenel(pl_module)
        if stage != "fit" or method is None:
            return
        plan, apply = method.plan, method.apply

        @functools.wraps(plan)
        def planned(*args: Any) -> WidthPlan | None:
            made = plan(*args)
            if made is not None:
                self.note(trainer, "planned")
            return made

        @functools.wraps(apply)
        def applied(made: WidthPlan, *args: Any) -> None:
            self.note(trainer, "round", plan=repr(made), **state(method, "z", "momentum_buffer"))
            self.grown = {name: (made.before[name], width) for name, width in made.changes.items()}
            apply(made, *args)

        vars(method).update(plan=planned, apply=applied)

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, number: int) -> None:
        images, labels = batch
        self.note(
            trainer, "batch", batch=number, images=[sha(*pair) for pair in zip(images, labels, strict=True)],
            random=float(torch.rand((), generator=torch.Generator().manual_seed(torch.initial_seed() % 2**31))),
        )  # fmt: skip

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Any) -> None:
        assert isinstance(pl_module, Learner)
        grown, self.grown = self.grown, {}
        new = {}
        for group, (old, width) in grown.items():
            for producer in pl_module.method.graph.group(group).producers:
                gradient = pl_module.net.get_parameter(f"{producer}.weight").grad
                assert gradient is not None and len(gradient) == width
                new[producer] = (sha(gradient[old:]), float(gradient[old:].norm()))
        gradients = [p.grad for p in pl_module.net.parameters() if p.grad is not None]
        self.note(trainer, "gradients", new=new, all=sha(*gradients), number=len(gradients))

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        method = adenel(pl_module)
        assert method is not None and isinstance(pl_module, Learner)
        self.note(
            trainer, "epoch", widths=method.graph.widths, phase=pl_module.phase.name, results=pl_module.results,
            weights=sha(*pl_module.parameters()), buffers=sha(*pl_module.buffers()),
            spent=method.training.ledger.spent, **state(method, "z", "momentum_buffer"),
        )  # fmt: skip

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, Learner)
        self.note(trainer, "end", weights=sha(*pl_module.parameters()), buffers=sha(*pl_module.buffers()),
                  widths=pl_module.method.graph.widths, results=pl_module.results)  # fmt: skip


class Waiting(pl.Callback):
    """Of method=grow_prune: a line per epoch for the network that there is, and what waits beside it."""

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, Learner) and isinstance(pl_module.method, GrowPrune)
        there = sha(*pl_module.parameters(), *pl_module.buffers())
        full = pl_module.method.full
        Witness().note(
            trainer, "epoch", widths=pl_module.method.graph.widths, there=there, waiting=sha(*full.tensors.values()),
            momentum=sha(*full.momentum.values()),
        )  # fmt: skip


class Searching(pl.Callback):
    """Of method=bsn: a line per epoch for the weights and the logits of edges."""

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, Learner) and isinstance(pl_module.method, BSN)
        method = pl_module.method
        logits = method.search.logits
        moved = not torch.equal(logits, torch.full_like(logits, method.options.initial))
        Witness().note(
            trainer, "epoch", weights=sha(*pl_module.parameters()), logits=sha(logits), moved=moved,
            kept=sha(method.mask), spent=method.training.ledger.spent,
        )  # fmt: skip


class Parameters(pl.Callback):
    """Of any method: a line per epoch for the parameters, those of the method's own modules among them."""

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        Witness().note(trainer, "epoch", weights=sha(*pl_module.parameters()))


class Reductions(pl.Callback):
    """Counts, in $RANKS_FOLDER/reductions, how often gradients were averaged over the processes in each epoch."""

    def __init__(self) -> None:
        self.wrapped: Any = None
        self.count = 0

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.count = 0
        if self.wrapped is not trainer.model:
            self.wrapped = trainer.model
            assert isinstance(self.wrapped, DistributedDataParallel)

            def counting(group, bucket):  # without annotations: torch refuses them as text
                self.count += bucket.is_last()
                return allreduce_hook(group, bucket)

            self.wrapped.register_comm_hook(None, counting)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.is_global_zero:
            with open(Path(os.environ[FOLDER], "reductions"), "a") as file:
                file.write(f"{self.count}\n")


class Trouble(pl.Callback):
    """After the step that $RANKS_TROUBLE="what:rank:epoch:batch" names: a signal, an exception, or weights of NaN.

    what: the name of a signal; "parent's " before it sends it to the process that started this one. Notes the time in
    $RANKS_FOLDER/trouble.
    """

    def __init__(self) -> None:
        self.what, *place = os.environ.get(TROUBLE, "nothing:-1:-1:-1").split(":")
        self.place = [int(number) for number in place]
        if self.place == [int(os.environ.get("LOCAL_RANK", 0)), -1, -1]:  # before the processes have joined
            self.make_trouble(None)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        here = self.place == [trainer.global_rank, trainer.current_epoch, batch_idx]
        if here and not Path(os.environ[FOLDER], "trouble").exists():  # once, also where torchrun starts all anew
            self.make_trouble(pl_module)

    def make_trouble(self, pl_module: pl.LightningModule | None) -> None:
        Path(os.environ[FOLDER], "trouble").write_text(repr(time.time()))
        if self.what == "RunError":
            raise RunError("the disk is on fire")
        if self.what == "bug":
            raise ZeroDivisionError("a bug in a callback")
        if self.what == "nan" and pl_module is not None:
            next(pl_module.parameters()).data.fill_(torch.nan)
            return
        process = os.getppid() if self.what.startswith("parent's ") else os.getpid()
        os.kill(process, signal.Signals[self.what.removeprefix("parent's ")])


def notes(folder: Path, rank: int, event: str) -> Iterable[dict[str, Any]]:
    """What a rank has noted of one kind of event."""
    lines = [json.loads(line) for line in (folder / f"{rank}.jsonl").read_text().splitlines()]
    return [line for line in lines if line["event"] == event]
