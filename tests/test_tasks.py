from __future__ import annotations

import pytest
import torch
from torch.nn import functional
from torchmetrics.classification import MulticlassJaccardIndex

from budgetnet.tasks import IGNORED, TASKS, Classification, Segmentation


def logits_of(classes: list[list[list[int]]], count: int = 3) -> torch.Tensor:
    """(N, count, H, W) logits that say these classes (N, H, W)."""
    return 5.0 * functional.one_hot(torch.tensor(classes), count).movedim(-1, 1).float()


PREDICTED = [[[0, 0], [1, 1]], [[2, 2], [0, 1]]]
LABELLED = torch.tensor([[[0, 1], [1, IGNORED]], [[IGNORED, IGNORED], [0, 0]]])
"""Two of three labelled pixels are right, then one of two."""


def random_batch(ignored: float = 0.2) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    targets = torch.randint(4, (6, 5, 7), generator=generator)
    targets[torch.rand(targets.shape, generator=generator) < ignored] = IGNORED
    return torch.randn(6, 4, 5, 7, generator=generator), targets


def test_hits_are_the_part_of_labelled_pixels_that_are_right() -> None:
    assert Segmentation().hits(logits_of(PREDICTED), LABELLED).tolist() == [pytest.approx(2 / 3), 0.5]


def test_confusion_counts_labelled_pixels_by_class_and_prediction() -> None:
    confusion = Segmentation().confusion(logits_of(PREDICTED), LABELLED)
    assert confusion.tolist() == [[2, 1, 0], [1, 1, 0], [0, 0, 0]]
    assert confusion.dtype == torch.int64


def test_scores_are_over_all_labelled_pixels_and_classes_that_are_there() -> None:
    task = Segmentation()
    scores = task.scores(task.confusion(logits_of(PREDICTED), LABELLED))
    assert scores == {"top1": pytest.approx(60), "miou": pytest.approx(100 * (2 / 4 + 1 / 3) / 2)}
    assert task.scores(torch.zeros(3, 3, dtype=torch.long)) == {"top1": 0, "miou": 0}


def test_confusions_of_batches_add_up_to_the_published_scores() -> None:
    task, (logits, targets) = Segmentation(), random_batch()
    whole = task.confusion(logits, targets)
    parts = [task.confusion(*part) for part in zip(logits.split(4), targets.split(4), strict=True)]
    assert torch.equal(whole, sum(parts))
    jaccard = MulticlassJaccardIndex(4, ignore_index=IGNORED)(logits, targets)
    assert task.scores(whole)["miou"] == pytest.approx(100 * float(jaccard))


def test_an_images_loss_is_the_mean_of_its_labelled_pixels() -> None:
    task, (logits, targets) = Segmentation(), random_batch()
    losses = task.losses(logits, targets, 0.1)
    for loss, image, target in zip(losses, logits, targets, strict=True):
        expected = functional.cross_entropy(image[None], target[None], label_smoothing=0.1)
        assert float(loss) == pytest.approx(float(expected), rel=1e-5)


def test_an_image_without_a_labelled_pixel_has_no_loss_and_no_gradient() -> None:
    task, (logits, targets) = Segmentation(), random_batch()
    targets[2] = IGNORED
    logits.requires_grad_()
    task.loss(logits, targets).backward()
    assert float(task.losses(logits.detach(), targets)[2]) == float(task.hits(logits, targets)[2]) == 0
    assert logits.grad is not None and logits.grad.isfinite().all()
    assert not logits.grad.movedim(1, -1)[targets == IGNORED].any()
    assert logits.grad.movedim(1, -1)[targets != IGNORED].any(-1).all()


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("name", TASKS)
def test_the_loss_is_the_mean_of_every_examples(name: str, smoothing: float) -> None:
    logits, targets = random_batch()
    if name == "classification":
        logits, targets = logits[:, :, 0, 0], targets[:, 0, 0].clamp(min=0)
    task = TASKS[name]
    losses = task.losses(logits, targets, smoothing)
    assert losses.shape == task.hits(logits, targets).shape == (6,)
    assert float(task.loss(logits, targets, smoothing)) == pytest.approx(float(losses.mean()))


def test_classifications_loss_is_torchs_to_the_bit() -> None:
    logits, targets = torch.randn(50, 7, generator=torch.Generator().manual_seed(0)), torch.arange(50) % 7
    for smoothing in (0.0, 0.1):
        expected = functional.cross_entropy(logits, targets, label_smoothing=smoothing)
        assert torch.equal(Classification().loss(logits, targets, smoothing), expected)
    assert torch.equal(Classification().hits(logits, targets), (logits.argmax(1) == targets).float())


def test_the_loss_does_not_depend_on_the_memory_format() -> None:
    logits, targets = random_batch()
    last = logits.contiguous(memory_format=torch.channels_last)
    assert torch.equal(Segmentation().losses(logits, targets), Segmentation().losses(last, targets))
