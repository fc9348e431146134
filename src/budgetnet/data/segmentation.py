"""Readers of segmentation datasets: folders of images and masks, and the LFW Part Labels. Nothing is downloaded."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

from budgetnet.data.arrays import NO_CLASS, ImageArrays
from budgetnet.data.pixels import as_rgb
from budgetnet.errors import UsageError

SUFFIXES = (".png", ".jpg", ".jpeg")
MOST_CLASSES = NO_CLASS
_FORMATS = ("JPEG", "PNG", "PPM")
_NUMBERS = ("L", "P", "1", "I", "I;16")
"""Pillow's modes of images with one number for each pixel."""

Sets = tuple[ImageArrays, ImageArrays] | tuple[ImageArrays, ImageArrays, ImageArrays]


# -- folders ----------------------------------------------------------------------------------------------------------


def image_masks(root: str | Path, download: bool = False, num_classes: int | None = None) -> Sets:
    """Read `root/train/images/NAME.png` (or .jpg) with `root/train/masks/NAME.png`, and `val` and `test` likewise.

    A mask has the class of every pixel, 0 to num_classes - 1, or 255 at pixels without a class; a palette is ignored.
    Images are converted to RGB and must have one size. With both `val` and `test`, the result is (training set,
    validation set, test set), with one of them (training set, test set).

    num_classes: None stands for the largest class in the training masks plus one.
    Raises UsageError for a missing folder or mask, for training masks of one class, and for a file that cannot be read
    or does not fit.
    """
    if num_classes is not None and (type(num_classes) is not int or not 0 < num_classes <= MOST_CLASSES):
        raise UsageError(f"dataset.source.num_classes={num_classes!r}: expected 1 to {MOST_CLASSES}, or null")
    root = Path(root)
    parts = ["train", *(part for part in ("val", "test") if (root / part).is_dir())]
    if not (root / "train").is_dir() or len(parts) == 1:
        missing = "val or test" if (root / "train").is_dir() else "train"
        raise UsageError(
            f"dataset.root={root} holds no folder {missing}: expected train/images/*.png with train/masks/*.png, and "
            "val or test likewise"
        )
    files = {part: _pairs(root / part) for part in parts}
    size = _picture(files["train"][0][0]).shape[:2]
    images, masks = {}, {}
    for part, pairs in files.items():
        images[part] = np.empty((len(pairs), 3, *size), np.uint8)
        masks[part] = np.empty((len(pairs), *size), np.uint8)
        for number, (image, mask) in enumerate(pairs):
            images[part][number] = _sized(image, _picture(image), size).transpose(2, 0, 1)
            masks[part][number] = _sized(mask, _classes(mask, num_classes), size)
        if num_classes is None:  # the training masks come first
            num_classes = int(masks[part].max(initial=0, where=masks[part] != NO_CLASS)) + 1
        if part == "train" and len(np.setdiff1d(masks[part], NO_CLASS)) < 2:
            raise UsageError(
                f"{root / 'train' / 'masks'} has fewer than two classes: expected 0, 1, ... for the classes of the "
                f"pixels; {NO_CLASS} stands for none, so that black and white masks are to hold 0 and 1"
            )
    first, *rest = (ImageArrays.of(images[part], masks[part], num_classes) for part in parts)
    return (first, rest[0]) if len(rest) == 1 else (first, rest[0], rest[1])


def _pairs(folder: Path) -> list[tuple[Path, Path]]:
    """The pairs (image, mask) of a folder in alphabetical order."""
    images = sorted(path for path in (folder / "images").glob("*") if path.suffix.lower() in SUFFIXES)
    if not images:
        raise UsageError(f"{folder / 'images'} has no image: expected files ending in {', '.join(SUFFIXES)}")
    pairs = [(path, folder / "masks" / f"{path.stem}.png") for path in images]
    for image, mask in pairs:
        if not mask.is_file():
            raise UsageError(f"{image} has no mask: expected {mask}")
    return pairs


def _sized(path: Path, pixels: np.ndarray, size: Sequence[int]) -> np.ndarray:
    if pixels.shape[:2] != tuple(size):
        raise UsageError(
            f"{path} is {pixels.shape[1]} pixels wide and {pixels.shape[0]} high: expected {size[1]} and {size[0]}, as "
            "all images and masks of the dataset"
        )
    return pixels


def _classes(path: Path, num_classes: int | None) -> np.ndarray:
    """The classes in a mask, uint8 (H, W). Raises UsageError for a class out of range."""
    with _opened(path) as image:
        if image.mode not in _NUMBERS:
            raise UsageError(f"{path} is a picture of mode {image.mode}: expected one number for each pixel, its class")
        values = np.asarray(ImageOps.exif_transpose(image))
    most = MOST_CLASSES if num_classes is None else num_classes
    wrong = values[(values.astype(np.int64) >= most) & (values != NO_CLASS)]
    if len(wrong):
        raise UsageError(
            f"{path} has a pixel of class {int(wrong[0])}: expected 0 to {most - 1}, or {NO_CLASS} where it has none"
        )
    return values.astype(np.uint8)


