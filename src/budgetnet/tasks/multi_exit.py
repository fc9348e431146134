"""The task of a network with several exits: every exit is trained for it, and each is judged on its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from budgetnet.backbones.exits import ExitNetwork
from budgetnet.errors import UsageError
from budgetnet.tasks.task import Output, Task


class MultiExit(Task):
    """A task for each of several exits: outputs are a tuple with one tensor for each exit, the first exit first.

    The loss of an image is the sum of the losses of the exits. The metrics are those of the last exit, under the names
    that they have in the wrapped task, and then the first metric of every exit, named "exit1_" and its name, and so on.
    """

    def __init__(self, task: Task, exits: int) -> None:
        self.task, self.exits = task, exits
        self.name, self.target_dims, self.has_examples = task.name, task.target_dims, task.has_examples
        first = task.metric
        each = (
            replace(first, name=f"exit{number}_{first.name}", title=f"{first.title}, exit {number}", in_tables=False)
            for number in range(1, exits + 1)
        )
        self.metrics = (*task.metrics, *each)

    def losses(self, output: Output, targets: Tensor) -> Tensor:
        return torch.stack([self.task.losses(each, targets) for each in output]).sum(0)

    def labels(self, targets: Tensor) -> Tensor:
        """The labels in the targets of a training batch."""
        return targets

    def exit_losses(self, output: Output, targets: Tensor) -> Tensor:
        """The loss of every example at every exit, (N, exits), that training minimises."""
        return torch.stack([self.task.training_losses(each, targets) for each in output], 1)

    def training_losses(self, output: Output, targets: Tensor) -> Tensor:
        return self.exit_losses(output, targets).sum(1)

    def loss(self, output: Output, targets: Tensor) -> Tensor:
        return torch.stack([self.task.loss(each, targets) for each in output]).sum()

    def sums(self, output: Output, targets: Tensor) -> Tensor:
        """The sums of the wrapped task for every exit, side by side."""
        return torch.cat([self.task.sums(each, targets) for each in output])

    def compute(self, sums: Tensor) -> dict[str, float]:
        found = [self.task.compute(part) for part in sums.chunk(self.exits)]
        each = {f"exit{number}_{name}": at[name] for number, at in enumerate(found, 1) for name in [self.metric.name]}
        return {**found[-1], **each}

    def confusion(self, output: Output, targets: Tensor) -> Tensor | None:
        return self.task.confusion(output[-1], targets)

    def examples(self, output: Output, targets: Tensor) -> dict[str, Tensor]:
        return self.task.examples(output[-1], targets)

    def read(self, output: Output, classes: Sequence[str]) -> Any:
        """What the last exit says."""
        return self.task.read(output[-1], classes)

    def outputs(self, num_classes: int) -> int:
        return self.task.outputs(num_classes)

    def output_shape(self, outputs: int, input_shape: tuple[int, int, int]) -> tuple[int, ...]:
        return self.task.output_shape(outputs, input_shape)

    def check(self, output: Any, outputs: int, input_shape: tuple[int, int, int]) -> None:
        if not isinstance(output, tuple) or len(output) != self.exits:
            found = f"{len(output)} outputs" if isinstance(output, tuple) else f"a {type(output).__name__}"
            raise UsageError(f"it gives {found} for two images: expected a tuple of {self.exits}, one for each exit")
        for each in output:
            self.task.check(each, outputs, input_shape)

    def __repr__(self) -> str:
        return f"MultiExit({self.task!r}, {self.exits})"


def task_of(net: nn.Module, task: Task) -> Task:
    """The task that a network is trained for, on data for `task`: a network with exits has it once for each.

    Raises UsageError for a network with exits and a task with a teacher.
    """
    if not isinstance(net, ExitNetwork):
        return task
    if task.teacher_flops:
        raise UsageError(
            "distill.teacher: a network with exits has no one output that could learn from it: leave it out, or take "
            "method.imta=true, by which exits learn from the last one"
        )
    return MultiExit(task, net.exits)
