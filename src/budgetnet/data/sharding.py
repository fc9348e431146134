"""Which images a batch holds, and which of them a process gets."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from itertools import pairwise

import torch
from torch import Tensor

from budgetnet.errors import UsageError
from budgetnet.seeding import keyed_generator

Batch = tuple[Tensor, Tensor]


def plan_batches(size: int, batch_size: int, world_size: int = 1, drop_last: bool = False) -> tuple[int, int]:
    """(number of batches, images they hold together) of one epoch over `size` images.

    batch_size: images of all processes together. With drop_last every batch has exactly that many, and what is left is
    dropped (a set smaller than a batch is one batch), so all processes have equal parts. Without, every image is in one
    batch, and batches differ by one image at most.
    Raises UsageError where the processes cannot have equal parts, or one would have none.
    """
    if batch_size < 1:
        raise UsageError(f"dataset.batch_size={batch_size}: expected 1 or more images")
    if drop_last and batch_size % world_size:
        raise UsageError(
            f"dataset.batch_size={batch_size} is of all processes together: expected a multiple of their number, "
            f"{world_size}, such as {-(-batch_size // world_size) * world_size}"
        )
    batches = max(1, size // batch_size) if drop_last else -(-size // batch_size)
    if size < batches * world_size:
        raise UsageError(
            f"{size} images in batches of {batch_size} leave some of {world_size} processes without an image: "
            "use fewer devices, larger batches or more images"
        )
    if drop_last:
        return batches, batches * min(batch_size, size // world_size * world_size)
    return batches, size


class ShardedLoader(ABC):
    """An iterable over the batches of an epoch, for one process of several.

    The order of an epoch is a function of (seed, epoch). Batch b is a slice of it, and process `rank` yields its
    contiguous part of every batch: the processes together yield exactly the batches that one process would.
    size: images in the set; batch_size: images of all processes together; the rest of a batch's shape is described by
    `plan_batches`.
    """

    def __init__(
        self,
        size: int,
        batch_size: int,
        shuffle: bool,
        drop_last: bool,
        seed: int,
        rank: int,
        world_size: int,
    ) -> None:
        self.size, self.shuffle, self.seed, self.rank, self.world_size = size, shuffle, seed, rank, world_size
        self.batches, self.images_per_epoch = plan_batches(size, batch_size, world_size, drop_last)
        self.epoch = 0
        self._start, self._start_epoch = 0, 0
        self._position = {"epoch": 0, "batch": 0}

    @abstractmethod
    def _load(self, parts: list[Tensor]) -> Iterator[Batch]:
        """Images and labels of the batches whose indices are given."""

    def __len__(self) -> int:
        """Batches in an epoch, the same for every process."""
        return self.batches

    def __iter__(self) -> Iterator[Batch]:
        epoch = self.epoch
        first = self._start if epoch == self._start_epoch else 0
        self._start = 0
        for batch, loaded in enumerate(self._load(self.parts()[first:]), start=first):
            self._position = {"epoch": epoch, "batch": batch + 1}
            yield loaded

    def parts(self) -> list[Tensor]:
        """For each batch of the epoch, the indices (images,) of this process's images."""
        order = torch.arange(self.size)
        if self.shuffle:
            order = torch.randperm(self.size, generator=keyed_generator("order", self.seed, self.epoch))
        edges = [self.images_per_epoch * batch // self.batches for batch in range(self.batches + 1)]
        parts = []
        for first, last in pairwise(edges):
            begin, end = (first + (last - first) * rank // self.world_size for rank in (self.rank, self.rank + 1))
            parts.append(order[begin:end])
        return parts

    # -- where in training it is ------------------------------------------------------------------------------------

    def set_epoch(self, epoch: int) -> None:
        """The epoch, from 0, that the next iteration is of."""
        self.epoch = epoch

    batch_sampler = None
    """Lightning asks for this of whatever has a sampler."""

    @property
    def sampler(self) -> ShardedLoader:
        """Itself: Lightning calls `loader.sampler.set_epoch` at the start of every epoch."""
        return self

    def start_at(self, batch: int, epoch: int | None = None) -> None:
        """Begin the next iteration, and only that one, with this batch, from 0: what an uninterrupted one has left.

        epoch: the epoch that the batch is of, by default the present one; in another epoch nothing is skipped.
        """
        if not 0 <= batch <= self.batches:
            raise UsageError(f"cannot start at batch {batch}: an epoch has {self.batches} batches")
        self._start, self._start_epoch = batch, self.epoch if epoch is None else epoch

    def state_dict(self) -> dict[str, int]:
        """The running epoch and the number of its batches yielded so far. Lightning keeps it in the checkpoint."""
        return dict(self._position)

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Continue where `state_dict` was taken."""
        self.start_at(state["batch"], state["epoch"])
