"""The loss of knowledge distillation is .6 CE + .4 T² KL(teacher ‖ student)."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional

from budgetnet.tasks import Classification
from budgetnet.tasks.distilled import Distilled, distillation_losses


def example() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(5, 7, generator=generator, dtype=torch.float64) for _ in range(2))
    return student, teacher, torch.arange(5)


def test_the_loss_equals_its_definition() -> None:
    student, teacher, labels = example()
    cross_entropy = functional.cross_entropy(student, labels, reduction="none")
    for n, value in enumerate(distillation_losses(student, teacher, cross_entropy).tolist()):
        p, q = ((logits[n] / 4).exp() / (logits[n] / 4).exp().sum() for logits in (teacher, student))
        kl = sum(float(p[k]) * math.log(float(p[k]) / float(q[k])) for k in range(7))
        assert value == pytest.approx(0.6 * float(cross_entropy[n]) + 0.4 * 16 * kl, abs=1e-12)


def test_the_mean_of_the_losses_is_the_batchmean_of_torch() -> None:
    student, teacher, labels = example()
    losses = functional.cross_entropy(student, labels, reduction="none")
    kl = functional.kl_div((student / 4).log_softmax(1), (teacher / 4).softmax(1), reduction="batchmean")
    expected = 0.6 * losses.mean() + 0.4 * 16 * kl
    torch.testing.assert_close(distillation_losses(student, teacher, losses).mean(), expected)


def test_a_student_that_agrees_with_its_teacher_has_the_loss_of_the_labels_alone() -> None:
    student, _, labels = example()
    losses = functional.cross_entropy(student, labels, reduction="none")
    torch.testing.assert_close(distillation_losses(student, student + 3.0, losses), 0.6 * losses)


def test_no_gradient_reaches_the_teacher() -> None:
    student, teacher, labels = example()
    student.requires_grad_(), teacher.requires_grad_()
    losses = functional.cross_entropy(student, labels, reduction="none")
    distillation_losses(student, teacher, losses).sum().backward()
    assert teacher.grad is None and student.grad is not None


def test_of_maps_every_place_counts_alike() -> None:
    student, teacher, labels = example()
    losses = functional.cross_entropy(student, labels, reduction="none")
    maps = [logits[:, :, None, None].expand(-1, -1, 2, 3) for logits in (student, teacher)]
    torch.testing.assert_close(distillation_losses(*maps, losses), distillation_losses(student, teacher, losses))


def test_a_distilled_task_is_the_task_but_for_its_loss_where_a_teacher_has_looked_at_the_images() -> None:
    logits, taught, labels = (part.float() if part.is_floating_point() else part for part in example())
    plain = Classification()
    task = Distilled(plain, lambda device: lambda images: images @ taught, teacher_flops=1)
    images = torch.eye(5)
    targets = task.taught(images, labels)
    assert torch.equal(targets[:, 0].long(), labels) and torch.equal(targets[:, 1:], taught)
    expected = distillation_losses(logits, taught, plain.losses(logits, labels))
    assert torch.equal(task.training_losses(logits, targets), expected)
    assert torch.equal(task.training_losses(logits, labels), plain.losses(logits, labels))
    assert torch.equal(task.losses(logits, targets), plain.losses(logits, labels))
    assert torch.equal(task.sums(logits, targets), plain.sums(logits, labels))
