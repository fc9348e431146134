"""plan=true: what a run would do and about how long it would take, without training it."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from budgetnet.command.build import Components, build
from budgetnet.command.configuration import Configuration, parse
from budgetnet.command.header import header
from budgetnet.training.forecast import STEPS, Clock, calibrate, duration


def show_plan(options: Configuration, directory: Path) -> float:
    """Print the header of a run and an estimate of its time. Returns the estimate in seconds. Writes no file.

    Raises UsageError for a configuration that cannot run.
    """
    components = build(options, directory)
    print(*header(components, options, directory, None), sep="\n")
    if components.warning is not None:
        print(f"warning: {components.warning}", file=sys.stderr, flush=True)
    seconds = estimate(components)
    print(f"time     about {duration(seconds)} of training, from {STEPS} steps that were timed")
    return seconds


def show_plans(jobs: Sequence[tuple[str, Mapping[str, Any], Path]]) -> list[float]:
    """Print the plans of the jobs of a sweep, each with a name, a configuration and a directory, and their sum."""
    found = []
    for number, (name, config, directory) in enumerate(jobs, start=1):
        print(f"#{number} {name}")
        found.append(show_plan(parse(config), directory))
        print()
    print(f"in all   {len(jobs)} jobs, about {duration(sum(found))} one after the other", flush=True)
    return found


def estimate(components: Components) -> float:
    """Seconds that training would take on one device, by steps of the network as it begins and as it would end."""
    learner, data = components.learner, components.data
    training = learner.method.training
    stretches, now = learner.course(0), float(training.pricing.flops)
    net = training.net.to(training.device)
    loader = iter(data.train_dataloader())
    images, targets = (each.to(training.device) for each in next(loader))  # the first begins what an epoch begins once
    start = time.perf_counter()
    more = len(list(islice(loader, STEPS)))
    loading = (time.perf_counter() - start) / more if more else 0.0
    ends = {stretch.flops for stretch in stretches if stretch.epochs} if training.pricing.edge_names is None else set()
    ends = {min(ends, default=now), max(ends, default=now)} - {now}
    held_out = data.splits.validation
    evaluated = 0 if held_out is None else len(held_out), data.options.eval_batch_size
    batch = images, learner.task.taught(images, targets)
    found = calibrate(net, learner.task, batch, [now, *sorted(ends)], *evaluated)
    clock, steps = Clock(), data.steps_per_epoch()
    clock.calibrated(found, steps, now)
    step = found[min(found, key=lambda flops: abs(flops - now))].step
    clock.stepped(step + (loading if data.options.workers == 0 else max(0.0, loading - step)))
    return clock.left(stretches, now, steps, 0, 0.0) or 0.0
