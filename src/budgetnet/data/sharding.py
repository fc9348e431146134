"""The images of each batch, and their division among processes."""

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
    """The number of batches and of their images in one epoch over `size` images.

    batch_size: images in a batch, over all processes.
    drop_last: whether all batches have exactly this size and the remaining images are dropped, so that all processes
    have equally many. A set smaller than a batch is one batch. Otherwise every image is in a batch, and the sizes of
    batches differ by at most one.
    Raises UsageError if a batch cannot be divided equally, or if a process would have no image.
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
    """An iterable over the batches of an epoch for one of several processes.

    The order of an epoch is a function of (seed, epoch). A batch is a slice of the order, and process `rank` yields a
    contiguous shard of every batch, so that all processes together yield the batches that a single process would.

    size: images in the set. batch_size: images in a batch, over all processes. drop_last: see `plan_batches`.
    Raises UsageError for batches that cannot be divided among the processes.
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
        """The images and labels of batches with these indices, each (images,)."""

    def __len__(self) -> int:
        """The number of batches in an epoch, which is the same for every process."""
        return self.batches

    def __iter__(self) -> Iterator[Batch]:
        epoch = self.epoch
        first = self._start if epoch == self._start_epoch else 0
        self._start = 0
        for batch, loaded in enumerate(self._load(self.parts()[first:]), start=first):
            self._position = {"epoch": epoch, "batch": batch + 1}
            yield loaded

    def parts(self) -> list[Tensor]:
        """The indices (images,) of this process's images for each batch of the epoch."""
        order = torch.arange(self.size)
        if self.shuffle:
            order = torch.randperm(self.size, generator=keyed_generator("order", self.seed, self.epoch))
        limits = [self.images_per_epoch * batch // self.batches for batch in range(self.batches + 1)]
        shards = []
        for first, last in pairwise(limits):
            begin, end = (first + (last - first) * rank // self.world_size for rank in (self.rank, self.rank + 1))
            shards.append(order[begin:end])
        return shards

    # -- position in training ---------------------------------------------------------------------------------------

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch, from 0, of the next iteration."""
        self.epoch = epoch

    batch_sampler = None
    """Lightning reads this attribute of any loader with a sampler."""

    @property
    def sampler(self) -> ShardedLoader:
        """The loader itself, since Lightning calls `loader.sampler.set_epoch` at the start of every epoch."""
        return self

    def start_at(self, batch: int, epoch: int | None = None) -> None:
        """Begin the next iteration, and only that one, with batch `batch`, from 0, as if it had been interrupted there.

        epoch: the epoch of the batch, by default the current one. In any other epoch no batch is skipped.
        Raises UsageError for a batch that the epoch does not have.
        """
        if not 0 <= batch <= self.batches:
            raise UsageError(f"cannot start at batch {batch}: an epoch has {self.batches} batches")
        self._start, self._start_epoch = batch, self.epoch if epoch is None else epoch

    def state_dict(self) -> dict[str, int]:
        """The current epoch and the number of its batches yielded so far, which Lightning saves in checkpoints."""
        return dict(self._position)

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Continue from `state_dict()`. Raises UsageError for a batch that the epoch does not have."""
        self.start_at(state["batch"], state["epoch"])
