"""Folders of pictures to restore: small or noisy ones and the truth, in memory, as pictures of any size."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from budgetnet.data.pictures import files_of, read_picture
from budgetnet.data.restoration import (
    TILE,
    TILE_STEP,
    check_patches,
    check_scale,
    smaller,
    smaller_file,
    tiles,
)
from budgetnet.errors import UsageError
from budgetnet.tasks.image_quality import WINDOW

TRAINING, TEST = ("train", "DIV2K_train_HR"), ("test", "DIV2K_valid_HR")
"""Folders of training and of test pictures, where the root has one of them."""
_TEST_PART = 10  # where there are no test pictures, a tenth of the training pictures


@dataclass(frozen=True, eq=False, repr=False)
class PictureSet:
    """Pictures and what they are restored from.

    truths, inputs: uint8 (C, H, W) and (C, H / scale, W / scale), of any size. Of scale 1 inputs are the truths, to
    which noise of standard deviation `sigma` is added as they are read: in a test set as a function of `noise_seed`.
    patch: the side of a training patch, in pixels of the truth. patches: of every tile of a picture in an epoch.
    others: further test sets by name.
    """

    truths: tuple[Tensor, ...]
    inputs: tuple[Tensor, ...]
    scale: int
    patch: int
    patches: int = 1
    sigma: float = 0.0
    noise_seed: int = 0
    others: Mapping[str, PictureSet] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.truths)

    def __repr__(self) -> str:
        colours = "grey" if self.num_classes == 1 else "colour"
        return f"PictureSet({len(self)} {colours} pictures, " + (
            f"scale {self.scale})" if self.scale > 1 else f"sigma {self.sigma:g})"
        )

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of what is restored from a training patch, for which FLOPs are counted."""
        side = self.patch // self.scale
        return self.num_classes, side, side

    @property
    def num_classes(self) -> int:
        """The channels of a picture."""
        return len(self.truths[0])

    @property
    def labels(self) -> Tensor:
        """(N, 0, 0, 0): four dimensions, as batches of truths have, and no class."""
        return torch.empty(len(self), 0, 0, 0)

    def subset(self, indices: Tensor) -> PictureSet:
        """The pictures at `indices` (M,), in that order."""
        places = indices.tolist()
        return replace(self, truths=tuple(self.truths[i] for i in places), inputs=tuple(self.inputs[i] for i in places))

    def statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Zeros and ones: values stay in 0..1, as networks that restore expect them."""
        return (0.0,) * self.num_classes, (1.0,) * self.num_classes

    def tiles(self) -> list[tuple[Tensor, Tensor]]:
        """Views (input, truth) of tiles of 480 pixels that cover large pictures, and smaller pictures whole."""
        size, step = TILE // self.scale, TILE_STEP // self.scale
        found: list[tuple[Tensor, Tensor]] = []
        for low, high in zip(self.inputs, self.truths, strict=True):
            found += list(zip(tiles(low, size, step), tiles(high), strict=True)) or [(low, high)]
        return found


def super_resolution(
    root: str | Path,
    download: bool = False,
    scale: int = 2,
    patch: int = 96,
    patches: int = 1,
    test: str | Sequence[str] | None = None,
) -> tuple[PictureSet, PictureSet]:
    """A training and a test set of colour pictures and of them at 1 / scale of the size (bicubic).

    Training pictures lie in root/train, root/DIV2K_train_HR or root itself. test: the names of folders of test
    pictures in root or beside it, such as Set5 or Set5/HR; the first is the test set and the rest are further ones.
    None: root/test or root/DIV2K_valid_HR, or else the last tenth of the pictures in alphabetical order. What a scale
    leaves over of a picture is cut off at its end. Small pictures are kept in root/.bicubic.
    Raises UsageError for options out of range, a missing or empty folder, a file that cannot be read, a patch that the
    scale does not divide, and pictures that are too small.
    """
    check_scale(scale)

    def read(path: Path) -> tuple[Tensor, Tensor]:
        try:
            return smaller_file(path, scale, Path(root) / ".bicubic")
        except OSError:  # a folder that cannot be written to
            return smaller(read_picture(path), scale)

    return _sets(Path(root), read, test, WINDOW + 2 * (scale + 6), scale=scale, patch=patch, patches=patches)


def denoising(
    root: str | Path,
    download: bool = False,
    sigma: float = 25.0,
    patch: int = 64,
    patches: int = 1,
    test: str | Sequence[str] | None = None,
    noise_seed: int = 0,
) -> tuple[PictureSet, PictureSet]:
    """A training and a test set of grey pictures, with Gaussian noise of standard deviation `sigma` on 0..255.

    Folders as of `super_resolution`. noise_seed: of the noise of test pictures, which is the same in every run.
    Raises UsageError as `super_resolution` does.
    """
    if isinstance(sigma, bool) or not isinstance(sigma, (int, float)) or not 0 < sigma <= 255:
        raise UsageError(f"dataset.source.sigma={sigma!r}: expected a number above 0, 255 at most")
    if type(noise_seed) is not int:
        raise UsageError(f"dataset.source.noise_seed={noise_seed!r}: expected a whole number")

    def read(path: Path) -> tuple[Tensor, Tensor]:
        picture = read_picture(path, grey=True)
        return picture, picture

    options = {"patch": patch, "patches": patches, "sigma": float(sigma), "noise_seed": noise_seed}
    return _sets(Path(root), read, test, WINDOW + 2, scale=1, **options)


# -- folders ----------------------------------------------------------------------------------------------------------


def _sets(
    root: Path,
    read: Callable[[Path], tuple[Tensor, Tensor]],
    test: str | Sequence[str] | None,
    least: int,
    **options: Any,
) -> tuple[PictureSet, PictureSet]:
    """The training set, and the first test set with the others in it.

    read: gives (input, truth). least: pixels of the shorter side of a test picture, for SSIM. options: of PictureSet.
    """
    scale, patch, patches = options["scale"], options["patch"], options["patches"]
    check_patches({}, patch, scale)
    if type(patches) is not int or patches < 1:
        raise UsageError(f"dataset.source.patches={patches!r}: expected a whole number, 1 or more")
    training, tested = _files(root, [] if test is None else [test] if isinstance(test, str) else list(map(str, test)))

    def pictures(files: Sequence[Path]) -> PictureSet:
        pairs = [read(path) for path in files]
        return PictureSet(tuple(high for _, high in pairs), tuple(low for low, _ in pairs), **options)

    train = pictures(training)
    check_patches({path: _size(truth) for path, truth in zip(training, train.truths, strict=True)}, patch, scale)
    sets = {}
    for name, files in tested.items():
        sets[name] = pictures(files)
        for path, truth in zip(files, sets[name].truths, strict=True):
            if min(_size(truth)) < least:
                raise UsageError(
                    f"{path} is {truth.shape[2]} pixels wide and {truth.shape[1]} high: expected {least} at least for "
                    "a test picture, whose border does not count"
                )
    first, *_ = sets
    return train, replace(sets.pop(first), others=sets)


def _files(root: Path, names: Sequence[str]) -> tuple[list[Path], dict[str, list[Path]]]:
    """The training pictures, and the test pictures by the name of their folder."""
    if not root.is_dir():
        raise UsageError(f"dataset.root={root} is no folder: expected a folder of pictures")
    training = files_of(_inside(root, TRAINING) or root)
    if names:
        return training, {name: files_of(_named(root, name)) for name in names}
    if folder := _inside(root, TEST):
        return training, {folder.name: files_of(folder)}
    number = math.ceil(len(training) / _TEST_PART)
    if number == len(training):
        raise UsageError(
            f"{training[0].parent} has one picture and {root} no folder test: add pictures, or name a folder of test "
            "pictures, dataset.source.test=Set5"
        )
    return training[:-number], {"test": training[-number:]}


def _size(picture: Tensor) -> tuple[int, int]:
    return picture.shape[1], picture.shape[2]


def _inside(root: Path, names: Sequence[str]) -> Path | None:
    return next((root / name for name in names if (root / name).is_dir()), None)


def _named(root: Path, name: str) -> Path:
    """The folder of a test set, in the root, beside it, or where the name leads; its HR where it has one."""
    for folder in (root / name, root.parent / name, Path(name)):
        if folder.is_dir():
            return folder / "HR" if (folder / "HR").is_dir() else folder
    raise UsageError(f"dataset.source.test={name}: there is no folder {root / name} and no {root.parent / name}")
