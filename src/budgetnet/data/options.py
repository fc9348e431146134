"""The options of a dataset."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from budgetnet.errors import UsageError, nearest
from budgetnet.options import NO_EFFECT

MOST_WORKERS = 1024


@dataclass(frozen=True)
class DatasetOptions:
    """conf/dataset without its `source`.

    root, download: the arguments of the source.
    batch_size: images in a training step, over all processes. An incomplete last batch is dropped.
    eval_batch_size: images in a validation or test batch, over all processes. Every image counts once.
    validation: the number of images held out of the training set, stratified by class if images have one. The split
    depends on split_seed alone, so that runs of different seeds have the same one. 0 holds out none, without
    validation. None uses the validation set of the source. A fraction between 0 and 1 is of the training images, for a
    source without a validation set; one that it has is used.
    image_size, exif: further arguments of the source, if it takes them; None leaves them to it.
    limit_train, limit_test: the most images to use, stratified; None uses all.
    imbalance: what part of the last class is left in a long-tailed training set (`long_tailed`); validation and test
    sets stay whole. None keeps all images.
    augment: {"padding": pixels, "flip": bool} for training batches (`DeviceLoader`). Folders are cropped in their own
    way, and mirrored unless "flip" is false. None is as if it were left out.
    mean, std: numbers for each channel, for pixels in 0..1. None computes them on the training split, or uses those of
    ImageNet for a folder.
    workers: the number of decoding processes for a folder.
    seed: the seed of the order of images and of their augmentation.
    device: the device of batches without a trainer.
    baseline_epochs: the epochs of the baseline on this dataset, with which the train cost is compared.

    Raises UsageError for values that no dataset can have.
    """

    name: str = "images"
    root: str | Path = field(default="data", metadata=NO_EFFECT)
    download: bool = field(default=True, metadata=NO_EFFECT)
    batch_size: int = 128
    eval_batch_size: int = field(default=1000, metadata=NO_EFFECT)
    validation: int | float | None = 0
    split_seed: int = 0
    limit_train: int | None = None
    limit_test: int | None = None
    imbalance: float | None = None
    image_size: int | None = None
    exif: bool | None = None
    augment: Mapping[str, Any] = field(default_factory=dict)
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None
    channels_last: bool = field(default=False, metadata=NO_EFFECT)
    workers: int = field(default=0, metadata=NO_EFFECT)
    seed: int = 0
    device: Any = field(default="cpu", metadata=NO_EFFECT)
    baseline_epochs: int = 100

    def __post_init__(self) -> None:
        self._check_texts_and_switches()
        self._check_whole_numbers()
        self._check_augmentation()
        if (self.mean is None) != (self.std is None):
            raise UsageError("dataset.mean and dataset.std: give both, or neither to have them measured")

    def _check_texts_and_switches(self) -> None:
        if self.root is None:
            raise UsageError("dataset.root is missing: expected the folder of the images, dataset.root=my_pictures")
        for name in ("root", "name"):
            value = getattr(self, name)
            if not isinstance(value, (str, Path)) or not str(value).isprintable():
                raise UsageError(f"dataset.{name}={value!r}: expected text")
        for name in ("download", "channels_last"):
            if not isinstance(getattr(self, name), bool):
                raise UsageError(f"dataset.{name}={getattr(self, name)!r}: expected true or false")

    def _check_whole_numbers(self) -> None:
        fixed = {"batch_size": 1, "eval_batch_size": 1, "workers": 0, "baseline_epochs": 1}
        may_be_null = {"validation": 0, "limit_train": 1, "limit_test": 1}
        whole = fixed | {name: least for name, least in may_be_null.items() if getattr(self, name) is not None}
        for name, least in whole.items():
            value = getattr(self, name)
            if name == "validation" and isinstance(value, float) and 0 < value < 1:
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise UsageError(f"dataset.{name}={value}: expected a whole number, {least} or more")
        if self.workers > MOST_WORKERS:
            raise UsageError(f"dataset.workers={self.workers}: expected {MOST_WORKERS} or fewer")
        for name in ("seed", "split_seed"):
            if not isinstance(getattr(self, name), int):
                raise UsageError(f"dataset.{name}={getattr(self, name)!r}: expected a whole number")

    def _check_augmentation(self) -> None:
        if self.augment is None:
            object.__setattr__(self, "augment", {})
        if not isinstance(self.augment, Mapping):
            raise UsageError(f"dataset.augment={self.augment!r}: expected padding and flip")
        for key in self.augment.keys() - {"padding", "flip"}:
            raise UsageError(f"dataset.augment.{key} is unknown{nearest(str(key), ('padding', 'flip'))}")
        object.__setattr__(self, "augment", {name: each for name, each in self.augment.items() if each is not None})
        if not isinstance(self.augment.get("flip", False), bool):
            raise UsageError(f"dataset.augment.flip={self.augment['flip']!r}: expected true or false")
