from __future__ import annotations

import numpy as np
import pytest
import torch

from budgetnet.data import ImageArrays, hold_out, stratified_order
from budgetnet.errors import UsageError

LABELS = torch.randint(7, (1000,), generator=torch.Generator().manual_seed(0)) ** 2 % 7  # four classes, unequal


@pytest.mark.parametrize("count", [0, 1, 10, 137, 500, 1000])
def test_every_prefix_holds_each_class_in_proportion(count):
    order = stratified_order(LABELS, 0)
    assert torch.equal(order.sort().values, torch.arange(1000))
    expected = LABELS.bincount(minlength=7) * count / 1000
    assert (LABELS[order[:count]].bincount(minlength=7) - expected).abs().max() <= 1


def test_equal_classes_are_held_out_equally():
    labels = torch.arange(50_000) % 10
    _, held = hold_out(labels, 5000, seed=0)
    assert labels[held].bincount().tolist() == [500] * 10


def test_a_split_is_disjoint_complete_and_a_function_of_its_seed():
    kept, held = hold_out(LABELS, 137, seed=3)
    assert len(held) == 137
    assert torch.equal(torch.cat([kept, held]).sort().values, torch.arange(1000))
    again = hold_out(LABELS, 137, seed=3)
    assert torch.equal(kept, again[0]) and torch.equal(held, again[1])
    assert not torch.equal(held, hold_out(LABELS, 137, seed=4)[1])


def test_a_split_is_random_within_a_class():
    labels = torch.zeros(1000, dtype=torch.long)
    _, held = hold_out(labels, 500, seed=0)
    assert 200 < int((held < 500).sum()) < 300


def test_statistics_are_those_of_the_pixels():
    images = torch.randint(256, (20, 3, 5, 4), dtype=torch.uint8)
    for data in (ImageArrays.of(images, [0] * 20), ImageArrays.of(images / 255, [0] * 20)):
        mean, std = data.statistics()
        assert np.allclose(mean, (images.double() / 255).mean((0, 2, 3)), atol=1e-7)
        assert np.allclose(std, (images.double() / 255).std((0, 2, 3), correction=0), atol=1e-7)


def test_a_constant_channel_has_deviation_one():
    assert ImageArrays.of(torch.full((2, 1, 2, 2), 51, dtype=torch.uint8), [0, 0]).statistics() == ((0.2,), (1.0,))


def test_arrays_of_other_types_are_taken():
    data = ImageArrays.of(np.zeros((3, 1, 2, 2)), np.array([0, 2, 1], dtype=np.uint8))
    assert (data.images.dtype, data.labels.dtype, data.num_classes) == (torch.float32, torch.int64, 3)
    assert repr(data) == "ImageArrays(3 images of 1x2x2, 3 classes)"


@pytest.mark.parametrize(
    ("images", "labels", "names"),
    [
        (torch.zeros(3, 2, 2, dtype=torch.uint8), [0, 1, 2], r"\(3, 2, 2\)"),
        (torch.zeros(0, 1, 2, 2, dtype=torch.uint8), [], r"\(0, 1, 2, 2\)"),
        (torch.zeros(3, 1, 2, 2, dtype=torch.int32), [0, 1, 2], "int32"),
        (torch.zeros(3, 1, 2, 2), [0, 1], r"\(2,\)"),
        (torch.zeros(3, 1, 2, 2), [0.0, 1.0, 2.0], "float32 are numbers to be estimated"),
        (torch.zeros(3, 1, 2, 2), [True, False, True], "bool"),
        (torch.zeros(3, 1, 2, 2), [0, 1, -1], "-1"),
        (torch.zeros(3, 1, 2, 2), [0, 1, 4], "4"),
    ],
)
def test_images_and_labels_that_do_not_fit_are_refused_in_one_line(images, labels, names):
    with pytest.raises(UsageError, match=names) as error:
        ImageArrays.of(images, labels, num_classes=4)
    assert "\n" not in str(error.value)


def test_labels_of_a_float_type_are_numbers_to_be_estimated():
    images = torch.zeros(3, 1, 2, 2)
    data = ImageArrays.of(images, np.array([0.5, -2.0, 1e6]))
    assert (data.labels.dtype, data.labels.tolist(), data.num_classes) == (torch.float32, [0.5, -2.0, 1e6], 1)
    assert repr(data) == "ImageArrays(3 images of 1x2x2 with a number each)"
    assert data.subset(torch.tensor([2, 0])).labels.tolist() == [1e6, 0.5]
    with pytest.raises(UsageError, match="expected finite numbers"):
        ImageArrays.of(images, [0.0, float("nan"), 1.0])


def test_images_with_numbers_are_held_out_at_random():
    ascending = torch.arange(1000.0)
    kept, held = hold_out(ascending, 500, seed=0)
    assert torch.equal(torch.cat([kept, held]).sort().values, torch.arange(1000))
    assert 200 < int((held < 500).sum()) < 300
    assert torch.equal(held, hold_out(torch.rand(1000), 500, seed=0)[1])
