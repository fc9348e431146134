"""A training epoch under the trainer beside a loop written by hand, and the epochs of whole networks."""

from __future__ import annotations

import copy
import json
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from hydra import compose, initialize_config_dir
from torch import nn

from budgetnet import backbones
from budgetnet.channels import ChannelGraph
from budgetnet.command.build import Components, build
from budgetnet.command.compose import CONF, plain
from budgetnet.costs import CostModel
from budgetnet.data.picture_loaders import PictureLoader
from budgetnet.optim import LBI
from budgetnet.training.learner import Learner

_FREE = ("trainer.deterministic=false", "trainer.benchmark=true")
"""What somebody who wants speed alone sets on a GPU."""
_GROWING = ("budget.flops=95%", "growth.seed_shape=equal", "growth.epochs_per_round=1000", "finetune.epochs=1")


@contextmanager
def parts(device: torch.device, *overrides: str) -> Iterator[Components]:
    """A run that keeps its files in a temporary folder, without validation, W&B and a progress bar."""
    shared = ("epochs=2000", "dataset.validation=0", "logger=csv", "trainer.progress=false", "export=false")
    options = [*shared, f"trainer.accelerator={'gpu' if device.type == 'cuda' else 'cpu'}", *overrides]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = plain(compose("config", overrides=options))
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        yield build(config, Path(folder))


def fit(run: Components, callback: pl.Callback) -> None:
    run.trainer.callbacks.append(callback)  # type: ignore[attr-defined]
    run.trainer.fit(run.learner, datamodule=run.data)


def epoch_against_bare_loop(device: torch.device, pairs: int, *overrides: str) -> list[float]:
    """Seconds of an epoch of AdeNeL under the trainer, from the end of the one before to its own end with everything
    that is recorded and kept then, divided by those of the same epoch in a loop written by hand.

    Raises RuntimeError if the two do not end with the same weights (on a CPU).
    """
    beside = BareLoop(pairs)
    with parts(device, *_GROWING, *overrides) as run:
        fit(run, beside)
    return beside.ratios


class BareLoop(pl.Callback):
    """After every epoch of the trainer trains a copy of the network on the same batches, and stops after `pairs`."""

    def __init__(self, pairs: int) -> None:
        self.pairs = pairs
        self.ratios: list[float] = []

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, Learner)
        self.net = copy.deepcopy(pl_module.net).train()
        copies = dict(zip(pl_module.net.parameters(), self.net.parameters(), strict=True))
        groups = [
            {**group, "params": [copies[param] for param in group["params"]]}
            for group in trainer.optimizers[0].param_groups
        ]
        self.optimizer = LBI(groups, lr=groups[0]["lr"])
        self.loader = pl_module.data.train_dataloader()
        self.mark = _now(pl_module.device)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, Learner)
        end = _now(pl_module.device)
        assert not isinstance(self.loader, PictureLoader)
        self.loader.set_epoch(trainer.current_epoch)
        loop = self.epoch(pl_module.method.optim.label_smoothing, pl_module.device)
        if trainer.current_epoch:  # the first warms both up
            self.ratios.append((end - self.mark) / loop)
        trainer.should_stop = len(self.ratios) == self.pairs
        if trainer.should_stop and pl_module.device.type == "cpu":
            pairs = zip(self.net.parameters(), pl_module.net.parameters(), strict=True)
            if not all(torch.equal(one, other) for one, other in pairs):
                raise RuntimeError("the trainer and the loop written by hand have learned different weights")
        self.mark = _now(pl_module.device)

    def epoch(self, label_smoothing: float, device: torch.device) -> float:
        """The loop written by hand; returns its seconds."""
        start = _now(device)
        total = torch.zeros((), device=device)
        for images, labels in self.loader:
            loss = nn.functional.cross_entropy(self.net(images), labels, label_smoothing=label_smoothing)
            loss.backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            total += loss.detach()
        total.item()
        return _now(device) - start


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def lbi_share(device: torch.device, steps: int) -> list[float]:
    """Percent of a training step of the full ResNet-20, batches of 128, that the LBI step takes."""
    full = ("growth.seed_width=16", "growth.epochs_per_round=1000", "finetune.epochs=1", "budget.flops=110%")
    share = Share()
    with parts(device, "backbone=resnet20", *full, f"dataset.limit_train={128 * (steps + 3)}") as run:
        if run.method.costs()["params"] != run.full["full_params"]:
            raise RuntimeError(f"{run.method.costs()} is not the full ResNet-20")
        fit(run, share)
    return share.percents[3:]


