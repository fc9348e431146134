"""PictureModule: the Lightning data module for pictures to restore."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from budgetnet.data.datamodule import DataModule, ImageSet
from budgetnet.data.picture_loaders import PatchLoader, PictureLoader, Scale
from budgetnet.data.picture_sets import PictureSet
from budgetnet.data.preprocessing import Preprocessing
from budgetnet.data.sharding import Batch
from budgetnet.errors import UsageError

_SHOWN = 192
"""Pixels of the truth of the parts of pictures that a report shows."""


class PictureModule(DataModule):
    """Random patches to train on, whole pictures of any size to evaluate on.

    source: a function such as `picture_sets.super_resolution`. Options that count images (validation, limit_train,
    limit_test) count pictures; an epoch has `patches` patches of each of their tiles.
    """

    @property
    def pictures(self) -> PictureSet:
        """The training pictures. Raises UsageError for a source of other images."""
        train = self.splits.train
        if not isinstance(train, PictureSet):
            raise UsageError(f"dataset.source gave {train}: expected pictures to restore, PictureSet")
        return train

    @property
    def own_task(self) -> Mapping[str, Any]:
        scale = self.pictures.scale
        if scale == 1:
            return {"_target_": "budgetnet.tasks.Denoising"}
        return {"_target_": "budgetnet.tasks.SuperResolution", "scale": scale}

    @property
    def train_size(self) -> int:
        """The number of patches in an epoch."""
        return len(self.pictures.tiles()) * self.pictures.patches

    @property
    def class_names(self) -> tuple[str, ...]:
        """None: the outputs are images."""
        return ()

    @property
    def preprocessing(self) -> Preprocessing:
        """Pictures are taken as they are."""
        return replace(super().preprocessing, any_size=True)

    def further_tests(self) -> dict[str, PictureLoader]:
        test = self.splits.test
        assert isinstance(test, PictureSet)
        return {name: self._whole(pictures) for name, pictures in test.others.items()}

    def shown(self, count: int) -> Batch:
        test = self.splits.test
        assert isinstance(test, PictureSet)
        return self._whole(test).middles(count, _SHOWN)

    def _loader(self, data: ImageSet, batch_size: int, training: bool) -> PatchLoader | PictureLoader:
        assert isinstance(data, PictureSet)
        if not training:
            return self._whole(data)
        place = self.place
        return PatchLoader(
            data, batch_size, self._scale(), seed=self.seed, rank=place["rank"], world_size=place["world_size"]
        )

    def _whole(self, data: PictureSet) -> PictureLoader:
        return PictureLoader(data, self._scale(), self.place["rank"], self.place["world_size"])

    def _scale(self) -> Scale:
        return Scale(self.mean, self.std, self.place["device"], self.channels_last)
