"""What is said before a run begins: what it works on, what its budget means, and how far it will get."""

from __future__ import annotations

import platform
import shutil
import sys
import textwrap
from pathlib import Path

import torch

from budgetnet.command.build import Components
from budgetnet.command.configuration import Configuration
from budgetnet.costs.budget import format_quantity
from budgetnet.methods.phases import Stretch


def header(components: Components, options: Configuration, directory: Path, reached: str | None) -> list[str]:
    """The lines of the header. reached: up to where a run that is continued is complete, such as "epoch 4"."""
    learner, data = components.learner, components.data
    training = learner.method.training
    stretches = learner.course(0)
    train, held_out, test = data.splits
    kind = "x".join(map(str, data.input_shape))
    parts = (
        f"{len(train):,} training, {0 if held_out is None else len(held_out):,} validation, {len(test):,} test images"
    )
    classes = f", {data.num_classes} classes" if len(data.class_names) > 1 else ""
    named = (options.method["name"], learner.method.chosen())
    lines = {
        "device": f"{_device(training.device)}, {options.trainer.precision}",
        "dataset": f"{data.name}: {parts} of {kind}{classes}",
        "left out": getattr(train, "left_out", ""),
        "network": _network(components, training.backbone),
        "weights": training.weights or "",
        "budget": _budget(components),
        "method": f"{', '.join(filter(None, named))}: {_course(stretches)}; seed {options.seed}",
        "run": str(directory) + (f", continuing from {reached}" if reached else ""),
    }
    lines["note"] = learner.method.shortfall() or ""
    return [line for name, text in lines.items() if text for line in _lines(f"{name:9}{text}")]


def _lines(text: str) -> list[str]:
    """A line of the header, cut between words where a terminal is too narrow for it. A path stays whole."""
    if not sys.stdout.isatty() or text.startswith("run "):
        return [text]
    width = shutil.get_terminal_size().columns
    return textwrap.wrap(text, width, subsequent_indent=9 * " ", break_long_words=False, break_on_hyphens=False)


def _device(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} {platform.machine()}, {torch.get_num_threads()} threads"


def _network(components: Components, name: str) -> str:
    full, costs = components.full, components.learner.method.costs()
    text = f"{name}: {_flops(full['full_flops'])}, {format_quantity(full['full_params'])} parameters"
    if costs["flops"] == full["full_flops"]:
        return text
    return f"{text}; begins with {_flops(costs['flops'])}, {format_quantity(costs['params'])} parameters"


def _flops(value: float) -> str:
    return f"{format_quantity(value)} FLOPs"


def _budget(components: Components) -> str:
    training, full = components.learner.method.training, components.full
    whole = {"flops": full["full_flops"], "params": full["full_params"], "mean_flops": full["full_flops"]}
    whole["train_cost"] = training.ledger.baseline_cost
    texts = []
    for kind, limit in training.budget.limits.items():
        text = f"{kind} {format_quantity(limit)}"
        if kind in whole:
            percent = 100 * limit / whole[kind]
            of = "training the full one" if kind == "train_cost" else "the full one"
            text += f", {percent:.3g} % of {of}" + (": wider than it" if percent > 100 and kind != "train_cost" else "")
        texts.append(text)
    return "; ".join(texts)


def _course(stretches: list[Stretch]) -> str:
    """The epochs to come as text: "3 rounds of 10 epochs, finetune 150, 180 epochs in all"."""
    rounds = [stretch for stretch in stretches if stretch.name.startswith("round ")]
    texts = [f"{_of(len(rounds), 'round')} of {_of(rounds[-1].epochs, 'epoch')}"] if rounds else []
    texts += [f"{stretch.name} {stretch.epochs}" for stretch in stretches if stretch not in rounds and stretch.epochs]
    total = sum(stretch.epochs for stretch in stretches)
    return (
        f"{', '.join(texts)}, about {_of(total, 'epoch')} in all" if len(texts) > 1 or rounds else _of(total, "epoch")
    )


def _of(count: int, what: str) -> str:
    return f"{count} {what}{'s'[: count != 1]}"
