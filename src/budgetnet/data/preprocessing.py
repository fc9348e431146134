"""What is done to a picture before a network sees it, as plain values that travel with the network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from budgetnet.data.folder import FORMATS, fitting_crop
from budgetnet.data.pixels import as_rgb
from budgetnet.errors import UsageError


@dataclass(frozen=True)
class Preprocessing:
    """A centred crop, a resize, and (pixel / 255 - mean) / std for each channel.

    mode: "RGB", "L" for grey pictures of one channel, or "" for images that are no pictures.
    size: (height, width) of the network's images. crop: the part of the largest centred box of this shape that is kept.
    exif: whether a picture is first turned as its EXIF orientation says. any_size: whether the network takes a picture
    as it is, without crop and resize.
    """

    mode: str
    size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop: float = 1.0
    exif: bool = True
    any_size: bool = False

    @staticmethod
    def of(values: Mapping[str, Any]) -> Preprocessing:
        """From `as_mapping`, possibly read from JSON and with further keys. Raises KeyError for a missing value."""
        plain: dict[str, Any] = {name: values[name] for name in Preprocessing.__dataclass_fields__}
        return Preprocessing(**{**plain, **{name: tuple(plain[name]) for name in ("size", "mean", "std")}})

    def as_mapping(self) -> dict[str, Any]:
        """Plain values by name."""
        return asdict(self)

    def __call__(self, picture: str | Path | Image.Image | Tensor | np.ndarray) -> Tensor:
        """Images (1, channels, height, width), as the network takes them, of a picture.

        picture: a file or an image of Pillow, which are cropped and resized; or pixels of 0..255, (height, width) or
        (height, width, channels), of the network's size unless that is any.
        Raises UsageError for a file that cannot be read, pixels of another shape, several pictures, and images that are
        no pictures.
        """
        if not self.mode and isinstance(picture, (str, Path, Image.Image)):
            raise UsageError(f"{picture}: this network takes images of {len(self.mean)} channels, not pictures")
        if isinstance(picture, Image.Image):
            pixels = self._fitted(picture)
        else:
            pixels = self._read(Path(picture)) if isinstance(picture, (str, Path)) else np.asarray(picture)
        if pixels.dtype.kind not in "uifb":
            kind = type(picture).__name__
            raise UsageError(f"a {kind} is no picture: expected a file, an image of Pillow, or pixels")
        pixels = pixels[:, :, None] if pixels.ndim == 2 else pixels
        values = pixels.astype(np.float32)
        height, width = values.shape[:2] if self.any_size and values.ndim == 3 else self.size
        if values.shape != (expected := (height, width, len(self.mean))):
            raise UsageError(f"pixels of shape {pixels.shape}: expected {expected}, a file, or an image of Pillow")
        normalised = (values / 255 - np.array(self.mean, np.float32)) / np.array(self.std, np.float32)
        return torch.from_numpy(np.ascontiguousarray(normalised.transpose(2, 0, 1)[None], np.float32))

    def _read(self, path: Path) -> np.ndarray:
        """The pixels of a file, as predict.py in a run directory reads them, which has Pillow alone."""
        try:
            with Image.open(path, formats=FORMATS) as opened:
                return self._fitted(opened)
        except UsageError as error:
            raise UsageError(f"{path}: {error}") from error
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            reason = (str(error).splitlines() or [""])[0]
            raise UsageError(f"{path} cannot be read as an image ({reason})") from error

    def _fitted(self, picture: Image.Image) -> np.ndarray:
        """The pixels of a picture, turned, cropped and resized."""
        image = as_rgb(picture, self.exif)
        if self.any_size:
            return np.asarray(image.convert(self.mode))
        box = fitting_crop(self.size, self.crop, image.width, image.height)
        height, width = self.size
        return np.asarray(image.convert(self.mode).resize((width, height), Image.Resampling.BILINEAR, box))
