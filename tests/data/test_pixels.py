"""Pixels are what the file says: each kind of picture has a stated meaning, by every reader."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from budgetnet.data.arrays import ImageArrays, alike
from budgetnet.data.datamodule import DataModule
from budgetnet.data.folder import decode
from budgetnet.data.pictures import read_picture
from budgetnet.data.segmentation import _picture
from budgetnet.errors import UsageError

RAMP = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4
"""An 8x8 picture that is not symmetric in any way."""
Reader = Callable[[Path], np.ndarray]
READERS: dict[str, Reader] = {
    "pictures": lambda path: read_picture(path).permute(1, 2, 0).numpy(),
    "segmentation": _picture,
    "folder": lambda path: decode(path, lambda width, height: (0, 0, width, height), 8, exif=True),
}


def grey(values: np.ndarray) -> np.ndarray:
    return np.repeat(values[..., None], 3, axis=2).astype(np.uint8)


def sixteen_bits(path: Path) -> np.ndarray:
    Image.fromarray(RAMP.astype(np.uint16) * 257).save(path)
    return grey(RAMP)


def palette(path: Path) -> np.ndarray:
    image = Image.fromarray((RAMP // 64).astype(np.uint8), mode="P")
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255, 9, 9, 9])
    image.save(path)
    colours = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [9, 9, 9]], np.uint8)
    return colours[RAMP // 64]


def grey_with_alpha(path: Path) -> np.ndarray:
    alpha = np.where(RAMP > 100, 255, 0).astype(np.uint8)
    Image.fromarray(np.stack([np.zeros_like(RAMP), alpha], axis=2), mode="LA").save(path)
    return grey(np.where(RAMP > 100, 0, 255))


def transparent_colour(path: Path) -> np.ndarray:
    Image.fromarray(RAMP).save(path, transparency=int(RAMP[0, 1]))
    return grey(np.where(RAMP[0, 1] == RAMP, 255, RAMP))


def one_bit(path: Path) -> np.ndarray:
    Image.fromarray(RAMP > 100).save(path)
    return grey(np.where(RAMP > 100, 255, 0))


def turned(path: Path) -> np.ndarray:
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned clockwise by 90 degrees
    Image.fromarray(RAMP).save(path, exif=exif)
    return grey(np.rot90(RAMP, k=-1))


KINDS = (sixteen_bits, palette, grey_with_alpha, transparent_colour, one_bit, turned)


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_kind_of_picture_has_its_stated_meaning(kind: Reader, reader: str, tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    expected = kind(path)
    assert np.array_equal(READERS[reader](path), expected) and expected.min() < expected.max()


@pytest.mark.parametrize("reader", READERS)
def test_jpegs_in_cmyk_and_turned_ones_are_pictures_too(reader: str, tmp_path: Path) -> None:
    big = np.kron(grey(RAMP), np.ones((8, 8, 1), np.uint8))
    cmyk, sideways = tmp_path / "cmyk.jpg", tmp_path / "turned.jpg"
    Image.fromarray(big).convert("CMYK").save(cmyk, quality=95)
    exif = Image.Exif()
    exif[0x0112] = 8  # shown turned by 90 degrees the other way
    Image.fromarray(big).save(sideways, exif=exif, quality=95)
    for path, expected in ((cmyk, RAMP), (sideways, np.rot90(RAMP))):
        found = READERS[reader](path)
        step = len(found) // 8
        centres = found[step // 2 :: step, step // 2 :: step].astype(int)
        assert np.abs(centres - grey(expected)).max() < 24, path


@pytest.mark.parametrize("reader", READERS)
def test_numbers_without_a_range_are_refused_with_the_file(
    reader: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(RAMP).save(path)
    convert = Image.open

    def as_floats(*arguments: object, **options: object) -> Image.Image:
        return convert(path).convert("F")

    monkeypatch.setattr(Image, "open", as_floats)
    with pytest.raises(UsageError, match=r"a\.png.*floating-point"):
        READERS[reader](path)


# -- sets of pictures --------------------------------------------------------------------------------------------------


def a_set(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return images, torch.arange(len(images)) % 2


@pytest.mark.parametrize(("place", "role"), [(0, "training"), (1, "test")])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_value_that_is_no_number_is_found_with_its_image_before_anything_is_trained(
    place: int, role: str, value: float
) -> None:
    sets = [torch.rand(20, 1, 4, 4), torch.rand(20, 1, 4, 4)]
    sets[place][7, 0, 2, 1] = value
    data = DataModule.from_arrays(a_set(sets[0]), a_set(sets[1]), name="mine", validation=0, batch_size=4)
    with pytest.raises(UsageError, match=rf"mine: image 7 of the {role} set .* nan or infinite: repair or remove it"):
        data.setup()


def test_images_that_are_alike_are_said_to_be() -> None:
    varied = torch.randint(0, 256, (400, 1, 4, 4), dtype=torch.uint8)
    assert alike(varied) is None and alike(varied[:0]) is None and alike(varied[:1]) is None
    assert alike(varied[:1].expand(400, -1, -1, -1)) == "all 400 images are the same"
    few, many = varied.clone(), varied.clone()
    few[:4], many[:5] = 7, 7
    assert alike(few) is None
    assert alike(many) == "5 of 400 images have a single value in all pixels"
    data = DataModule.from_arrays(a_set(many), a_set(varied), name="mine", validation=0, batch_size=4)
    data.setup()
    assert data.warnings == [
        "mine: 5 of 400 images have a single value in all pixels of the training set: is it read as it should be?"
    ]
    assert ImageArrays.of(varied, torch.zeros(400, dtype=torch.long)).not_finite() is None
