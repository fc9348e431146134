"""DataModule: the Lightning data module for any set of images."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytorch_lightning as pl
from torch import Tensor

from budgetnet.data.arrays import ImageArrays, alike, hold_out, stratified_order
from budgetnet.data.device_loader import DeviceLoader
from budgetnet.data.folder import CENTRE, FolderLoader, ImageFolder
from budgetnet.data.imbalance import long_tailed
from budgetnet.data.options import DatasetOptions
from budgetnet.data.picture_loaders import PatchLoader, PictureLoader
from budgetnet.data.picture_sets import PictureSet
from budgetnet.data.preprocessing import Preprocessing
from budgetnet.data.sharding import Batch, ShardedLoader, plan_batches
from budgetnet.errors import UsageError

ImageSet = ImageArrays | ImageFolder | PictureSet
Loader = DeviceLoader | FolderLoader | PatchLoader | PictureLoader
Source = Callable[[str | Path, bool], tuple[ImageSet, ImageSet] | tuple[ImageSet, ImageSet, ImageSet]]
_LOOKED_AT = 40
"""Images of a folder that are looked at when the run begins."""
Arrays = tuple[np.ndarray | Tensor, np.ndarray | Tensor | Sequence[int]]


class Splits(NamedTuple):
    """The training set, the validation set (None if no images are held out), and the official test set."""

    train: ImageSet
    validation: ImageSet | None
    test: ImageSet


class DataModule(pl.LightningDataModule):
    """The loaders of one dataset. Sets in memory are held on the trainer's device, folders are read by workers.

    source: a function of (root, download) that returns (training set, test set), such as `readers.cifar10`, or
    (training set, validation set, test set), such as `segmentation.part_labels`.

    Data are read on first access. Properties and loaders then raise UsageError for data that cannot be used, and for
    options that do not fit the data.
    """

    def __init__(self, options: DatasetOptions, source: Source) -> None:
        super().__init__()
        self.options, self.source, self.name = options, source, options.name
        self.channels_last = options.channels_last
        """Whether batches have the memory format channels_last; it can be set before the first batch."""
        self.warnings: list[str] = []
        """What is odd about the images, a line for each set."""
        self._splits: Splits | None = None
        self._mean, self._std = options.mean, options.std

    @classmethod
    def from_arrays(cls, train: Arrays, test: Arrays, num_classes: int | None = None, **options: Any) -> DataModule:
        """A data module of arrays.

        train, test: images (N, C, H, W), uint8 or floats in 0..1, with labels as for `ImageArrays.of`.
        num_classes: by default the largest training label plus one. options: see `DatasetOptions`.
        Raises UsageError for inconsistent arrays and for options out of range.
        """
        first = ImageArrays.of(*train, num_classes)
        return cls(DatasetOptions(**options), partial(_given, first, ImageArrays.of(*test, first.num_classes)))

    @property
    def seed(self) -> int:
        """The seed of the order of images and of their augmentation."""
        return self.options.seed

    @property
    def batch_size(self) -> int:
        """The number of images in a training step, over all processes."""
        return self.options.batch_size

    @property
    def baseline_epochs(self) -> int:
        """The number of epochs of the baseline on this dataset."""
        return self.options.baseline_epochs

    # -- the data ---------------------------------------------------------------------------------------------------

    @property
    def splits(self) -> Splits:
        """The training, validation and test sets, after the limits on their sizes.

        Raises UsageError for data that cannot be used.
        """
        self.setup()
        assert self._splits is not None
        return self._splits

    def prepare_data(self) -> None:
        """Download missing files. Lightning calls this in one process of a machine before `setup` in all processes.

        Raises UsageError for data that cannot be used.
        """
        self.setup()

    def setup(self, stage: str | None = None) -> None:
        """Read and split the data on the first call.

        Raises UsageError for a source that does not give two or three sets of images of one shape, and for options that
        do not fit the data.
        """
        if self._splits is not None:
            return
        if not callable(self.source):
            raise UsageError(f"dataset.source={self.source}: expected a function of (root, download)")
        options = self.options
        sets = self.source(options.root, options.download)
        if not isinstance(sets, tuple) or len(sets) not in (2, 3) or not all(isinstance(s, ImageSet) for s in sets):
            raise UsageError(
                f"dataset.source gave {type(sets).__name__}: expected the training and the test set, two sets of "
                "images, or three with a validation set between them"
            )
        train, *own, test = sets
        for role, other in zip(("test", "validation"), (test, *own), strict=False):
            same = (other.labels.dim(), other.labels.dtype) == (train.labels.dim(), train.labels.dtype)
            same = same and other.num_classes == train.num_classes
            if other.shape != train.shape or not same:
                raise UsageError(
                    f"{self.name}: the training set is {train}, the {role} set {other}: expected images of one shape "
                    "and labels of one kind"
                )
        for role, images in zip(("training", "test", "validation"), (train, test, *own), strict=False):
            self._check_pixels(role, images)
        self._check_images(train)
        train, held_out = self._held_out(train, *own)
        train = _limit(train, options.limit_train, options.split_seed)
        if options.imbalance is not None:
            train = train.subset(long_tailed(train.labels, options.imbalance, train.num_classes))
        self._splits = Splits(train, held_out, _limit(test, options.limit_test, options.split_seed))

    def _check_pixels(self, role: str, images: ImageSet) -> None:
        """Note in `warnings` if images are alike. Raises UsageError, naming the image, if a value is not finite."""
        if isinstance(images, ImageArrays):
            if (number := images.not_finite()) is not None:
                raise UsageError(
                    f"{self.name}: image {number} of the {role} set (the first is 0) has a pixel that is nan or "
                    "infinite: repair or remove it"
                )
            line = alike(images.images)
        elif isinstance(images, ImageFolder):
            line = alike(images.sample(_LOOKED_AT))
        else:
            return
        if line is not None:
            self.warnings.append(f"{self.name}: {line} of the {role} set: is it read as it should be?")

    def _held_out(self, train: ImageSet, own: ImageSet | None = None) -> tuple[ImageSet, ImageSet | None]:
        """The remaining training set and the validation set. own: the validation set of the source, if it has one."""
        count, name = self.options.validation, self.name
        if isinstance(count, float):
            count = max(1, round(count * len(train))) if own is None else None
        tenth = f"set dataset.validation={len(train) // 10}, or 0 to hold out none"
        if own is not None and count:
            raise UsageError(
                f"dataset.validation={count}: {name} has a validation set of its own, of {len(own)} "
                "images; set dataset.validation=null to use it, or 0 to use none"
            )
        if own is None and count is None:
            raise UsageError(f"dataset.validation=null: {name} has no validation set of its own; {tenth}")
        if not count:
            return train, own if count is None else None
        if count >= len(train):
            raise UsageError(
                f"dataset.validation={count}: expected less than the {len(train)} training images; {tenth}"
            )
        remaining, held_out = hold_out(train.labels, count, self.options.split_seed)
        return train.subset(remaining), train.subset(held_out)

    def check(self, world_size: int) -> None:
        """Raises UsageError if the sets cannot be divided equally among `world_size` processes."""
        plan_batches(self.train_size, self.batch_size, world_size, drop_last=True)
        for images in (self.splits.validation, self.splits.test):
            if images is not None:
                plan_batches(len(images), self.options.eval_batch_size, world_size)

    def _check_images(self, train: ImageSet) -> None:
        """Raises UsageError if mean, std or padding do not fit images of this shape."""
        channels, height, width = train.shape
        for option, least in (("mean", -math.inf), ("std", 0.0)):
            values = getattr(self, f"_{option}")
            if values is None:
                continue
            numbers = isinstance(values, Sequence) and all(type(value) in (int, float) for value in values)
            if not numbers or len(values) != channels or not all(least < value < math.inf for value in values):
                raise UsageError(
                    f"dataset.{option}={values}: expected a list of {channels} numbers{', each above 0' * (least == 0)}"
                )
        padding, most = self.options.augment.get("padding", 0), min(height, width)
        if type(padding) is not int or not 0 <= padding <= most:
            raise UsageError(f"dataset.augment.padding={padding!r}: expected a whole number of pixels, 0 to {most}")
        if padding and isinstance(train, ImageFolder):
            raise UsageError(f"dataset.augment.padding={padding}: pictures in folders are cropped at random instead")

    @property
    def num_classes(self) -> int:
        """The number of classes of the dataset."""
        return self.splits.train.num_classes

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of an image."""
        return self.splits.train.shape

    @property
    def in_channels(self) -> int:
        """The number of channels of an image."""
        return self.input_shape[0]

    @property
    def train_size(self) -> int:
        """The number of training images, without those held out."""
        return len(self.splits.train)

    @property
    def mean(self) -> tuple[float, ...]:
        """The mean of each channel, (C,), for pixels in 0..1."""
        return self._statistics()[0]

    @property
    def std(self) -> tuple[float, ...]:
        """The standard deviation of each channel, (C,), for pixels in 0..1."""
        return self._statistics()[1]

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of the classes, or their numbers if they have none."""
        names = getattr(self.splits.train, "class_names", ())
        return tuple(names) if len(names) == self.num_classes else tuple(map(str, range(self.num_classes)))

    @property
    def preprocessing(self) -> Preprocessing:
        """What is done to a picture before the network sees it in an evaluation."""
        train, (channels, *size) = self.splits.train, self.input_shape
        height, width = size
        mode = {1: "L", 3: "RGB"}.get(channels, "")
        crop, exif = (CENTRE, train.exif) if isinstance(train, ImageFolder) else (1.0, True)
        return Preprocessing(mode, (height, width), self.mean, self.std, crop, exif)

    def _statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        if self._mean is None or self._std is None:
            self._mean, self._std = self.splits.train.statistics()
        return tuple(self._mean), tuple(self._std)

    def steps_per_epoch(self, world_size: int = 1) -> int:
        """The number of training steps in an epoch. It does not depend on the world size, which divides each batch.

        Raises UsageError if a batch cannot be divided equally among the processes.
        """
        return plan_batches(self.train_size, self.batch_size, world_size, drop_last=True)[0]

    def images_per_epoch(self, world_size: int = 1) -> int:
        """The number of training images in an epoch, over all processes, in full batches only.

        Raises UsageError if a batch cannot be divided equally among the processes.
        """
        return plan_batches(self.train_size, self.batch_size, world_size, drop_last=True)[1]

    @property
    def own_task(self) -> Mapping[str, Any] | None:
        """The section `task` of the dataset, for its own kind of task, or None for one that its labels tell."""
        return None

    # -- loaders ----------------------------------------------------------------------------------------------------

    def train_dataloader(self) -> ShardedLoader:
        """The training set, shuffled and augmented, in batches of equal size."""
        loader = self._loader(self.splits.train, self.batch_size, training=True)
        assert isinstance(loader, ShardedLoader)
        return loader

    def val_dataloader(self) -> Loader | list[Batch]:
        """The validation set in its order; without one an empty list, for which Lightning skips validation."""
        held_out = self.splits.validation
        return [] if held_out is None else self._loader(held_out, self.options.eval_batch_size, training=False)

    def test_dataloader(self) -> Loader:
        """The test set in its order."""
        return self._loader(self.splits.test, self.options.eval_batch_size, training=False)

    def further_tests(self) -> Mapping[str, Loader]:
        """Test sets beside the first, by name: the trained network is evaluated on each."""
        return {}

    def shown(self, count: int) -> Batch:
        """The first `count` test images, or parts of them, for a report."""
        images, targets = next(iter(self.test_dataloader()))
        return images[:count], targets[:count]

    @property
    def place(self) -> dict[str, Any]:
        """The rank of this process, the number of processes and the device, as arguments of a loader."""
        trainer = self.trainer
        return {
            "rank": trainer.global_rank if trainer else 0,
            "world_size": trainer.world_size if trainer else 1,
            "device": trainer.strategy.root_device if trainer else self.options.device,
        }

    def _loader(self, data: ImageSet, batch_size: int, training: bool) -> Loader:
        options: dict[str, Any] = {
            "mean": self.mean,
            "std": self.std,
            "shuffle": training,
            "drop_last": training,
            "seed": self.seed,
            "channels_last": self.channels_last,
            **self.place,
        }
        assert not isinstance(data, PictureSet)
        if isinstance(data, ImageFolder):
            flip = self.options.augment.get("flip", True)
            return FolderLoader(data, batch_size, augment=training, flip=flip, workers=self.options.workers, **options)
        return DeviceLoader(data, batch_size, **options, **(self.options.augment if training else {}))


def _given(train: ImageSet, test: ImageSet, root: str | Path, download: bool) -> tuple[ImageSet, ImageSet]:
    """A source of given sets; a function rather than a lambda, so that a DataModule can be pickled."""
    return train, test


def _limit(data: ImageSet, limit: int | None, seed: int) -> ImageSet:
    if limit is None or limit >= len(data):
        return data
    return data.subset(stratified_order(data.labels, "limit", seed)[:limit])
