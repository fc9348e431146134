"""Images with masks: read, split, cropped and flipped together."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from budgetnet.data import DeviceLoader, ImageArrays, image_masks, part_labels, shapes
from budgetnet.data.datamodule import DataModule
from budgetnet.data.options import DatasetOptions
from budgetnet.errors import UsageError
from budgetnet.tasks import IGNORED

BYTES = {"mean": (0.0,) * 3, "std": (1 / 255,) * 3}
"""Normalised by these, pixels keep their values."""


def alike(size: int = 40, height: int = 7, width: int = 9) -> ImageArrays:
    """Images whose pixels, 1 to 200 or (unlabelled) 201, are their classes."""
    values = torch.randint(1, 202, (size, height, width), generator=torch.Generator().manual_seed(0))
    masks = torch.where(values > 200, -1, values)
    return ImageArrays.of(values[:, None].repeat(1, 3, 1, 1).to(torch.uint8), masks, 201)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(("padding", "flip"), [(0, False), (0, True), (3, False), (3, True)])
def test_masks_are_cropped_and_flipped_as_their_images_are(padding: int, flip: bool, channels_last: bool) -> None:
    options = {**BYTES, "padding": padding, "flip": flip, "shuffle": True, "channels_last": channels_last}
    loader = DeviceLoader(alike(), 16, **options)
    ignored = []
    for epoch in range(2):  # mirrored copies are made in the first, and used again in the second
        loader.set_epoch(epoch)
        for images, masks in loader:
            pixels = images[:, 0].round().long()
            assert masks.dtype == torch.int64 and masks.shape == pixels.shape
            unlabelled = (pixels == 201) | (pixels == 0)  # the padding is black
            assert torch.equal(masks, torch.where(unlabelled, IGNORED, pixels))
            ignored.append(float((pixels == 0).float().mean()))
    assert (max(ignored) > 0.1) == bool(padding)


def test_the_draws_are_those_of_a_classification() -> None:
    data = alike()
    plain = ImageArrays(data.images, torch.arange(len(data)), len(data))
    options = {**BYTES, "padding": 3, "flip": True, "shuffle": True, "seed": 5}
    for (with_masks, _), (without, _) in zip(*(DeviceLoader(d, 16, **options) for d in (data, plain)), strict=True):
        assert torch.equal(with_masks, without)


def module(*sizes: int, **options) -> DataModule:
    """A dataset of as many parts, each of different images."""
    parts = [alike(size, 8, 8) for size in sizes]
    return DataModule(DatasetOptions(**{"batch_size": 4, **options}), lambda root, download: tuple(parts))


def test_masks_are_held_out_at_random_and_limited() -> None:
    data = module(40, 10, validation=8, limit_train=20, limit_test=5)
    assert (data.num_classes, data.input_shape) == (201, (3, 8, 8))
    assert [len(part) for part in data.splits] == [20, 8, 5]
    again = module(40, 10, validation=8, split_seed=1)
    assert not torch.equal(data.splits.validation.labels, again.splits.validation.labels)
    (images, masks), *_ = data.val_dataloader()
    assert images.shape == (8, 3, 8, 8) and masks.shape == (8, 8, 8)


def test_a_source_may_bring_its_own_validation_set() -> None:
    assert [len(part) for part in module(40, 12, 10, validation=None).splits] == [40, 12, 10]
    none = module(40, 12, 10, validation=0).splits
    assert none.validation is None and len(none.train) == 40
    with pytest.raises(UsageError, match=r"validation=8: images has a validation set of its own, of 12 images; set"):
        module(40, 12, 10, validation=8).setup()
    with pytest.raises(UsageError, match=r"validation=null: images has no validation set of its own; set .*=4, or 0"):
        module(40, 10, validation=None).setup()


def test_arrays_of_any_integers_are_masks_and_what_does_not_fit_is_refused() -> None:
    images = np.zeros((2, 1, 2, 2), np.uint8)
    data = ImageArrays.of(images, np.array([[[0, 1], [2, -1]], [[255, 0], [0, 0]]]))
    assert data.num_classes == 3 and data.labels[0].tolist() == [[0, 1], [2, 255]]
    assert repr(data) == "ImageArrays(2 images of 1x2x2 with masks, 3 classes)"
    for masks, names in (
        (np.zeros((2, 2, 3), int), r"\(2, 2, 3\)"),
        (np.full((2, 2, 2), 4), "classes from 4 to 4"),
        (np.full((2, 2, 2), 300), "class 300"),
        (np.full((2, 2, 2), -1), "no class"),
        (np.zeros((2, 2, 2)), "float"),
    ):
        with pytest.raises(UsageError, match=names) as error:
            ImageArrays.of(images, masks, 4)
        assert "\n" not in str(error.value)
    mixed = DataModule(DatasetOptions(), lambda root, download: (data, ImageArrays.of(images, [0, 1], 3)))
    with pytest.raises(UsageError, match="with masks"):
        mixed.setup()


# -- what is generated ------------------------------------------------------------------------------------------------


def test_shapes_are_always_the_same_of_four_classes_and_bright_where_they_are() -> None:
    train, test = shapes(train=60, test=10, image_size=24)
    again, _ = shapes(train=30, test=10, image_size=24)
    assert torch.equal(train.images[:30], again.images) and torch.equal(train.labels[:30], again.labels)
    assert not torch.equal(test.images, train.images[:10])
    assert (train.shape, len(test), train.num_classes) == ((3, 24, 24), 10, 4)
    shares = train.labels.flatten().bincount() / train.labels.numel()
    assert len(shares) == 4 and 0.5 < shares[0] < 0.9 and shares[1:].min() > 0.02
    assert torch.equal(train.images.amin(1) >= 128, train.labels > 0)
    with pytest.raises(UsageError, match="image_size=4: expected a whole number, 8 to"):
        shapes(image_size=4)


# -- folders ----------------------------------------------------------------------------------------------------------


def write(path: Path, pixels: np.ndarray, mode: str | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(pixels)
    (image if mode is None else image.convert(mode)).save(path)


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """Three training images, two to validate on, one to test on, 5 high and 6 wide; red is the class."""
    for part, count in (("train", 3), ("val", 2), ("test", 1)):
        for number in range(count):
            mask = (np.arange(30).reshape(5, 6) + number) % 3
            image = np.stack([mask, mask * 0 + 9, mask * 0 + 7], axis=2)
            write(tmp_path / part / "images" / f"{number}.png", image.astype(np.uint8))
            mask[0, 0] = 255
            write(tmp_path / part / "masks" / f"{number}.png", mask.astype(np.uint8))
    return tmp_path


def test_folders_of_images_and_masks_are_three_sets_or_two(folders: Path) -> None:
    sets = image_masks(folders)
    assert [len(part) for part in sets] == [3, 2, 1]
    for part in sets:
        assert (part.shape, part.num_classes) == ((3, 5, 6), 3)
        assert torch.equal(part.images[:, 0][part.labels != 255], part.labels[part.labels != 255])
        assert (part.labels == 255).sum((1, 2)).tolist() == [1] * len(part)
    (folders / "val").rename(folders / "other")
    assert [len(part) for part in image_masks(folders, num_classes=7)] == [3, 1]


def broken(change: Callable[[Path], object], names: str) -> object:
    return pytest.param(change, names, id=names)


@pytest.mark.parametrize(
    ("change", "names"),
    [
        broken(lambda p: (p / "train").rename(p / "t"), "holds no folder train: expected train/images"),
        broken(lambda p: [(p / n).rename(p / n[:1]) for n in ("val", "test")], "holds no folder val or test"),
        broken(lambda p: (p / "train" / "masks" / "1.png").unlink(), "train/images/1.png has no mask: expected"),
        broken(lambda p: (p / "val" / "images").rename(p / "i"), "val/images has no image: expected files"),
        broken(lambda p: write(p / "val/images/1.png", np.zeros((6, 6, 3), np.uint8)), "1.png is 6 pixels wide and 6"),
        broken(lambda p: write(p / "val/masks/1.png", np.zeros((5, 5), np.uint8)), "masks/1.png is 5 pixels wide"),
        broken(lambda p: write(p / "val/masks/1.png", np.full((5, 6), 3, np.uint8)), "of class 3: expected 0 to 2, or"),
        broken(lambda p: write(p / "val/masks/1.png", np.zeros((5, 6, 3), np.uint8)), "of mode RGB: expected one"),
        broken(
            lambda p: [write(f, np.uint8(255) * (np.arange(30).reshape(5, 6) % 2 > 0)) for f in p.rglob("masks/*")],
            "has fewer than two classes: .* black and white masks are to hold 0 and 1",
        ),
        broken(lambda p: (p / "train/images/0.png").write_bytes(b"nothing"), "images/0.png cannot be read as an image"),
    ],
)
def test_a_folder_that_does_not_fit_is_refused_in_one_line(change, names: str, folders: Path) -> None:
    change(folders)
    with pytest.raises(UsageError, match=names) as error:
        image_masks(folders)
    assert "\n" not in str(error.value)


# -- LFW Part Labels --------------------------------------------------------------------------------------------------


@pytest.fixture
def faces(tmp_path: Path) -> Path:
    """The layout of LFW Part Labels with three, one and two faces."""
    colours = np.array([(255, 0, 0), (0, 255, 0), (0, 0, 255)], np.uint8)
    number = 0
    for part, count in (("train", 3), ("validation", 1), ("test", 2)):
        lines = []
        for _ in range(count):
            number += 1
            face = f"Some_One_{number:04d}"
            classes = (np.arange(250)[:, None] // 50 + np.arange(250) // 40 + number) % 3
            write(tmp_path / "lfw_funneled" / "Some_One" / f"{face}.jpg", colours[classes] // 2)
            write(tmp_path / "parts_lfw_funneled_gt_images" / f"{face}.ppm", colours[classes])
            lines.append(f"Some_One {number}\n")
        (tmp_path / f"parts_{part}.txt").write_text("".join(lines))
    return tmp_path


def test_part_labels_are_the_official_sets_with_an_unlabelled_black_border(faces: Path) -> None:
    sets = part_labels(faces)
    assert [len(part) for part in sets] == [3, 1, 2]
    for first, part in zip((1, 4, 5), sets, strict=True):
        assert (part.shape, part.class_names) == ((3, 256, 256), ("hair", "skin", "background"))
        inner = part.labels[:, 3:-3, 3:-3]
        assert int((part.labels == 255).sum()) == len(part) * (256**2 - 250**2) and int(inner.max()) == 2
        assert inner[:, 0, 0].tolist() == [(first + number) % 3 for number in range(len(part))]
        agree = part.images[:, :, 3:-3, 3:-3].argmax(1) == inner  # as far as JPEG keeps colours
        assert agree.float().mean() > 0.95
        assert not part.images[:, :, :3].any() and not part.images[:, :, :, -3:].any()


@pytest.mark.parametrize(
    ("change", "names"),
    [
        broken(lambda p: (p / "parts_validation.txt").unlink(), "parts_validation.txt cannot be read .*: dataset.root"),
        broken(lambda p: (p / "parts_test.txt").write_text("Some_One\n"), "has the line 'Some_One': expected NAME"),
        broken(lambda p: (p / "parts_test.txt").write_text("\n"), "parts_test.txt is empty"),
        broken(lambda p: (p / "parts_test.txt").write_text("No_One 7\n"), "No_One_0007.jpg is missing, which .*test"),
        broken(
            lambda p: write(p / "parts_lfw_funneled_gt_images/Some_One_0002.ppm", np.zeros((250, 250, 3), np.uint8)),
            r"Some_One_0002.ppm has the colour \(0, 0, 0\): expected red",
        ),
        broken(
            lambda p: write(p / "lfw_funneled/Some_One/Some_One_0002.jpg", np.zeros((250, 200, 3), np.uint8)),
            "Some_One_0002.jpg is 200 pixels wide and 250 high: expected 250 and 250",
        ),
    ],
)
def test_part_labels_that_do_not_fit_are_refused_in_one_line(change, names: str, faces: Path) -> None:
    change(faces)
    with pytest.raises(UsageError, match=names) as error:
        part_labels(faces)
    assert "\n" not in str(error.value)
