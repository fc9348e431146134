from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from budgetnet.data.preprocessing import Preprocessing
from budgetnet.errors import UsageError

COLOUR = Preprocessing("RGB", (16, 20), (0.5, 0.4, 0.3), (0.2, 0.2, 0.3), crop=0.875)
GREY = Preprocessing("L", (8, 8), (0.0,), (1.0,))


@pytest.mark.parametrize("preprocess", [COLOUR, GREY], ids=["colour", "grey"])
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L"])
@pytest.mark.parametrize("turned", [False, True])
def test_a_picture_gives_the_same_from_a_file_and_opened(
    preprocess: Preprocessing, mode: str, turned: bool, tmp_path: Path
) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (30, 40, 4), np.uint8)
    exif = Image.Exif()
    if turned:
        exif[0x0112] = 6
    Image.fromarray(pixels, "RGBA").convert(mode).save(tmp_path / "picture.png", exif=exif)
    from_file = preprocess(tmp_path / "picture.png")
    with Image.open(tmp_path / "picture.png") as opened:
        assert torch.equal(preprocess(opened), from_file)
    assert from_file.shape == (1, len(preprocess.mean), *preprocess.size)


def test_pixels_are_taken_as_they_are() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (16, 20, 3), np.uint8)
    expected = (torch.from_numpy(pixels).float() / 255 - torch.tensor(COLOUR.mean)) / torch.tensor(COLOUR.std)
    torch.testing.assert_close(COLOUR(pixels), expected.permute(2, 0, 1)[None])


def test_several_pictures_at_once_are_refused() -> None:
    with pytest.raises(UsageError, match="a list is no picture: expected a file, an image of Pillow, or pixels"):
        COLOUR(["a.jpg", "b.jpg"])  # type: ignore[arg-type]
