"""What is to come in a run, and how long it will take."""

from __future__ import annotations

import copy
import statistics
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from budgetnet.channels import ChannelGraph, resize
from budgetnet.costs import CostModel
from budgetnet.methods.method import Method
from budgetnet.methods.phases import Phase, Stretch
from budgetnet.methods.train import scaled_widths
from budgetnet.tasks import Task

STEPS = 5
"""Steps of a network that are timed, after one that is not."""


def course(method: Method, phases: Sequence[Phase], began: int, epochs: int) -> list[Stretch]:
    """What is to come after `epochs` finished epochs: the method's own forecast, or else its phases.

    phases: the current one, which began after `began` epochs, and those after it. A phase that lasts until a plan ends
    it is taken to last as long as it may, at costs between those of now and of the budget.
    """
    if (own := method.course(epochs)) is not None:
        return own
    training, now = method.training, float(method.costs()["flops"])
    end = (
        min(training.budget.limits.get("flops", now), max(now, training.ledger.full_flops)) if len(phases) > 1 else now
    )
    later = sum(phase.epochs or 0 for phase in phases[1:])
    found = []
    for number, phase in enumerate(phases):
        done = epochs - began if number == 0 else 0
        left = training.epochs - epochs - later if phase.epochs is None else phase.epochs - done
        flops = end if phase.final and number else (now + end) / 2 if phase.epochs is None else now
        found.append(Stretch(phase.name, max(left, 0), flops))
    room = training.epochs - epochs
    for number, stretch in enumerate(found):  # a run ends after `epochs`, whatever its phases want
        found[number] = Stretch(stretch.name, min(stretch.epochs, room), stretch.flops)
        room -= found[number].epochs
    return found


@dataclass(frozen=True)
class Timed:
    """Seconds of a training step, and of an evaluation of the images that are held out."""

    step: float
    evaluation: float = 0.0


class Clock:
    """How long an epoch takes, as a function of the network's FLOPs, and what is left of a run.

    An epoch takes a fixed time and one in proportion to the FLOPs, which two points give: what `calibrate` has timed at
    the costs of now and of the end, or else the epochs that have been measured. Without either it is in proportion.
    """

    def __init__(self) -> None:
        self.points: dict[float, float] = {}
        """Seconds of an epoch by FLOPs, as `calibrate` expects them."""
        self.others: float | None = None
        """What an epoch takes beside its steps, as a part of them, as `calibrate` expects it."""
        self.epochs: dict[float, float] = {}
        """Seconds of an epoch by FLOPs, a moving average; the last of them is that of now, or of the last size."""
        self._steps: deque[float] = deque(maxlen=25)

    def calibrated(self, timed: Mapping[float, Timed], steps: int, now: float) -> None:
        """Take what `calibrate` has found, for epochs of `steps` steps. now: FLOPs of the network."""
        self.points = {flops: steps * each.step + each.evaluation for flops, each in timed.items()}
        here = timed[min(timed, key=lambda flops: abs(flops - now))]
        self.others = here.evaluation / (steps * here.step)

    @property
    def step(self) -> float | None:
        """Seconds of a step now: the median of the last ones, some of which may have waited for something else."""
        return statistics.median(self._steps) if self._steps else None

    def stepped(self, seconds: float) -> None:
        """A step has taken so many seconds."""
        self._steps.append(seconds)

    def epoch(self, flops: float, seconds: float) -> None:
        """An epoch has taken so many seconds, its validation included."""
        before = self.epochs.pop(flops, seconds)
        self.epochs[flops] = 0.7 * before + 0.3 * seconds

    def relative(self, flops: float, now: float) -> float:
        """The time of an epoch at `flops` divided by that at `now`."""
        known = self.points if len(self.points) > 1 else self.epochs
        if len(known) < 2:
            return flops / now
        (low, first), (high, second) = min(known.items()), max(known.items())
        slope = max(second - first, 0.0) / (high - low)
        at_now = max(first + slope * (now - low), 1e-9)
        return max(first + slope * (flops - low), 0.1 * first) / at_now

    def left(self, stretches: Sequence[Stretch], now: float, steps: int, done: int, others: float) -> float | None:
        """Seconds that the stretches take, of which `done` of `steps` steps of the first epoch are over.

        now: FLOPs of the network. others: what an epoch takes beside its steps, as a part of them, before it has been
        timed or measured. None before the first step.
        """
        if self.epochs:
            last, seconds = next(reversed(self.epochs.items()))
            epoch = seconds * self.relative(now, last)
        elif self.step is not None:
            epoch = self.step * steps * (1 + (others if self.others is None else self.others))
        else:
            return None
        total = sum(stretch.epochs * self.relative(stretch.flops, now) for stretch in stretches)
        return max(0.0, epoch * (total - done / steps))


