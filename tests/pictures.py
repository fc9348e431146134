"""Real photographs for tests: parts of the two that come with scikit-learn."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor


def photograph(height: int = 96, width: int = 120, top: int = 180, left: int = 200, name: str = "flower") -> Tensor:
    """uint8 (3, H, W): a part of a real picture."""
    pixels = np.asarray(whole_picture(name))[top : top + height, left : left + width]
    return torch.from_numpy(pixels.transpose(2, 0, 1).copy())


def whole_picture(name: str) -> Image.Image:
    """One of the pictures, "flower" or "china", from its file: importing scikit-learn takes most of a second."""
    package = find_spec("sklearn")
    assert package is not None and package.origin is not None
    return Image.open(Path(package.origin).with_name("datasets") / "images" / f"{name}.jpg")


def save(picture: Tensor, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture.permute(1, 2, 0).numpy()).save(path)


def save_folder(folder: Path, count: int, height: int = 48, width: int = 56, name: str = "flower") -> None:
    """`count` different parts of a picture as a.png, b.png and so on."""
    for number in range(count):
        save(photograph(height, width, 20 + 30 * number, 40 + 50 * number, name), folder / f"{chr(97 + number)}.png")
