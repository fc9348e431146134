"""Tiny-ImageNet: 200 classes, 64×64 pixels, in the folders in which it is published."""

from __future__ import annotations

from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
import torch

from budgetnet.data.arrays import ImageArrays
from budgetnet.data.folder import Box, decode
from budgetnet.errors import UsageError

SIDE = 64
_FOLDER = "tiny-imagenet-200"


def tiny_imagenet(root: str | Path, download: bool = False) -> tuple[ImageArrays, ImageArrays]:
    """100,000 images of 3x64x64 in 200 classes to train on, and the 10,000 of `val`, whose labels are known, to test.

    Under root, or root/tiny-imagenet-200: `wnids.txt` with a class a line, `train/<class>/images/*.JPEG`, `val/images`,
    and `val/val_annotations.txt` with lines of an image's name, a tab, and its class. Classes are in alphabetical
    order; their names come from `words.txt`, where that is there. The published test set has no labels. Nothing is ever
    downloaded. Raises UsageError for what is missing, cannot be read, or does not fit.
    """
    root = Path(root)
    if not (root / "wnids.txt").is_file() and (root / _FOLDER).is_dir():
        root = root / _FOLDER
    classes = sorted(line.strip() for line in _lines(root / "wnids.txt"))
    number = {name: label for label, name in enumerate(classes)}
    train = [
        (path, number[name])
        for name in classes
        for path in sorted((root / "train" / name / "images").glob("*.JPEG"), key=_order)
    ]
    empty = set(classes) - {path.parent.parent.name for path, _ in train}
    if empty:
        raise UsageError(f"{root / 'train' / min(empty) / 'images'} has no image: expected files ending in .JPEG")
    test = [_annotated(root, line, number) for line in _lines(root / "val" / "val_annotations.txt")]
    names = _names(root / "words.txt", classes)
    return _read(train, names), _read(test, names)


def _lines(path: Path) -> list[str]:
    try:
        lines = [line for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    except OSError as error:
        raise UsageError(
            f"{path} cannot be read ({error.strerror}): dataset.root is to hold {_FOLDER} with wnids.txt, train, and "
            "val with val_annotations.txt"
        ) from error
    if not lines:
        raise UsageError(f"{path} is empty: expected the file of Tiny-ImageNet")
    return lines


def _annotated(root: Path, line: str, number: dict[str, int]) -> tuple[Path, int]:
    name, _, rest = line.partition("\t")
    label = number.get(rest.partition("\t")[0].strip())
    if label is None:
        raise UsageError(
            f"{root / 'val' / 'val_annotations.txt'} has the line {line.split(chr(9))[:2]}: expected the name of an "
            "image, a tab, and a class of wnids.txt"
        )
    return root / "val" / "images" / name, label


def _names(path: Path, classes: list[str]) -> tuple[str, ...]:
    """The first word for each class; the class itself where there is none, or two share it."""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
    words = {name: rest.split(",")[0].strip() for name, _, rest in (line.partition("\t") for line in lines)}
    names = [words.get(name) or name for name in classes]
    times = Counter(names)
    return tuple(name if times[name] == 1 else own for name, own in zip(names, classes, strict=True))


def _order(path: Path) -> tuple[int, str]:
    """n01443537_2 before n01443537_10."""
    return len(path.name), path.name


def _read(files: list[tuple[Path, int]], names: tuple[str, ...]) -> ImageArrays:
    images = np.empty((len(files), 3, SIDE, SIDE), np.uint8)
    for place, (path, _) in enumerate(files):
        images[place] = decode(path, partial(_whole, path), SIDE).transpose(2, 0, 1)
    labels = torch.tensor([label for _, label in files])
    return ImageArrays(torch.from_numpy(images), labels, len(names), names)


def _whole(path: Path, width: int, height: int) -> Box:
    if (width, height) != (SIDE, SIDE):
        raise UsageError(f"{path} is {width} pixels wide and {height} high: expected {SIDE} and {SIDE}")
    return 0, 0, width, height
