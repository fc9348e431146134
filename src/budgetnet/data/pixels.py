"""What the pixels of a picture file are, whatever it holds: 8-bit RGB, the right way up."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageOps

from budgetnet.errors import UsageError

_ORIENTATION = 0x0112
_SIXTEEN_BITS = ("I", "I;16", "I;16B", "I;16L", "I;16N")
"""Pillow's modes of one number of 16 bits for each pixel, as PNG and PPM files have them."""


def is_upright(image: Image.Image) -> bool:
    """Whether the file says that its rows are shown as they are stored."""
    return image.getexif().get(_ORIENTATION, 1) in (0, 1)


def shown_size(image: Image.Image) -> tuple[int, int]:
    """Width and height as the picture is shown, before it is decoded."""
    width, height = image.size
    return (height, width) if image.getexif().get(_ORIENTATION, 1) in (5, 6, 7, 8) else (width, height)


def as_rgb(image: Image.Image) -> Image.Image:
    """The picture in 8-bit RGB, turned as its file says (EXIF).

    Of 16 bits the higher byte counts, as for each colour of an RGB file. Grey becomes equal colours, one bit 0 and 255,
    a palette its colours, CMYK its colours by Pillow's formula. What is transparent is put on white.
    Raises UsageError for floating-point numbers, and for numbers of more than 16 bits.
    """
    image = ImageOps.exif_transpose(image)
    if image.mode in _SIXTEEN_BITS:
        values = np.asarray(image).astype(np.int64)
        if values.min(initial=0) < 0 or values.max(initial=0) > 65535:
            raise UsageError(f"its pixels reach from {values.min()} to {values.max()}: expected 8 or 16 bits")
        image = Image.fromarray((values >> 8).astype(np.uint8))
    if image.mode == "F":
        raise UsageError("its pixels are floating-point numbers, which have no stated range: expected 8 or 16 bits")
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        visible = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", visible.size, "white"), visible)
    return image.convert("RGB")
