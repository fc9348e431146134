"""What the pixels of a picture file are, whatever it holds: 8-bit RGB, the right way up unless that is not wanted."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageOps

from budgetnet.errors import UsageError

_ORIENTATION = 0x0112
_SIXTEEN_BITS = ("I", "I;16", "I;16B", "I;16L", "I;16N")
"""Pillow's modes of one number of 16 bits for each pixel, as PNG and PPM files have them."""


def orientation(image: Image.Image) -> int:
    """How the file says that its rows are shown (EXIF), 1 to 8; 1 is as they are stored."""
    found = image.getexif().get(_ORIENTATION, 1)
    return found if found in range(1, 9) else 1


def turned(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Pixels (H, W, C) turned and mirrored as one of the eight orientations says."""
    if orientation in (5, 7):
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (2, 4):
        pixels = pixels[:, ::-1]
    return np.rot90(pixels, {3: 2, 4: 2, 6: 3, 7: 2, 8: 1}.get(orientation, 0))


def as_rgb(image: Image.Image, exif: bool = True) -> Image.Image:
    """The picture in 8-bit RGB. exif: whether it is turned as its file says.

    Of 16 bits the higher byte counts, as for each colour of an RGB file. Grey becomes equal colours, one bit 0 and 255,
    a palette its colours, CMYK its colours by Pillow's formula. What is transparent is put on white.
    Raises UsageError for floating-point numbers, and for numbers of more than 16 bits.
    """
    image = ImageOps.exif_transpose(image) if exif else image
    if image.mode in _SIXTEEN_BITS:
        values = np.asarray(image).astype(np.int64)
        if values.min(initial=0) < 0 or values.max(initial=0) > 65535:
            raise UsageError(f"its pixels reach from {values.min()} to {values.max()}: expected 8 or 16 bits")
        image = Image.fromarray((values >> 8).astype(np.uint8))
    if image.mode == "F":
        raise UsageError("its pixels are floating-point numbers, which have no stated range: expected 8 or 16 bits")
    if image.has_transparency_data:
        visible = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", visible.size, "white"), visible)
    return image.convert("RGB")