class Share(pl.Callback):
    """Times the optimizer within the steps of one epoch of a loop written by hand."""

    def __init__(self) -> None:
        self.percents: list[float] = []

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, Learner)
        device, optimizer = pl_module.device, trainer.optimizers[0]
        for images, labels in pl_module.data.train_dataloader():
            start = _now(device)
            nn.functional.cross_entropy(pl_module.net(images), labels).backward()  # type: ignore[no-untyped-call]
            before = _now(device)
            optimizer.step()
            after = _now(device)
            optimizer.zero_grad(set_to_none=True)
            self.percents.append(100 * (after - before) / (_now(device) - start))
        trainer.should_stop = True


def epoch_seconds(device: torch.device, epochs: int, *overrides: str) -> list[float]:
    """Seconds of CIFAR-10 epochs, all 50,000 images in batches of 128, in bf16; the first two warm up."""
    clock = Epochs(epochs + 2)
    with parts(device, "method=train", "trainer.precision=bf16-mixed", *_FREE, *overrides) as run:
        fit(run, clock)
    return clock.seconds[2:]


def rounded_widths(device: torch.device, epochs: int) -> list[float]:
    """Epoch of a VGG-16 with widths in multiples of 8, divided by one with widths as they come, epoch by epoch.

    Both have at most 42M FLOPs; neither is compiled.
    """
    seconds = []
    for step in (8, 1):
        with tempfile.TemporaryDirectory() as folder:
            summary = Path(folder, "summary.json")
            summary.write_text(json.dumps({"widths": multiples_of(step)}))
            seconds.append(epoch_seconds(device, epochs, "backbone=vgg16", f"method.widths_from={summary}"))
    return [eights / ones for eights, ones in zip(*seconds, strict=True)]


def compiled_against_eager(device: torch.device, epochs: int) -> list[float]:
    """Epoch of a ResNet-20 with trainer.compile=inductor, once compiled, divided by one without, epoch by epoch."""
    seconds = [
        epoch_seconds(device, epochs, "backbone=resnet20", *compiled)
        for compiled in (("trainer.compile=inductor",), ())
    ]
    return [fast / eager for fast, eager in zip(*seconds, strict=True)]


def multiples_of(step: int, most: int = 42_000_000) -> dict[str, int]:
    """Widths of a VGG-16 of at most so many FLOPs, all times one number, rounded down to multiples of `step`."""
    graph = ChannelGraph.trace(backbones.build("vgg16", num_classes=10), torch.empty(1, 3, 32, 32))
    cost = CostModel(graph)
    convolutions = [group for group in graph.groups if group.kind == "convolution"]

    def scaled(share: float) -> dict[str, int]:
        return graph.widths | {g.name: max(step, int(share * g.width) // step * step) for g in convolutions}

    shares = [number / 1000 for number in range(1, 1001)]
    return scaled(max(share for share in shares if cost.flops(scaled(share)) <= most))


class Epochs(pl.Callback):
    def __init__(self, epochs: int) -> None:
        self.epochs, self.seconds = epochs, list[float]()

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.start = _now(pl_module.device)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.seconds.append(_now(pl_module.device) - self.start)
        trainer.should_stop = len(self.seconds) == self.epochs


def growth_pauses(device: torch.device) -> list[float]:
    """Milliseconds that the growth rounds of a ResNet-32 take: measure, plan, resize, migrate, price."""
    saturated = ("growth.policy=saturation", "growth.readout=support", "growth.threshold=0.0", "lbi.threshold=1e-9")
    always = (*saturated, "growth.epochs_per_round=1")
    short = ("dataset.limit_train=256", "finetune.epochs=1", "epochs=12", "optim.lr=0.01")
    with parts(device, "backbone=resnet32", "budget.flops=90%", *always, *short) as run:
        run.trainer.fit(run.learner, datamodule=run.data)
        return pauses(Path(run.trainer.default_root_dir))


def pauses(directory: Path) -> list[float]:
    """Of the rounds in which something grew."""
    rounds: list[dict[str, Any]] = [json.loads(line) for line in (directory / "growth.jsonl").read_text().splitlines()]
    return [entry["pause_ms"] for entry in rounds if entry["plan"]]
