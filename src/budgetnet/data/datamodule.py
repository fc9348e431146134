"""DataModule: any set of images as Lightning's training, validation and test loaders."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor

from budgetnet.data.arrays import ImageArrays, hold_out, stratified_order
from budgetnet.data.device_loader import DeviceLoader
from budgetnet.data.folder import FolderLoader, ImageFolder
from budgetnet.data.sharding import Batch, plan_batches
from budgetnet.errors import UsageError, nearest

MOST_WORKERS = 1024
ImageSet = ImageArrays | ImageFolder
Source = Callable[[str, bool], tuple[ImageSet, ImageSet] | tuple[ImageSet, ImageSet, ImageSet]]
Arrays = tuple[np.ndarray | Tensor, np.ndarray | Tensor | Sequence[int]]


class Splits(NamedTuple):
    """What is trained on, what models are selected by (None: nothing is), and the official test set."""

    train: ImageSet
    validation: ImageSet | None
    test: ImageSet


class DataModule(pl.LightningDataModule):
    """Loaders of one dataset; sets in memory live on the trainer's device, folders are read by worker processes.

    source: (root, download) -> (training set, test set), such as `readers.cifar10`, or (training set, validation set,
    test set), such as `segmentation.part_labels`; root, download: its arguments.
    batch_size: images of a training step, all processes together; an incomplete last batch is dropped. eval_batch_size:
    the same for validation and test, where every image counts once and none is dropped.
    validation: images held out of the training set, stratified and fixed by split_seed, so that runs of different seeds
    share them; 0 holds out none, and then there is nothing to validate on. None: the source's own validation set.
    Images with masks are held out at random.
    limit_train, limit_test: use only this many images, stratified; None or more than there are: all.
    augment: {"padding": pixels, "flip": bool} of training batches (`DeviceLoader`); a folder has its own augmentation.
    mean, std: of each channel, pixels in 0..1; None measures them on the training split (for a folder: ImageNet's).
    workers: decoding processes of a folder. seed: of the order and the augmentation. device: where batches live without
    a trainer. baseline_epochs: epochs of the baseline on this dataset, which the train cost is compared with.

    Nothing is read before it is asked for. Then UsageError is raised for data or options that cannot be used.
    """

    def __init__(
        self,
        source: Source,
        *,
        name: str = "images",
        root: str = "data",
        download: bool = True,
        batch_size: int = 128,
        eval_batch_size: int = 1000,
        validation: int | None = 0,
        split_seed: int = 0,
        limit_train: int | None = None,
        limit_test: int | None = None,
        augment: Mapping[str, Any] | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        channels_last: bool = False,
        workers: int = 0,
        seed: int = 0,
        device: torch.device | str = "cpu",
        baseline_epochs: int = 100,
    ) -> None:
        super().__init__()
        self.source, self.name, self.root, self.download = source, name, root, download
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size
        self.validation, self.split_seed, self.seed = validation, split_seed, seed
        self.limit_train, self.limit_test = limit_train, limit_test
        self.augment = {} if augment is None else augment
        self.channels_last, self.workers, self.device = channels_last, workers, device
        self.baseline_epochs = baseline_epochs
        self._splits: Splits | None = None
        self._mean, self._std = mean, std

    @classmethod
    def from_arrays(cls, train: Arrays, test: Arrays, num_classes: int | None = None, **options: Any) -> DataModule:
        """From (images (N, C, H, W), uint8 or floats in 0..1; labels (N,)) for training and test.

        num_classes: by default the largest training label plus one; options: those of the class.
        """
        first = ImageArrays.of(*train, num_classes)
        return cls(partial(_given, first, ImageArrays.of(*test, first.num_classes)), **options)

    # -- the data ---------------------------------------------------------------------------------------------------

    @property
    def splits(self) -> Splits:
        """The training, validation and test set, after the limits."""
        self.setup()
        assert self._splits is not None
        return self._splits

    def prepare_data(self) -> None:
        """Download what is missing. Lightning calls this in one process of a machine before `setup` in all."""
        self.setup()

    def setup(self, stage: str | None = None) -> None:
        """Read and split the data, if that was not done yet."""
        if self._splits is not None:
            return
        self._check_options()
        sets = self.source(self.root, self.download)
        if not isinstance(sets, tuple) or len(sets) not in (2, 3) or not all(isinstance(s, ImageSet) for s in sets):
            raise UsageError(
                f"dataset.source gave {type(sets).__name__}: expected the training and the test set, two sets of "
                "images, or three with a validation set between them"
            )
        train, *own, test = sets
        for part, other in zip(("test", "validation"), (test, *own), strict=False):
            same = other.labels.dim() == train.labels.dim() and other.num_classes == train.num_classes
            if other.shape != train.shape or not same:
                raise UsageError(
                    f"{self.name}: the training set is {train}, the {part} set {other}: expected images of one shape"
                )
        self._check_images(train)
        train, held_out = self._held_out(train, *own)
        train = _limit(train, self.limit_train, self.split_seed)
        self._splits = Splits(train, held_out, _limit(test, self.limit_test, self.split_seed))

    def _held_out(self, train: ImageSet, own: ImageSet | None = None) -> tuple[ImageSet, ImageSet | None]:
        """What is left to train on, and what to validate on. own: the source's validation set."""
        tenth = f"set dataset.validation={len(train) // 10}, or 0 to hold out none"
        if own is not None and self.validation:
            raise UsageError(
                f"dataset.validation={self.validation}: {self.name} has a validation set of its own, of {len(own)} "
                "images; set dataset.validation=null to use it, or 0 to use none"
            )
        if own is None and self.validation is None:
            raise UsageError(f"dataset.validation=null: {self.name} has no validation set of its own; {tenth}")
        if not self.validation:
            return train, own if self.validation is None else None
        if self.validation >= len(train):
            raise UsageError(
                f"dataset.validation={self.validation}: expected less than the {len(train)} training images; {tenth}"
            )
        kept, held = hold_out(train.labels, self.validation, self.split_seed)
        return train.subset(kept), train.subset(held)

    def check(self, world_size: int) -> None:
        """Raises UsageError if the sets cannot be shared equally by so many processes."""
        plan_batches(self.train_size, self.batch_size, world_size, drop_last=True)
        for part in (self.splits.validation, self.splits.test):
            if part is not None:
                plan_batches(len(part), self.eval_batch_size, world_size)

    def _check_options(self) -> None:
        if not callable(self.source):
            raise UsageError(f"dataset.source={self.source}: expected a function of (root, download)")
        for option in ("root", "name"):
            value = getattr(self, option)
            if not isinstance(value, (str, Path)) or not str(value).isprintable():
                raise UsageError(f"dataset.{option}={value!r}: expected text")
        for option in ("download", "channels_last"):
            if not isinstance(getattr(self, option), bool):
                raise UsageError(f"dataset.{option}={getattr(self, option)!r}: expected true or false")
        fixed = {"batch_size": 1, "eval_batch_size": 1, "workers": 0, "baseline_epochs": 1}
        may_be_null = {"validation": 0, "limit_train": 1, "limit_test": 1}
        whole = fixed | {option: least for option, least in may_be_null.items() if getattr(self, option) is not None}
        for option, least in whole.items():
            value = getattr(self, option)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise UsageError(f"dataset.{option}={value}: expected a whole number, {least} or more")
        if self.workers > MOST_WORKERS:
            raise UsageError(f"dataset.workers={self.workers}: expected {MOST_WORKERS} or fewer")
        for option in ("seed", "split_seed"):
            if not isinstance(getattr(self, option), int):
                raise UsageError(f"dataset.{option}={getattr(self, option)!r}: expected a whole number")
        if not isinstance(self.augment, Mapping):
            raise UsageError(f"dataset.augment={self.augment!r}: expected padding and flip")
        for key in self.augment.keys() - {"padding", "flip"}:
            raise UsageError(f"dataset.augment.{key} is unknown{nearest(str(key), ('padding', 'flip'))}")
        if not isinstance(self.augment.get("flip", False), bool):
            raise UsageError(f"dataset.augment.flip={self.augment['flip']!r}: expected true or false")
        if (self._mean is None) != (self._std is None):
            raise UsageError("dataset.mean and dataset.std: give both, or neither to have them measured")

    def _check_images(self, train: ImageSet) -> None:
        """Whether mean, std and padding are right for images of this shape."""
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
        padding, most = self.augment.get("padding", 0), min(height, width)
        if type(padding) is not int or not 0 <= padding <= most:
            raise UsageError(f"dataset.augment.padding={padding!r}: expected a whole number of pixels, 0 to {most}")

    @property
    def num_classes(self) -> int:
        return self.splits.train.num_classes

    @property
    def task(self) -> str:
        """What the labels are for: "classification" of images, or "segmentation"."""
        return "segmentation" if self.splits.train.labels.dim() == 3 else "classification"

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of an image."""
        return self.splits.train.shape

    @property
    def in_channels(self) -> int:
        return self.input_shape[0]

    @property
    def train_size(self) -> int:
        """Images to train on, without those held out."""
        return len(self.splits.train)

    @property
    def mean(self) -> tuple[float, ...]:
        """(C,), pixels in 0..1."""
        return self._statistics()[0]

    @property
    def std(self) -> tuple[float, ...]:
        """(C,), pixels in 0..1."""
        return self._statistics()[1]

    def _statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        if self._mean is None or self._std is None:
            self._mean, self._std = self.splits.train.statistics()
        return tuple(self._mean), tuple(self._std)

    def steps_per_epoch(self, world_size: int = 1) -> int:
        """Training steps in an epoch; the same for every world size, since a batch is of all processes together.

        Raises UsageError if the processes cannot have equal parts of a batch.
        """
        return plan_batches(self.train_size, self.batch_size, world_size, drop_last=True)[0]

    def images_per_epoch(self, world_size: int = 1) -> int:
        """Images that an epoch trains on, all processes together: full batches only."""
        return plan_batches(self.train_size, self.batch_size, world_size, drop_last=True)[1]

    # -- loaders ----------------------------------------------------------------------------------------------------

    def train_dataloader(self) -> DeviceLoader | FolderLoader:
        """Shuffled and augmented, all batches of one size."""
        return self._loader(self.splits.train, self.batch_size, training=True)

    def val_dataloader(self) -> DeviceLoader | FolderLoader | list[Batch]:
        """The images held out, in their order; an empty list without any, which makes Lightning skip validation."""
        held_out = self.splits.validation
        return [] if held_out is None else self._loader(held_out, self.eval_batch_size, training=False)

    def test_dataloader(self) -> DeviceLoader | FolderLoader:
        """The test set in its order."""
        return self._loader(self.splits.test, self.eval_batch_size, training=False)

    def _loader(self, data: ImageSet, batch_size: int, training: bool) -> DeviceLoader | FolderLoader:
        trainer = self.trainer
        options: dict[str, Any] = {
            "mean": self.mean,
            "std": self.std,
            "shuffle": training,
            "drop_last": training,
            "seed": self.seed,
            "rank": trainer.global_rank if trainer else 0,
            "world_size": trainer.world_size if trainer else 1,
            "device": trainer.strategy.root_device if trainer else self.device,
            "channels_last": self.channels_last,
        }
        if isinstance(data, ImageFolder):
            return FolderLoader(data, batch_size, augment=training, workers=self.workers, **options)
        return DeviceLoader(data, batch_size, **options, **(self.augment if training else {}))


def _given(train: ImageSet, test: ImageSet, root: str, download: bool) -> tuple[ImageSet, ImageSet]:
    """A source of sets that are there already (a function, not a lambda, so that a DataModule can be pickled)."""
    return train, test


def _limit(data: ImageSet, limit: int | None, seed: int) -> ImageSet:
    if limit is None or limit >= len(data):
        return data
    return data.subset(stratified_order(data.labels, "limit", seed)[:limit])
