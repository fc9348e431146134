"""What a task gives: losses, metrics from sums, and the shape that an output must have."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torchmetrics.classification import MulticlassAccuracy, MulticlassJaccardIndex

from budgetnet.errors import UsageError
from budgetnet.tasks import IGNORED, Classification, Metric, Segmentation, Task, described

PREDICTED = [[[0, 0], [1, 1]], [[2, 2], [0, 1]]]
LABELLED = torch.tensor([[[0, 1], [1, IGNORED]], [[IGNORED, IGNORED], [0, 0]]])
"""Two of three labelled pixels are right, then one of two."""


def logits_of(classes: list[list[list[int]]], count: int = 3) -> Tensor:
    """(N, count, H, W) logits that say these classes (N, H, W)."""
    return 5.0 * functional.one_hot(torch.tensor(classes), count).movedim(-1, 1).float()


def images(count: int = 50, classes: int = 7) -> tuple[Tensor, Tensor]:
    """Logits (count, classes) and the classes of as many images."""
    generator = torch.Generator().manual_seed(0)
    targets = torch.randint(classes, (count,), generator=generator)
    return torch.randn(count, classes, generator=generator), targets


def maps(ignored: float = 0.2) -> tuple[Tensor, Tensor]:
    """Logits (6, 4, 5, 7) and the classes of the pixels, some without."""
    generator = torch.Generator().manual_seed(0)
    targets = torch.randint(4, (6, 5, 7), generator=generator)
    targets[torch.rand(targets.shape, generator=generator) < ignored] = IGNORED
    return torch.randn(6, 4, 5, 7, generator=generator), targets


BATCHES = [(Classification, images), (Segmentation, maps)]


@pytest.mark.parametrize(("kind", "batch"), BATCHES)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_is_the_mean_of_every_examples_and_smoothing_is_of_training_alone(
    kind: type[Task], batch: Any, smoothing: float
) -> None:
    task, (logits, targets) = kind(label_smoothing=smoothing), batch()
    losses, training = task.losses(logits, targets), task.training_losses(logits, targets)
    assert losses.shape == training.shape == (len(targets),)
    assert float(task.loss(logits, targets)) == pytest.approx(float(training.mean()))
    assert torch.equal(losses, kind().losses(logits, targets))
    assert torch.equal(losses, training) == (smoothing == 0)


@pytest.mark.parametrize(("kind", "batch"), BATCHES)
def test_sums_of_batches_add_up_to_those_of_all_and_stay_exact(kind: type[Task], batch: Any) -> None:
    task, (logits, targets) = kind(), batch()
    whole = task.sums(logits, targets)
    parts = [task.sums(*part) for part in zip(logits.split(4), targets.split(4), strict=True)]
    assert torch.equal(sum(part.double() for part in parts), whole.double())
    assert whole.ndim == 1 and not whole.is_floating_point()


@pytest.mark.parametrize(("kind", "batch"), BATCHES)
def test_metrics_are_those_that_the_task_names_in_their_order(kind: type[Task], batch: Any) -> None:
    task = kind()
    assert list(task.compute(task.sums(*batch()).double())) == [metric.name for metric in task.metrics]
    assert task.metric is task.metrics[0]
    written = described(task)
    assert written["name"] == task.name
    assert [Metric(**entry) for entry in written["metrics"]] == list(task.metrics)


# Metrics --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("higher", "best", "worst"), [(True, 2.0, -2.0), (False, -2.0, 2.0)])
def test_a_metric_knows_which_way_is_better(higher: bool, best: float, worst: float) -> None:
    metric = Metric("it", "It", "dB", higher_is_better=higher)
    assert metric.better(best, worst) and not metric.better(worst, best) and not metric.better(best, best)
    assert metric.better(worst, metric.worst)
    assert max([worst, best], key=metric.gain) == best


@pytest.mark.parametrize(("unit", "text", "label"), [("%", "3.14 %", "It (%)"), ("", "3.142", "It")])
def test_a_metric_is_written_with_its_unit_where_it_has_one(unit: str, text: str, label: str) -> None:
    metric = Metric("it", "It", unit)
    assert (metric.text(3.14159), metric.label) == (text, label)


# Classification -------------------------------------------------------------------------------------------------------


def test_classifications_losses_are_torchs_to_the_bit() -> None:
    logits, targets = images()
    for smoothing in (0.0, 0.1):
        expected = functional.cross_entropy(logits, targets, label_smoothing=smoothing)
        assert torch.equal(Classification(smoothing).loss(logits, targets), expected)
    assert torch.equal(
        Classification(0.1).losses(logits, targets), functional.cross_entropy(logits, targets, reduction="none")
    )


@pytest.mark.parametrize("classes", [3, 7])
def test_accuracies_are_torchmetrics_to_the_bit(classes: int) -> None:
    """So they are divided in single precision: a third is 33.3333343…, not 33.3333333…"""
    logits, targets = images(classes=classes)
    task = Classification()
    found = task.compute(task.sums(logits, targets).double())
    for name, k in (("top1", 1), ("top5", min(5, classes))):
        accuracy = MulticlassAccuracy(classes, top_k=k, average="micro")
        assert found[name] == 100 * float(accuracy(logits, targets))
    third = task.compute(torch.tensor([1, 1, 3]).double())["top1"]
    assert third == 100 * float(torch.tensor(1 / 3)) != 100 / 3


def test_of_equal_logits_the_first_class_is_the_answer() -> None:
    sums = Classification().sums(torch.zeros(4, 10), torch.tensor([0, 1, 9, 0]))
    assert sums[[0, 2]].tolist() == [2, 4]


# Segmentation ---------------------------------------------------------------------------------------------------------


def test_sums_count_labelled_pixels_by_class_and_prediction() -> None:
    assert Segmentation().sums(logits_of(PREDICTED), LABELLED).tolist() == [2, 1, 0, 1, 1, 0, 0, 0, 0]


def test_scores_are_over_all_labelled_pixels_and_classes_that_are_there() -> None:
    task = Segmentation()
    scores = task.compute(task.sums(logits_of(PREDICTED), LABELLED).double())
    assert scores == {"miou": pytest.approx(100 * (2 / 4 + 1 / 3) / 2), "pixel_accuracy": pytest.approx(60)}
    assert task.compute(torch.zeros(9).double()) == {"miou": 0, "pixel_accuracy": 0}


def test_mean_iou_and_pixel_accuracy_are_torchmetrics() -> None:
    task, (logits, targets) = Segmentation(), maps()
    scores = task.compute(task.sums(logits, targets).double())
    jaccard = MulticlassJaccardIndex(4, ignore_index=IGNORED)(logits, targets)
    accuracy = MulticlassAccuracy(4, average="micro", ignore_index=IGNORED)(logits, targets)
    assert scores == {
        "miou": pytest.approx(100 * float(jaccard)),
        "pixel_accuracy": pytest.approx(100 * float(accuracy)),
    }


def test_an_images_loss_is_the_mean_of_its_labelled_pixels() -> None:
    task, (logits, targets) = Segmentation(0.1), maps()
    for loss, image, target in zip(task.training_losses(logits, targets), logits, targets, strict=True):
        expected = functional.cross_entropy(image[None], target[None], label_smoothing=0.1)
        assert float(loss) == pytest.approx(float(expected), rel=1e-5)


def test_an_image_without_a_labelled_pixel_has_no_loss_and_no_gradient() -> None:
    task, (logits, targets) = Segmentation(), maps()
    targets[2] = IGNORED
    logits.requires_grad_()
    task.loss(logits, targets).backward()
    assert float(task.losses(logits.detach(), targets)[2]) == 0
    assert logits.grad is not None and logits.grad.isfinite().all()
    assert not logits.grad.movedim(1, -1)[targets == IGNORED].any()
    assert logits.grad.movedim(1, -1)[targets != IGNORED].any(-1).all()


def test_the_loss_does_not_depend_on_the_memory_format() -> None:
    logits, targets = maps()
    last = logits.contiguous(memory_format=torch.channels_last)
    assert torch.equal(Segmentation().losses(logits, targets), Segmentation().losses(last, targets))


# What a network must look like ----------------------------------------------------------------------------------------

RIGHT = [(Classification(), (2, 10)), (Segmentation(), (2, 10, 8, 6))]


@pytest.mark.parametrize(("task", "shape"), RIGHT)
def test_an_output_of_the_tasks_shape_is_taken(task: Task, shape: tuple[int, ...]) -> None:
    outputs = task.outputs(num_classes=10)
    assert (2, *task.output_shape(outputs, (3, 8, 6))) == shape
    task.check(torch.zeros(shape), outputs, (3, 8, 6))


@pytest.mark.parametrize(("task", "shape"), RIGHT)
@pytest.mark.parametrize(
    ("wrong", "found"),
    [
        (lambda shape: torch.zeros(2, 9, *shape[2:]), "(2, 9"),
        (lambda shape: torch.zeros(*shape, 1), ", 1)"),
        (lambda shape: [torch.zeros(shape)], "a list"),
        (lambda shape: {"out": torch.zeros(shape)}, "a dict"),
    ],
    ids=["classes", "dimensions", "list", "dict"],
)
def test_any_other_output_is_one_line_with_what_it_is_and_what_was_expected(
    task: Task, shape: tuple[int, ...], wrong: Any, found: str
) -> None:
    with pytest.raises(UsageError) as caught:
        task.check(wrong(shape), 10, (3, 8, 6))
    said = str(caught.value)
    assert found in said and f"expected a tensor of shape {shape} for {task.name}" in said and "\n" not in said
