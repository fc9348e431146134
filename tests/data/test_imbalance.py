"""Long-tailed subsets have the published numbers of images in every class."""

from __future__ import annotations

import math

import pytest
import torch

from budgetnet.data import readers
from budgetnet.data.datamodule import DataModule
from budgetnet.data.imbalance import long_tailed
from budgetnet.data.options import DatasetOptions
from budgetnet.errors import UsageError


def shuffled(classes: int, each: int) -> torch.Tensor:
    labels = torch.arange(classes).repeat(each)
    return labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))]


@pytest.mark.parametrize(
    ("factor", "counts"),
    [
        (0.01, [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50]),
        (0.02, [5000, 3237, 2096, 1357, 878, 568, 368, 238, 154, 100]),
        (0.1, [5000, 3871, 2997, 2320, 1796, 1391, 1077, 834, 645, 500]),
        (1, [5000] * 10),
    ],
)
def test_a_long_tailed_cifar10_has_these_numbers_of_images(factor: float, counts: list[int]) -> None:
    labels = shuffled(10, 5000)
    assert torch.bincount(labels[long_tailed(labels, factor)]).tolist() == counts


@pytest.mark.parametrize(("factor", "images"), [(0.01, 10_847), (0.02, 12_608), (0.1, 19_573)])
def test_a_long_tailed_cifar100_has_so_many_images(factor: float, images: int) -> None:
    labels = shuffled(100, 500)
    counts = torch.bincount(labels[long_tailed(labels, factor)]).tolist()
    assert sum(counts) == images and (counts[0], counts[-1]) == (500, round(500 * factor))
    assert counts == sorted(counts, reverse=True)


def test_of_each_class_the_first_images_are_kept_in_their_order() -> None:
    labels = torch.tensor([1, 0, 1, 0, 1, 0, 1, 0])
    assert long_tailed(labels, 0.5).tolist() == [0, 1, 2, 3, 5, 7]


def test_of_classes_that_differ_each_shrinks_by_its_own_part() -> None:
    labels = torch.tensor([0] * 10 + [1] * 40 + [2] * 20)
    assert torch.bincount(labels[long_tailed(labels, 0.25)]).tolist() == [10, 20, 5]


@pytest.mark.parametrize("factor", [0, -0.1, 1.5, float("nan"), True, "0.1"])
def test_another_factor_is_refused(factor: object) -> None:
    with pytest.raises(UsageError, match="expected a number above 0, to 1"):
        long_tailed(shuffled(3, 4), factor)  # type: ignore[arg-type]


def test_a_class_that_would_be_left_empty_and_masks_are_refused() -> None:
    with pytest.raises(UsageError, match="leaves none of the 4 images of class 2"):
        long_tailed(shuffled(3, 4), 0.1)
    with pytest.raises(UsageError, match="leaves none of the 0 images of class 3"):
        long_tailed(shuffled(3, 4), 0.5, num_classes=4)
    with pytest.raises(UsageError, match=r"not labels of shape \(3, 3\) and type uint8"):
        long_tailed(torch.zeros(2, 3, 3, dtype=torch.uint8), 0.5)


def test_a_dataset_of_digits_has_a_long_tail_in_training_alone() -> None:
    def digits(**options: object) -> DataModule:
        return DataModule(DatasetOptions(validation=360, **options), readers.digits)  # type: ignore[arg-type]

    data, whole = digits(imbalance=0.1).splits, digits().splits
    counts = torch.bincount(data.train.labels).tolist()
    full = torch.bincount(whole.train.labels).tolist()
    assert counts == [math.floor(count * 0.1 ** (number / 9) + 1e-9) for number, count in enumerate(full)]
    assert data.validation is not None and whole.validation is not None
    assert torch.equal(data.validation.labels, whole.validation.labels)
    assert torch.equal(data.test.labels, whole.test.labels)
