"""A task with a teacher: a network learns from labels and from a trained network's logits (Hinton et al. 2015)."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from budgetnet.errors import UsageError
from budgetnet.tasks.classification import Classification
from budgetnet.tasks.task import Output, Task

TEMPERATURE = 4.0
SHARE = 0.4
"""Of the teacher in the loss; the labels have the rest."""

Teacher = Callable[[Tensor], Tensor]


def distillation_losses(
    logits: Tensor,
    teacher_logits: Tensor,
    losses: Tensor,
    temperature: float = TEMPERATURE,
    share: float = SHARE,
) -> Tensor:
    """(N,): (1 - share) · losses + share · T² · KL(softmax(teacher / T) ‖ softmax(student / T)), by default .6 and .4.

    logits, teacher_logits: (N, K), or (N, K, ...) of which places are averaged; KL is summed over the K classes.
    losses: (N,) of the labels, cross-entropy in the paper (LW-DNA, CVPR 2021). No gradient reaches the teacher, whose
    logits are those of a network in eval mode on the same augmented images.
    """
    student = functional.log_softmax(logits / temperature, dim=1)
    teacher = functional.log_softmax(teacher_logits.detach() / temperature, dim=1)
    divergence = functional.kl_div(student, teacher, reduction="none", log_target=True).sum(1)
    return (1 - share) * losses + share * temperature**2 * divergence.reshape(len(logits), -1).mean(1)


@dataclass(frozen=True)
class Distillation:
    """conf/distill: the directory of a finished run, whose network is the teacher; None: there is none."""

    teacher: str | None = None


class Distilled(Task):
    """Another task, whose training loss is distilled; evaluation is the task's own.

    The targets of a training batch, (N, 1 + K), are the labels and, beside each, the teacher's logits of the image as
    it was augmented. Of labels alone, (N,), the loss is the task's. teacher: gives logits (N, K), without gradients.
    """

    def __init__(self, task: Task, teacher: Callable[[torch.device], Teacher], teacher_flops: int) -> None:
        self.task, self.teacher_flops = task, teacher_flops
        self.name, self.metrics, self.target_dims = task.name, task.metrics, task.target_dims
        self.has_examples = task.has_examples
        self._teacher, self._on = teacher, dict[torch.device, Teacher]()

    @torch.no_grad()
    def taught(self, images: Tensor, targets: Tensor) -> Tensor:
        if images.device not in self._on:
            self._on[images.device] = self._teacher(images.device)
        logits = self._on[images.device](images.float().contiguous())
        return torch.cat([targets[:, None].to(logits.dtype), logits], dim=1)

    def training_losses(self, output: Output, targets: Tensor) -> Tensor:
        losses = self.task.training_losses(output, _labels(targets))
        if targets.dim() == 1:
            return losses
        assert isinstance(output, Tensor)
        return distillation_losses(output, targets[:, 1:], losses)

    def losses(self, output: Output, targets: Tensor) -> Tensor:
        return self.task.losses(output, _labels(targets))

    def sums(self, output: Output, targets: Tensor) -> Tensor:
        return self.task.sums(output, _labels(targets))

    def compute(self, sums: Tensor) -> dict[str, float]:
        return self.task.compute(sums)

    def confusion(self, output: Output, targets: Tensor) -> Tensor | None:
        return self.task.confusion(output, _labels(targets))

    def examples(self, output: Output, targets: Tensor) -> dict[str, Tensor]:
        return self.task.examples(output, targets)

    def read(self, output: Output, classes: Sequence[str]) -> Any:
        return self.task.read(output, classes)

    def outputs(self, num_classes: int) -> int:
        return self.task.outputs(num_classes)

    def output_shape(self, outputs: int, input_shape: tuple[int, int, int]) -> tuple[int, ...]:
        return self.task.output_shape(outputs, input_shape)

    def check(self, output: Any, outputs: int, input_shape: tuple[int, int, int]) -> None:
        self.task.check(output, outputs, input_shape)


def _labels(targets: Tensor) -> Tensor:
    """The classes, with or without a teacher's logits beside them: whole numbers that single precision holds."""
    return targets if targets.dim() == 1 else targets[:, 0].long()


def distilled(task: Task, run: str, num_classes: int, input_shape: tuple[int, int, int]) -> Distilled:
    """The task with the network of a finished run as its teacher: what the run has exported, in eval mode.

    Raises UsageError for a task that is no classification, where there is no finished run, and for a teacher of other
    classes or images.
    """
    if not isinstance(task, Classification):
        raise UsageError(f"distill.teacher={run}: task={task.name} has no classes for an image: leave it out")
    try:
        flops = json.loads(Path(run, "summary.json").read_text(encoding="utf-8"))["flops"]
        program = torch.export.load(Path(run, "model.pt2"))
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        text = " ".join(str(error).split())[:200]
        raise UsageError(
            f"distill.teacher={run}: expected the directory of a finished run with its model.pt2 (export=true): {text}"
        ) from error

    def on(device: torch.device) -> Teacher:
        from torch.export.passes import move_to_device_pass

        moved: Teacher = move_to_device_pass(program, str(device)).module()
        return moved

    try:
        with torch.no_grad():
            output = on(torch.device("cpu"))(torch.zeros(2, *input_shape))
    except (RuntimeError, AssertionError) as error:
        raise UsageError(
            f"distill.teacher={run}: it does not take images of shape {input_shape}: choose one trained on such"
        ) from error
    try:
        task.check(output, task.outputs(num_classes), input_shape)
    except UsageError as error:
        raise UsageError(f"distill.teacher={run}: {error}") from error
    return Distilled(task, on, flops)
