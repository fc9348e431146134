"""Images and what is to be restored from them: smaller ones and noisy ones. Functions of plain tensors.

Values are 0..255. What is random is a function of the generator that is passed.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from budgetnet.data.pictures import read_picture
from budgetnet.errors import UsageError
from budgetnet.seeding import keyed_generator

SCALES = (2, 3, 4)
TILE, TILE_STEP = 480, 240
"""Sub-images of DIV2K that super-resolution trains on, in pixels."""

# -- smaller images ---------------------------------------------------------------------------------------------------


def bicubic(image: Tensor, size: tuple[int, int]) -> Tensor:
    """uint8 (C, H, W) at another size (height, width).

    The cubic kernel of a = -1/2, widened by the factor where the image shrinks, over a border that is mirrored: what
    MATLAB's `imresize` does. It is Pillow's own on 32-bit floats; on bytes Pillow rounds and clips between columns and
    rows, and leaves out what lies beyond the border.
    """
    (_, height, width), (new_height, new_width) = image.shape, size
    rows, columns = (2 * math.ceil(max(1, a / b)) + 1 for a, b in ((height, new_height), (width, new_width)))
    padded = np.pad(image.numpy(), ((0, 0), (rows, rows), (columns, columns)), mode="symmetric").astype(np.float32)
    box = (columns, rows, columns + width, rows + height)
    resized = [
        np.asarray(Image.fromarray(channel).resize((new_width, new_height), Image.Resampling.BICUBIC, box))
        for channel in padded
    ]
    return torch.from_numpy(np.stack(resized)).add(0.5).floor().clamp(0, 255).to(torch.uint8)


def divisible(image: Tensor, scale: int) -> Tensor:
    """(..., H, W) without the last rows and columns that `scale` leaves over."""
    height, width = image.shape[-2:]
    return image[..., : height - height % scale, : width - width % scale]


def smaller(image: Tensor, scale: int) -> tuple[Tensor, Tensor]:
    """(image at 1 / scale of the size, the image that it is of), uint8 (C, H, W).

    Raises UsageError for a scale other than 2, 3 and 4 and for an image smaller than it.
    """
    check_scale(scale)
    whole = divisible(image, scale)
    if not whole.numel():
        raise UsageError(f"an image of {image.shape[2]}x{image.shape[1]} pixels has no 1/{scale} of its size")
    return bicubic(whole, (whole.shape[1] // scale, whole.shape[2] // scale)), whole


def smaller_file(path: Path, scale: int, cache: Path, grey: bool = False) -> tuple[Tensor, Tensor]:
    """`smaller` of a file, kept in the folder `cache` under a name that follows from what the file holds.

    Raises UsageError as `smaller` does, and for a file that cannot be read.
    """
    check_scale(scale)
    whole = divisible(read_picture(path, grey), scale)
    digest = hashlib.sha256(whole.numpy().tobytes() + repr((tuple(whole.shape), scale)).encode()).hexdigest()
    kept = cache / f"{path.stem}x{scale}-{digest[:16]}.png"
    if kept.is_file():
        return read_picture(kept, grey), whole
    low, whole = smaller(whole, scale)
    cache.mkdir(parents=True, exist_ok=True)
    part = kept.with_name(f"{kept.name}.{os.getpid()}")
    Image.fromarray(low[0].numpy() if grey else low.permute(1, 2, 0).numpy()).save(part, format="PNG")
    part.replace(kept)
    return low, whole


def check_scale(scale: int) -> None:
    """Raises UsageError for a scale other than 2, 3 and 4."""
    if type(scale) is not int or scale not in SCALES:
        raise UsageError(f"dataset.source.scale={scale!r}: expected {', '.join(map(str, SCALES))}")


# -- patches ----------------------------------------------------------------------------------------------------------


def tile_starts(length: int, size: int = TILE, step: int = TILE_STEP) -> list[int]:
    """Where tiles of `size` pixels start along a side: every `step`, and one more that ends with it."""
    starts = list(range(0, length - size + 1, step))
    return starts if not starts or starts[-1] + size == length else [*starts, length - size]


def tiles(image: Tensor, size: int = TILE, step: int = TILE_STEP) -> list[Tensor]:
    """Views (C, size, size) that cover an image (C, H, W); none of one that is smaller."""
    _, height, width = image.shape
    return [
        image[:, top : top + size, left : left + size]
        for top in tile_starts(height, size, step)
        for left in tile_starts(width, size, step)
    ]


def patches(low: Tensor, high: Tensor, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """The same random square of an image and of its truth, flipped and turned alike: (C, size / scale, size / scale)
    and (C, size, size).

    low: (C, H / scale, W / scale), high: (C, H, W); scale 1 is denoising. size: of the square in `high`.
    """
    scale = high.shape[-1] // low.shape[-1]
    side = size // scale
    rows, columns = low.shape[-2] - side + 1, low.shape[-1] - side + 1
    top, left, turn = (int(torch.randint(most, (), generator=generator)) for most in (rows, columns, 8))
    inputs = low[..., top : top + side, left : left + side]
    truth = high[..., scale * top : scale * (top + side), scale * left : scale * (left + side)]
    return turned(inputs, turn), turned(truth, turn)


def turned(image: Tensor, turn: int) -> Tensor:
    """One of the eight ways, 0 to 7, to put down a square (..., H, H): four turns, and four of its mirror image."""
    mirrored = image.flip(-1) if turn >= 4 else image
    return torch.rot90(mirrored, turn % 4, (-2, -1))


def check_patches(sizes: Mapping[Path, tuple[int, int]], patch: int, scale: int = 1) -> None:
    """Raises UsageError if a patch of `patch` pixels a side is no multiple of the scale or larger than an image.

    sizes: (height, width) of every image.
    """
    if type(patch) is not int or patch < 1 or patch % scale:
        raise UsageError(
            f"dataset.source.patch={patch!r}: expected a number of pixels that the scale, {scale}, divides"
        )
    for path, (height, width) in sizes.items():
        if min(height, width) < patch:
            raise UsageError(
                f"{path} is {width} pixels wide and {height} high, less than a patch: remove it, or set "
                f"dataset.source.patch to {min(height, width) // scale * scale} at most"
            )


# -- noise ------------------------------------------------------------------------------------------------------------


def noisy(image: Tensor, sigma: float, generator: torch.Generator) -> Tensor:
    """float32: the image and Gaussian noise of standard deviation `sigma`, neither rounded nor clipped."""
    noise = torch.randn(image.shape, generator=generator, device=generator.device)
    return image.to(noise.device, torch.float32) + sigma * noise


def fixed_noise(image: Tensor, sigma: float, seed: int, number: int) -> Tensor:
    """`noisy` for image `number` of a test set: the same whenever it is asked for."""
    return noisy(image, sigma, keyed_generator("denoising", seed, number))
