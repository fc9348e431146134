"""Image sets too large for memory, such as ImageNet: a folder of files for each class, decoded by workers."""

from __future__ import annotations

import math
import os
import random
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path

import numpy as np
import simplejpeg
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset

from budgetnet.data.device_loader import Normalise
from budgetnet.data.pixels import as_rgb, orientation, turned
from budgetnet.data.sharding import Batch, ShardedLoader
from budgetnet.errors import RunError, UsageError

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM")
"""Accepted formats of files, whatever their names; Pillow's rarer readers are unsafe for files of unknown origin."""

CENTRE = 224 / 256
"""The part of the shorter side of an image that an evaluation looks at, as is usual."""

Box = tuple[float, float, float, float]
"""Left, top, right and bottom, in pixels of the stored image."""


@dataclass(frozen=True, eq=False, repr=False)
class ImageFolder:
    """Image files and their labels, int64 (N,), which are indices of the folders of classes in `class_names`.

    image_size: the height and width to which images are cropped and resized. exif: whether they are turned as their
    EXIF orientation says. left_out: what was found below `root` and is not in the set, a line of counts, or "".
    """

    root: Path
    files: np.ndarray  # (N,) of bytes, since a million str objects would be copied to every worker when they are read
    labels: Tensor
    class_names: tuple[str, ...]
    image_size: int = 224
    exif: bool = False
    left_out: str = ""

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        return f"ImageFolder({self.root}, {len(self)} images, {self.num_classes} classes)"

    @property
    def num_classes(self) -> int:
        """The number of classes."""
        return len(self.class_names)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of an image."""
        return 3, self.image_size, self.image_size

    def path(self, index: int) -> Path:
        """The file of an image."""
        return self.root / os.fsdecode(self.files[index])

    def subset(self, indices: Tensor) -> ImageFolder:
        """The images at `indices` (M,), in that order."""
        return replace(self, files=self.files[indices.numpy()], labels=self.labels[indices])

    def sample(self, count: int) -> Tensor:
        """So many images at equal distances, uint8 (N, C, H, W), cropped at the centre.

        Those that cannot be read are left out, and named when a batch has them.
        """
        found = []
        for index in np.linspace(0, len(self) - 1, min(count, len(self))).astype(int).tolist():
            with suppress(UsageError):
                found.append(decode(self.path(index), centre_crop, min(self.image_size, 64), self.exif))
        return torch.from_numpy(np.stack(found)).permute(0, 3, 1, 2) if found else torch.zeros(0, 3, 1, 1)

    def statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """The mean and standard deviation of each channel of ImageNet."""
        return IMAGENET_MEAN, IMAGENET_STD


# -- one image --------------------------------------------------------------------------------------------------------


def decode(path: Path, crop: Callable[[int, int], Box], size: int, exif: bool = False) -> np.ndarray:
    """Read an image file, crop it to `crop(width, height)`, and resize it to uint8 (size, size, 3).

    The pixels are those of `pixels.as_rgb`. exif: whether the image is turned as its EXIF orientation says, before it
    is cropped. A JPEG is decoded at half its size or less if the crop still has
    `size` pixels on each side. Raises UsageError, naming the file, if it cannot be read or is so large that Pillow
    treats it as an attack.
    """
    try:
        data = path.read_bytes()
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            opened = Image.open(BytesIO(data), formats=FORMATS)
        with opened as image:
            shown_as = orientation(image) if exif else 1
            on_its_side = shown_as in (5, 6, 7, 8)
            width, height = image.size[::-1] if on_its_side else image.size
            left, top, right, bottom = crop(width, height)
            least = math.ceil(width * size / (right - left)), math.ceil(height * size / (bottom - top))
            stored = least[::-1] if on_its_side else least
            plain = image.format == "JPEG" and image.mode in ("RGB", "L")
            pixels = _decode_jpeg(data, *stored) if plain else None
            if pixels is None:
                image.draft("RGB", stored)
                pixels = np.array(as_rgb(image, exif=False))
            pixels = turned(pixels, shown_as)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise UsageError(
            f"{path} cannot be read as an image ({(str(error).splitlines() or [''])[0]}); replace or remove it"
        ) from error
    across, down = pixels.shape[1] / width, pixels.shape[0] / height
    columns, rows = _span(left * across, right * across), _span(top * down, bottom * down)
    return _resized(pixels[rows, columns], size)


def _decode_jpeg(data: bytes, width: int, height: int) -> np.ndarray | None:
    """The pixels of a JPEG, uint8 (H, W, 3), reduced to no less than `height` and `width`; None if it is damaged.

    Pillow then gives the reason.
    """
    try:
        pixels: np.ndarray = simplejpeg.decode_jpeg(data, min_height=height, min_width=width, min_factor=2)
    except ValueError:
        return None
    return pixels


def _span(first: float, last: float) -> slice:
    return slice(round(first), max(round(first) + 1, round(last)))


def _resized(pixels: np.ndarray, size: int) -> np.ndarray:
    """Resize (H, W, 3) to (size, size, 3) by antialiased bilinear interpolation."""
    if pixels.shape[:2] == (size, size):
        return pixels
    images = torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1)[None]
    resized = functional.interpolate(images, size=(size, size), mode="bilinear", antialias=True)
    return resized[0].permute(1, 2, 0).numpy()


def centre_crop(width: int, height: int, fraction: float = CENTRE) -> Box:
    """The centred square whose side is `fraction` of the shorter side."""
    return fitting_crop((1, 1), fraction, width, height)


def fitting_crop(size: tuple[int, int], fraction: float, width: int, height: int) -> Box:
    """A centred box of the shape of `size` (height, width), whose sides are `fraction` of those of the largest one."""
    scale = min(height / size[0], width / size[1]) * fraction
    down, across = scale * size[0], scale * size[1]
    left, top = (width - across) / 2, (height - down) / 2
    return left, top, left + across, top + down


def random_crop(width: int, height: int, draw: random.Random) -> Box:
    """A random box of 8 to 100 % of the area with an aspect ratio of 3/4 to 4/3 (Szegedy et al. 2015).

    If ten draws do not fit into the image, it is the largest centred square.
    """
    for _ in range(10):
        area = width * height * draw.uniform(0.08, 1)
        ratio = math.exp(draw.uniform(math.log(3 / 4), math.log(4 / 3)))
        across, down = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < across <= width and 0 < down <= height:
            left, top = draw.randint(0, width - across), draw.randint(0, height - down)
            return left, top, left + across, top + down
    return centre_crop(width, height, fraction=1)


# -- batches ----------------------------------------------------------------------------------------------------------


class _BatchReader(Dataset[Batch | UsageError | RunError]):
    """Reads batches (images uint8 (N, H, W, C), labels (N,)) by indices (N,) in a worker process.

    For an image that cannot be read, the error is returned instead of the batch. If it were raised, the main process
    would receive it wrapped in the traceback of the worker.
    """

    def __init__(self, data: ImageFolder, augment: bool, flip: bool, seed: int, epoch: int) -> None:
        self.data, self.augment, self.flip, self.key = data, augment, flip, f"{seed}/{epoch}"

    def __getitem__(self, indices: Tensor) -> Batch | UsageError | RunError:
        try:
            images = np.stack([self._read(index) for index in indices.tolist()])
        except UsageError as error:
            return error
        except MemoryError:
            return RunError(f"decoding {len(indices)} images ran out of memory: {_LESS_MEMORY}")
        return torch.from_numpy(images), self.data.labels[indices]

    def _read(self, index: int) -> np.ndarray:
        path, size = self.data.path(index), self.data.image_size
        if not self.augment:
            return decode(path, centre_crop, size, self.data.exif)
        draw = random.Random(f"{self.key}/{index}")
        pixels = decode(path, lambda width, height: random_crop(width, height, draw), size, self.data.exif)
        return pixels[:, ::-1] if self.flip and draw.random() < 0.5 else pixels


_LESS_MEMORY = "use fewer dataset.workers, a smaller dataset.batch_size or a machine with more memory"


def worker_death(error: BaseException | None) -> RunError | None:
    """A RunError with the likely reason if `error` is that of torch for a worker that has died, else None.

    torch raises it wherever the main process is at that moment, for example in a training step.
    """
    if not isinstance(error, RuntimeError) or isinstance(error, RunError) or "DataLoader worker (pid" not in str(error):
        return None
    what = str(error).splitlines()[0].rstrip(". ")
    return RunError(f"{what}: most likely the system ran out of memory; {_LESS_MEMORY}; the last checkpoint is kept")


def _soon_after() -> BaseException | None:
    """The error that torch raises a moment later, since a dying process loses its connections before it ends."""
    try:
        time.sleep(1)
    except RuntimeError as error:
        return error
    return None


class FolderLoader(ShardedLoader):
    """Batches (images float32 (N, C, H, W), labels int64 (N,)) of an image folder, on `device`.

    augment: whether every image is cropped at random, and mirrored or not, as a function of (seed, epoch, image) alone,
    rather than cropped at the centre. flip: whether half of them are mirrored then.
    workers: the number of decoding processes for each training process; 0 decodes in the training process.

    Images are copied to the device as uint8 and normalised there. See `ShardedLoader` for sharding and resuming.
    Raises UsageError for batches that cannot be divided. Iterating raises UsageError for an image that cannot be read,
    and RunError if a worker cannot be started or dies.
    """

    def __init__(
        self,
        data: ImageFolder,
        batch_size: int,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        augment: bool = False,
        flip: bool = True,
        shuffle: bool = False,
        drop_last: bool = False,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        device: torch.device | str = "cpu",
        channels_last: bool = False,
        workers: int = 0,
    ) -> None:
        super().__init__(len(data), batch_size, shuffle, drop_last, seed, rank, world_size)
        self.data, self.augment, self.flip = data, augment, flip
        self.workers, self.device = workers, torch.device(device)
        self.normalise = Normalise(mean, std, data.shape, torch.uint8, self.device, channels_last)

    def _load(self, parts: list[Tensor]) -> Iterator[Batch]:
        reader = _BatchReader(self.data, self.augment, self.flip, self.seed, self.epoch)
        pin = self.device.type == "cuda"
        loader = DataLoader(
            reader,
            batch_size=None,
            sampler=parts,
            num_workers=self.workers,
            pin_memory=pin,
            generator=torch.Generator(),  # so that nothing is drawn from the global one, which dropout uses
        )
        try:
            for batch in loader:
                if isinstance(batch, Exception):
                    raise batch
                images, labels = (tensor.to(self.device, non_blocking=pin) for tensor in batch)
                yield self.normalise(images), labels
        except RuntimeError as error:
            if death := worker_death(error):
                raise death from error
            raise
        except (OSError, EOFError) as error:
            lost = RunError(f"dataset.workers={self.workers}: cannot be started, or lost ({error}); {_LESS_MEMORY}")
            raise worker_death(_soon_after()) or lost from error