def calibrate(
    net: nn.Module, task: Task, batch: tuple[Tensor, Tensor], ends: Sequence[float], held_out: int = 0, size: int = 1
) -> dict[float, Timed]:
    """How long a training step and an evaluation take, by FLOPs, for copies of `net` with about `ends` FLOPs.

    batch: of training. held_out: the number of images of an evaluation, of which `size` are in a batch; it is timed
    with those of a training batch at most.
    The network, and the state of the random generators, stay as they are.
    """
    devices = [batch[0].device] if batch[0].device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        twins = (_scaled(copy.deepcopy(net), end) for end in ends)
        return {
            float(CostModel(ChannelGraph.of(twin)).flops()): _timed_epoch(twin, task, batch, held_out, size)
            for twin in twins
        }


def _timed_epoch(net: nn.Module, task: Task, batch: tuple[Tensor, Tensor], held_out: int, size: int) -> Timed:
    images, targets = batch
    size = min(size, held_out, len(images))  # a batch of evaluation may take minutes; its share is what counts
    net.train()
    step = _timed(lambda: task.loss(net(images), targets).backward(), images)  # type: ignore[no-untyped-call]
    if not size:
        return Timed(step)
    net.eval()
    with torch.no_grad():
        return Timed(step, _timed(lambda: net(images[:size]), images) * held_out / size)


def _scaled(net: nn.Module, flops: float) -> nn.Module:
    """The network with its widths times the largest number that gives at most these FLOPs.

    They are those of its convolutions, or of its linear layers if it has none.
    """
    graph = ChannelGraph.of(net)
    model, low, high = CostModel(graph), 0.0, 64.0
    linear = all(group.kind != "convolution" for group in graph.groups)
    if abs(model.flops() - flops) < 0.01 * flops:
        return net
    for _ in range(30):
        middle = (low + high) / 2
        fits = model.flops(scaled_widths(graph, middle, linear)) <= flops
        low, high = (middle, high) if fits else (low, middle)
    now = graph.widths
    changes = {name: width for name, width in scaled_widths(graph, low, linear).items() if width != now[name]}
    if changes:
        resize(net, changes, seed=0)
    return net


def _timed(call: Callable[[], object], images: Tensor) -> float:
    """Seconds of a call: the median of `STEPS` after one that is not counted, or of fewer that take 2 seconds."""
    found: list[float] = []
    start = time.perf_counter()
    for _ in range(STEPS + 1):
        begin = _now(images)
        call()
        found.append(_now(images) - begin)
        if time.perf_counter() - start > 2 and len(found) > 1:
            break
    return sorted(found[1:])[len(found[1:]) // 2]


def _now(images: Tensor) -> float:
    if images.device.type == "cuda":
        torch.cuda.synchronize(images.device)
    return time.perf_counter()


def duration(seconds: float) -> str:
    """Seconds as text of two digits or so: "45 s", "2.3 min", "13 min", "3.4 h", "2.1 days".

    >>> duration(45), duration(140), duration(754), duration(12345), duration(181440)
    ('45 s', '2.3 min', '13 min', '3.4 h', '2.1 days')
    """
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 9.95 * 60:
        return f"{seconds / 60:.1f} min"
    if seconds < 100 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.1f} days"
