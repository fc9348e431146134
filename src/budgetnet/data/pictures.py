"""Pictures of any size, one file each."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from budgetnet.errors import UsageError

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".ppm")
_FORMATS = ("JPEG", "PNG", "BMP", "PPM")
"""What a file may hold, whatever its name says; Pillow's rarer readers are not made for files of unknown origin."""


def opened(path: Path) -> Image.Image:
    """The decoded picture. Raises UsageError, naming the file, if it cannot be read."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(path, formats=_FORMATS)
            image.load()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        reason = (str(error).splitlines() or [""])[0]
        raise UsageError(f"{path} cannot be read as an image ({reason}); replace or remove it") from error
    return image


def read_picture(path: Path, grey: bool = False) -> Tensor:
    """uint8 (3, H, W), or (1, H, W) of the luminance (ITU-R 601). Raises UsageError if it cannot be read."""
    pixels = np.array(opened(path).convert("L" if grey else "RGB"))
    return torch.from_numpy(pixels[None] if grey else pixels.transpose(2, 0, 1).copy())


def files_of(folder: Path) -> list[Path]:
    """The pictures in a folder, in alphabetical order. Raises UsageError if there is none."""
    found = sorted(path for path in folder.glob("*") if path.suffix.lower() in SUFFIXES)
    if not found:
        raise UsageError(f"{folder} has no image: expected files ending in {', '.join(SUFFIXES)}")
    return found


def rgb(image: Image.Image) -> np.ndarray:
    """The pixels of an image of any mode, uint8 (H, W, 3). Of 16 bits a pixel the upper 8 are kept.

    Raises ValueError for pixels that are not whole numbers, which have no range.
    """
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers: expected whole numbers of 8 or 16 bits")
    if not image.mode.startswith("I"):
        return np.array(image.convert("RGB"))
    grey = (np.asarray(image).clip(0, 2**16 - 1) >> 8).astype(
        np.uint8
    )  # Pillow's own conversion makes 255 of all above
    return np.repeat(grey[:, :, None], 3, axis=2)
