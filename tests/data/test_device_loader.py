from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch.nn import functional

from budgetnet.data import DeviceLoader, ImageArrays
from budgetnet.errors import UsageError

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)


def random_set(size: int, channels: int = 3, height: int = 7, width: int = 9) -> ImageArrays:
    images = torch.randint(256, (size, channels, height, width), generator=torch.Generator().manual_seed(0))
    return ImageArrays(images.to(torch.uint8), torch.arange(size), num_classes=size)


def normalised(image: torch.Tensor) -> torch.Tensor:
    """One image (C, H, W), slowly and by the definition."""
    return torch.stack(
        [(c.double() / 255 - mean) / std for c, mean, std in zip(image, MEAN, STD, strict=False)]
    ).float()


@pytest.mark.parametrize(("padding", "flip"), [(0, False), (0, True), (2, False), (2, True), (4, True)])
def test_every_image_is_a_crop_of_its_padded_self_flipped_or_not(padding, flip):
    data = random_set(60)
    loader = DeviceLoader(data, 20, mean=MEAN, std=STD, padding=padding, flip=flip, shuffle=True)
    _, height, width = data.shape
    found: Counter[tuple[int, int, bool]] = Counter()
    for images, labels in loader:
        for image, label in zip(images, labels.tolist(), strict=True):
            padded = functional.pad(data.images[label], (padding,) * 4)
            candidates = {}
            for top in range(2 * padding + 1):
                for left in range(2 * padding + 1):
                    window = padded[:, top : top + height, left : left + width]
                    candidates[top, left, False] = window
                    candidates[top, left, True] = window.flip(2)
            same = [key for key, window in candidates.items() if torch.allclose(normalised(window), image, atol=1e-5)]
            assert len(same) == 1
            found[same[0]] += 1
    assert found.total() == 60
    assert {mirrored for _, _, mirrored in found} == ({False, True} if flip else {False})
    if padding:
        assert len({(top, left) for top, left, _ in found}) > (2 * padding + 1) ** 2 / 3


def test_crops_and_flips_are_uniform():
    mark = torch.zeros(20_000, 1, 4, 4, dtype=torch.uint8)
    mark[:, :, 0, 0] = 255
    loader = DeviceLoader(
        ImageArrays(mark, torch.zeros(20_000, dtype=torch.long), 1),
        20_000,
        mean=(0.0,),
        std=(1.0,),
        padding=1,
        flip=True,
    )
    ((images, _),) = loader
    share = images.mean(0)[0]
    # the window moves by -1, 0 or 1, so the corner is seen at 0 or 1 of each axis, in 4 of 9 cases; half are mirrored
    expected = torch.zeros(4, 4)
    expected[:2, :2] = expected[:2, 2:] = 1 / 18
    assert torch.allclose(share, expected, atol=0.008)


def test_an_image_is_augmented_alike_in_any_batch_size_and_anew_in_another_epoch():
    def by_label(batch_size: int, epoch: int) -> dict[int, torch.Tensor]:
        loader = DeviceLoader(
            random_set(60), batch_size, mean=MEAN, std=STD, padding=3, flip=True, shuffle=True, seed=7
        )
        loader.set_epoch(epoch)
        return {int(label): image for images, labels in loader for image, label in zip(images, labels, strict=True)}

    first, second, later = by_label(60, 0), by_label(7, 0), by_label(60, 1)
    assert all(torch.equal(first[label], second[label]) for label in range(60))
    assert sum(torch.equal(first[label], later[label]) for label in range(60)) < 10


@pytest.mark.parametrize("padding", [0, 2])
def test_memory_format_is_as_asked_and_values_are_the_same(padding):
    options = {"mean": MEAN, "std": STD, "padding": padding, "flip": True}
    ((plain, _),) = DeviceLoader(random_set(8), 8, **options)
    ((last, _),) = DeviceLoader(random_set(8), 8, channels_last=True, **options)
    assert plain.is_contiguous() and plain.dtype == torch.float32
    assert last.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(plain, last)


def test_float_images_are_normalised_without_the_255_and_left_as_they_were():
    data = random_set(10)
    floats = ImageArrays(data.images.float() / 255, data.labels, data.num_classes)
    before = floats.images.clone()
    ((expected, _),) = DeviceLoader(data, 10, mean=MEAN, std=STD)
    for _ in range(2):
        ((images, _),) = DeviceLoader(floats, 10, mean=MEAN, std=STD)
        assert torch.allclose(images, expected, atol=1e-5)
    assert torch.equal(floats.images, before)


def test_normalising_by_its_own_statistics_gives_mean_zero_and_deviation_one():
    data = random_set(50)
    mean, std = data.statistics()
    ((images, _),) = DeviceLoader(data, 50, mean=mean, std=std)
    assert images.mean((0, 2, 3)).abs().max() < 1e-5
    assert (images.std((0, 2, 3), correction=0) - 1).abs().max() < 1e-5


@pytest.mark.parametrize("options", [{"mean": (0.5,)}, {"std": (0.1, 0.1, 0.0)}, {"padding": -1}, {"padding": 1.5}])
def test_impossible_options_are_refused_in_one_line(options):
    with pytest.raises(UsageError) as error:
        DeviceLoader(random_set(4), 2, **{"mean": MEAN, "std": STD, **options})
    assert "\n" not in str(error.value)
