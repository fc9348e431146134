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
    """conf/dataset, but for its `source`.

    root, download: what the source is called with.
    batch_size: images of a training step, all processes together; an incomplete last batch is dropped. eval_batch_size:
    the same for validation and test, where every image counts once and none is dropped.
    validation: images held out of the training set, stratified and fixed by split_seed, so that runs of different seeds
    share them; 0 holds out none, and then there is nothing to validate on. None: the source's own validation set.
    Images with masks, or with numbers to be estimated, are held out at random.
    limit_train, limit_test: use only this many images, stratified; None or more than there are: all.
    augment: {"padding": pixels, "flip": bool} of training batches (`DeviceLoader`); a folder has its own augmentation.
    mean, std: of each channel, pixels in 0..1; None measures them on the training split (for a folder: ImageNet's).
    workers: decoding processes of a folder. seed: of the order and the augmentation. device: where batches live without
    a trainer. baseline_epochs: epochs of the baseline on this dataset, which the train cost is compared with.

    Raises UsageError for options that no dataset can have.
    """

    name: str = "images"
    root: str | Path = field(default="data", metadata=NO_EFFECT)
    download: bool = field(default=True, metadata=NO_EFFECT)
    batch_size: int = 128
    eval_batch_size: int = field(default=1000, metadata=NO_EFFECT)
    validation: int | None = 0
    split_seed: int = 0
    limit_train: int | None = None
    limit_test: int | None = None
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
        if not isinstance(self.augment.get("flip", False), bool):
            raise UsageError(f"dataset.augment.flip={self.augment['flip']!r}: expected true or false")
