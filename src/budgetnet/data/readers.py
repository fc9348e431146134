"""Readers of CIFAR-10, CIFAR-100, MNIST and scikit-learn's digits, which need numpy alone.

Every reader takes (root, download) and returns the official (training set, test set). Those that read files raise
UsageError if a file is missing and cannot be downloaded, or has another checksum.
"""

from __future__ import annotations

import pickle
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from budgetnet.data.arrays import ImageArrays, hold_out
from budgetnet.data.official import OfficialFiles
from budgetnet.errors import UsageError

CIFAR10 = OfficialFiles(
    folder="cifar-10-batches-py",
    md5={
        "data_batch_1": "c99cafc152244af753f735de768cd75f",
        "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
        "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
        "data_batch_4": "634d18415352ddfa80567beed471001a",
        "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
        "test_batch": "40351d587109b95175f43aff81a1287e",
        "batches.meta": "5ff9c542aee3614f3951f8cda6e48888",
    },
    url="https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
    archive_md5="c58f30108f718f92721af3b95e74349a",
)
CIFAR100 = OfficialFiles(
    folder="cifar-100-python",
    md5={
        "train": "16019d7e3df5f24257cddd939b257f8d",
        "test": "f0ef6b0ae62326f3e7ffdfab6717acfc",
        "meta": "7973b15100ade9c7d40fb424638fde48",
    },
    url="https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
    archive_md5="eb9058c3a382ffc7106e4002c42a8d85",
)
MNIST = OfficialFiles(
    folder="MNIST/raw",
    md5={
        "train-images-idx3-ubyte.gz": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
        "train-labels-idx1-ubyte.gz": "d53e105ee54ea40749a09fcbcd1e9432",
        "t10k-images-idx3-ubyte.gz": "9fb629c4189551a2d022fa330f9573f3",
        "t10k-labels-idx1-ubyte.gz": "ec29112dd5afa0611ce80d1b7f02629c",
    },
    unpacked_md5={
        "train-images-idx3-ubyte.gz": "6bbc9ace898e44ae57da46a324031adb",
        "train-labels-idx1-ubyte.gz": "a25bea736e30d166cdddb491f175f624",
        "t10k-images-idx3-ubyte.gz": "2646ac647ad5339dbf082846283269ea",
        "t10k-labels-idx1-ubyte.gz": "27ae3e4e09519cfbb04c329615203637",
    },
    url="https://ossci-datasets.s3.amazonaws.com/mnist/",
)

Sets = tuple[ImageArrays, ImageArrays]


def cifar10(root: str | Path, download: bool = True) -> Sets:
    """50,000 and 10,000 images of 3x32x32 in 10 classes, in the official order."""
    batches = [f"data_batch_{number}" for number in range(1, 6)]
    return _cifar(CIFAR10, Path(root), download, batches, "test_batch", "labels", ("batches.meta", "label_names"))


def cifar100(root: str | Path, download: bool = True) -> Sets:
    """50,000 and 10,000 images of 3x32x32 in 100 classes (the fine labels), in the official order."""
    return _cifar(CIFAR100, Path(root), download, ["train"], "test", "fine_labels", ("meta", "fine_label_names"))


def mnist(root: str | Path, download: bool = True) -> Sets:
    """60,000 and 10,000 images of 1x28x28 in 10 classes, in the official order."""
    root = Path(root)
    MNIST.locate(root, download)

    def read(split: str) -> ImageArrays:
        images = _idx(MNIST.read(root, f"{split}-images-idx3-ubyte.gz"))
        labels = _idx(MNIST.read(root, f"{split}-labels-idx1-ubyte.gz"))
        return ImageArrays.of(images[:, None], labels, num_classes=10)

    return read("train"), read("t10k")


def digits(root: str | Path = "", download: bool = False) -> Sets:
    """1,437 and 360 images in 10 classes: a fixed stratified split of scikit-learn's handwritten digits.

    Their file comes with scikit-learn. The 8x8 images are resized bilinearly to 1x28x28. Raises UsageError without
    scikit-learn.
    """
    data = _all_digits()
    train, test = hold_out(data.labels, 360, seed=0)
    return data.subset(train), data.subset(test)


@cache
def _all_digits() -> ImageArrays:
    """scikit-learn's file of digits, parsed once a process; importing scikit-learn takes as long as importing torch."""
    package = find_spec("sklearn")
    if package is None or package.origin is None:
        raise UsageError("dataset=digits comes with scikit-learn, which is not installed: pip install scikit-learn")
    table = np.loadtxt(Path(package.origin).with_name("datasets") / "data" / "digits.csv.gz", delimiter=",")
    small = torch.from_numpy(table[:, :-1]).view(-1, 1, 8, 8) * (255 / 16)
    images = functional.interpolate(small, size=(28, 28), mode="bilinear", align_corners=False)
    return ImageArrays.of(images.round().to(torch.uint8), table[:, -1].astype(np.int64), num_classes=10)


def _cifar(
    files: OfficialFiles,
    root: Path,
    download: bool,
    train: list[str],
    test: str,
    labels: str,
    names: tuple[str, str],
) -> Sets:
    files.locate(root, download)

    def load(name: str) -> dict[bytes, Any]:
        contents: dict[bytes, Any] = pickle.loads(
            files.read(root, name), encoding="bytes"
        )  # safe, since the checksum is right
        return contents

    class_names = tuple(name.decode() for name in load(names[0])[names[1].encode()])

    def read(batches: list[str]) -> ImageArrays:
        loaded = [load(name) for name in batches]
        images = np.concatenate([batch[b"data"] for batch in loaded]).reshape(-1, 3, 32, 32)
        classes = np.concatenate([batch[labels.encode()] for batch in loaded])
        return ImageArrays(torch.from_numpy(images), torch.from_numpy(classes).long(), len(class_names), class_names)

    return read(train), read([test])


def _idx(contents: bytes) -> np.ndarray:
    """The array of bytes in an idx file, which has two zeros, the type, the number of axes, their sizes, the values."""
    axes = contents[3]
    shape = np.frombuffer(contents, ">i4", count=axes, offset=4)
    return np.frombuffer(contents, np.uint8, offset=4 + 4 * axes).reshape(shape).copy()