def _picture(path: Path) -> np.ndarray:
    """The pixels of an image, uint8 (H, W, 3)."""
    with _opened(path) as image:
        try:
            return np.asarray(as_rgb(image))
        except UsageError as error:
            raise UsageError(f"{path}: {error}") from error


def _opened(path: Path) -> Image.Image:
    """The decoded image. Raises UsageError, naming the file, if it cannot be read."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(path, formats=_FORMATS)
            image.load()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        reason = (str(error).splitlines() or [""])[0]
        raise UsageError(f"{path} cannot be read as an image ({reason}); replace or remove it") from error
    return image


# -- LFW Part Labels --------------------------------------------------------------------------------------------------

PART_NAMES = ("hair", "skin", "background")
_COLOURS = {0xFF0000: 0, 0x00FF00: 1, 0x0000FF: 2}
_STORED, _BORDER = 250, 3
"""The size of the images in pixels, and the border added on each side, since 256 can be halved down to one pixel."""


def part_labels(root: str | Path, download: bool = False) -> tuple[ImageArrays, ImageArrays, ImageArrays]:
    """The official training, validation and test sets (1,500, 500 and 927 faces) of LFW Part Labels, 3x256x256.

    Kae, Sohn, Lee, Learned-Miller, CVPR 2013. The files below root are `lfw_funneled/NAME/NAME_0001.jpg`,
    `parts_lfw_funneled_gt_images/NAME_0001.ppm`, and the lists `parts_train.txt`, `parts_validation.txt` and
    `parts_test.txt` of lines "NAME NUMBER". Masks are red for hair (class 0), green for skin (1) and blue for the
    background (2). Images get a border of 3 black pixels without a class.
    Raises UsageError for a file that is missing, cannot be read, or is no image of 250x250 in these colours.
    """
    train, validation, test = (_part(Path(root), part) for part in ("train", "validation", "test"))
    return train, validation, test


def _part(root: Path, part: str) -> ImageArrays:
    faces, size = _listed(root / f"parts_{part}.txt"), _STORED + 2 * _BORDER
    inner = (slice(_BORDER, -_BORDER),) * 2
    images = np.zeros((len(faces), 3, size, size), np.uint8)
    masks = np.full((len(faces), size, size), NO_CLASS, np.uint8)
    for number, (name, face) in enumerate(faces):
        image = root / "lfw_funneled" / name / f"{face}.jpg"
        mask = root / "parts_lfw_funneled_gt_images" / f"{face}.ppm"
        for path in (image, mask):
            if not path.is_file():
                raise UsageError(f"{path} is missing, which {root / f'parts_{part}.txt'} lists")
        images[(number, slice(None), *inner)] = _sized(image, _picture(image), (_STORED, _STORED)).transpose(2, 0, 1)
        masks[(number, *inner)] = _painted(mask, _sized(mask, _picture(mask), (_STORED, _STORED)))
    return ImageArrays(torch.from_numpy(images), torch.from_numpy(masks), len(PART_NAMES), PART_NAMES)


def _listed(path: Path) -> list[tuple[str, str]]:
    """The pairs (NAME, NAME_0001) of the lines of a list."""
    try:
        lines = [
            line.split() for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()
        ]
    except OSError as error:
        raise UsageError(
            f"{path} cannot be read ({error.strerror}): dataset.root is to hold the lists parts_train.txt, "
            "parts_validation.txt and parts_test.txt, lfw_funneled and parts_lfw_funneled_gt_images"
        ) from error
    for line in lines:
        if len(line) != 2 or not line[1].isdecimal():
            raise UsageError(f"{path} has the line {' '.join(line)!r}: expected NAME NUMBER")
    if not lines:
        raise UsageError(f"{path} is empty: expected lines of NAME NUMBER")
    return [(name, f"{name}_{int(number):04d}") for name, number in lines]


def _painted(path: Path, pixels: np.ndarray) -> np.ndarray:
    """The classes, uint8 (H, W), of colours (H, W, 3)."""
    codes = pixels.astype(np.int32) @ np.array([0x10000, 0x100, 1], np.int32)
    classes = np.full(codes.shape, NO_CLASS, np.uint8)
    for colour, number in _COLOURS.items():
        classes[codes == colour] = number
    unknown = pixels[classes == NO_CLASS]
    if len(unknown):
        raise UsageError(
            f"{path} has the colour {tuple(unknown[0].tolist())}: expected red (hair), green (skin) and blue "
            "(background) alone"
        )
    return classes
