"""Pictures of any size, one file each."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from budgetnet.data.pixels import as_rgb
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
    """uint8 (3, H, W), or (1, H, W) of the luminance (ITU-R 601), of what `pixels.as_rgb` makes of the file.

    Raises UsageError if it cannot be read.
    """
    try:
        image = as_rgb(opened(path))
    except UsageError as error:
        raise error if str(path) in str(error) else UsageError(f"{path}: {error}") from error
    pixels = np.array(image.convert("L") if grey else image)
    return torch.from_numpy(pixels[None] if grey else pixels.transpose(2, 0, 1).copy())


def files_of(folder: Path) -> list[Path]:
    """The pictures in a folder, in alphabetical order. Raises UsageError if there is none."""
    found = sorted(path for path in folder.glob("*") if path.suffix.lower() in SUFFIXES)
    if not found:
        raise UsageError(f"{folder} has no image: expected files ending in {', '.join(SUFFIXES)}")
    return found
