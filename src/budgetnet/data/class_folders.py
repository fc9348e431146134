"""A folder of pictures as a dataset: a folder for each class, divided into parts by folders or by a fraction."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from budgetnet.data.arrays import hold_out
from budgetnet.data.folder import ImageFolder
from budgetnet.errors import UsageError

SUFFIXES = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm",
)  # fmt: skip
MOST_PIXELS = 4096
"""The largest height and width to which images are resized."""
_TRAIN, _VALIDATION, _TEST = ("train", "training"), ("val", "valid", "validation"), ("test", "testing")
"""What the folders of the parts may be called, in small letters or large ones."""
_LAYOUT = "expected a folder of images for each class in it, or train/ with val/ or test/ that hold such folders"

Sets = tuple[ImageFolder, ImageFolder] | tuple[ImageFolder, ImageFolder, ImageFolder]


def read_class_folders(
    root: str | Path, download: bool = False, image_size: int = 224, exif: bool = True, test: float = 0.2
) -> Sets:
    """The images below `root/<class>`, or below `root/train/<class>` with `root/val/<class>` or `root/test/<class>`.

    The parts may be called `Training`, `valid`, `Testing` and the like, too. With both val and test the result is
    (training set, validation set, test set), with one of them (training set, test set). Without either, every class
    gives the part `test` of its images to the test set, the same for all seeds.
    Nothing is downloaded. See `scan` for what counts as an image, and for image_size and exif.
    Raises UsageError for folders that hold no such dataset, parts whose classes differ, and options out of range.
    """
    root = Path(root)
    if not root.is_dir():
        raise UsageError(f"dataset.root={root} is not a directory: {_LAYOUT}")
    folders = {path.name.lower(): path.name for path in sorted(root.iterdir()) if path.is_dir()}

    def part(*names: str) -> list[str]:
        return [folders[name] for name in names if name in folders][:1]

    first, others = part(*_TRAIN), [*part(*_VALIDATION), *part(*_TEST)]
    if first and others:
        train, *rest = (scan(root / name, image_size, exif) for name in (*first, *others))
        if train.num_classes < 2:
            raise UsageError(f"{root / first[0]} has one class, {train.class_names[0]}: {_LAYOUT}")
        for name, other in zip(others, rest, strict=True):
            if different := sorted(set(train.class_names) ^ set(other.class_names)):
                raise UsageError(
                    f"{root}: {first[0]} and {name} must have the same classes, but {different[0]} is in one of them "
                    "alone"
                )
        return (train, rest[0]) if len(rest) == 1 else (train, rest[0], rest[1])
    images = scan(root, image_size, exif)
    if images.num_classes < 2:
        raise UsageError(f"{root} has one class, {images.class_names[0]}: {_LAYOUT}")
    if isinstance(test, bool) or not isinstance(test, (int, float)) or not 0 < test < 1:
        raise UsageError(f"dataset.source.test={test!r}: expected the part of the images to test on, such as 0.2")
    count = round(test * len(images))
    fewest = int(torch.bincount(images.labels).min())
    if fewest < 2 or not count:
        name = images.class_names[int(torch.bincount(images.labels).argmin())]
        raise UsageError(
            f"{root / name} has {fewest} image{'s'[: fewest != 1]}: expected enough to train and to test on, since "
            f"there is no folder {root / 'test'}"
        )
    remaining, held_out = hold_out(images.labels, count, seed=0)
    return images.subset(remaining), replace(images.subset(held_out), left_out="")


def scan(root: str | Path, image_size: int = 224, exif: bool = False) -> ImageFolder:
    """The images below `root/<class>`, at any depth, in alphabetical order of classes and paths.

    An image is a file with one of SUFFIXES. Hidden files and folders, other files, and folders without an image are
    left out, and counted. image_size, exif: as in `ImageFolder`.
    Raises UsageError for a missing folder, one without a class, and options out of range.
    """
    if type(image_size) is not int or not 0 < image_size <= MOST_PIXELS:
        raise UsageError(f"dataset.image_size={image_size!r}: expected 1 to {MOST_PIXELS} pixels")
    if type(exif) is not bool:
        raise UsageError(f"dataset.exif={exif!r}: expected true or false")
    root = Path(root)
    if not root.is_dir():
        raise UsageError(f"{root} is not a directory: {_LAYOUT}")
    names, files, labels, left_out = list[str](), list[bytes](), list[int](), Counter[str]()
    for entry in sorted(os.scandir(root), key=lambda entry: entry.name):
        if entry.name.startswith("."):
            left_out["hidden"] += 1
        elif not entry.is_dir():
            left_out["not in a folder of a class"] += 1
        elif found := sorted(os.path.relpath(path, root) for path in _images(entry.path, left_out)):
            labels += [len(names)] * len(found)
            names.append(entry.name)
            files += map(os.fsencode, found)
        else:
            left_out["folders without an image"] += 1
    if not names:
        raise UsageError(f"{root} has no class: {_LAYOUT}{_but(left_out)}")
    said = ", ".join(f"{count} {what}" for what, count in left_out.items())
    return ImageFolder(root, np.array(files), torch.tensor(labels), tuple(names), image_size, exif, said)


def _images(folder: str, left_out: Counter[str]) -> Iterator[str]:
    """The paths of the images below a folder, also behind links, each folder once. left_out: counts the other files."""
    seen = set[str]()
    for path, folders, files in os.walk(folder, followlinks=True):
        if (real := os.path.realpath(path)) in seen:  # a link that leads to a folder above it
            folders.clear()
            continue
        seen.add(real)
        hidden = [name for name in (*folders, *files) if name.startswith(".")]
        left_out.update({"hidden": len(hidden)} if hidden else {})
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            if name.lower().endswith(SUFFIXES) and not name.startswith("."):
                yield f"{path}/{name}"
            elif not name.startswith("."):
                left_out[f"no image ({Path(name).suffix.lower() or 'without a suffix'})"] += 1


def _but(left_out: Counter[str]) -> str:
    return f" (found: {', '.join(f'{count} {what}' for what, count in left_out.items())})" if left_out else ""
