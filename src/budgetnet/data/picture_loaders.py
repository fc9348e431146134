"""Batches of random patches of pictures, and whole pictures one by one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from budgetnet.data.picture_sets import PictureSet
from budgetnet.data.restoration import fixed_noise, noisy, patches
from budgetnet.data.sharding import Batch, ShardedLoader
from budgetnet.seeding import keyed_generator


class Scale:
    """Values 0..255, (N, C, H, W), as (values / 255 - mean) / std on `device`, float32."""

    def __init__(
        self, mean: Sequence[float], std: Sequence[float], device: torch.device | str, channels_last: bool
    ) -> None:
        self.device = torch.device(device)
        self.mean, self.std = (torch.tensor(values, device=self.device)[:, None, None] for values in (mean, std))
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format

    def __call__(self, values: Tensor) -> Tensor:
        images = (values.to(self.device, torch.float32) / 255 - self.mean) / self.std
        return images.contiguous(memory_format=self.memory_format)


class PatchLoader(ShardedLoader):
    """Batches (inputs float32 (N, C, H / scale, W / scale), truths uint8 (N, C, H, W)) of random patches, on a device.

    An epoch has `patches` patches of every tile of the set. Where a patch lies, how it is turned and its noise are
    functions of (seed, epoch, number of the patch) alone. See `ShardedLoader` for sharding and resuming.
    """

    def __init__(
        self,
        data: PictureSet,
        batch_size: int,
        scale: Scale,
        *,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.data, self.tiles, self.scale = data, data.tiles(), scale
        super().__init__(
            len(self.tiles) * data.patches, batch_size, True, True, seed=seed, rank=rank, world_size=world_size
        )

    def _load(self, parts: list[Tensor]) -> Iterator[Batch]:
        for part in parts:
            inputs, truths = zip(*(self._patch(number) for number in part.tolist()), strict=True)
            yield self.scale(torch.stack(inputs)), torch.stack(truths).to(self.scale.device)

    def _patch(self, number: int) -> tuple[Tensor, Tensor]:
        generator = keyed_generator("patch", self.seed, self.epoch, number)
        low, truth = patches(*self.tiles[number % len(self.tiles)], self.data.patch, generator)
        return noisy(truth, self.data.sigma, generator) if self.data.sigma else low, truth


class PictureLoader:
    """The pictures of a set in their order, each a batch (input float32 (1, C, H / scale, W / scale), truth uint8).

    rank, world_size: every process has the pictures rank, rank + world_size and so on.
    """

    def __init__(self, data: PictureSet, scale: Scale, rank: int = 0, world_size: int = 1) -> None:
        self.data, self.scale = data, scale
        self.numbers = range(rank, len(data), world_size)

    def __len__(self) -> int:
        return len(self.numbers)

    def __iter__(self) -> Iterator[Batch]:
        for number in self.numbers:
            inputs, truth = self.picture(number)
            yield self.scale(inputs[None]), truth[None].to(self.scale.device)

    def picture(self, number: int) -> tuple[Tensor, Tensor]:
        """The input, of values 0..255, and the truth of one picture, (C, H, W) each."""
        data = self.data
        truth = data.truths[number]
        if data.sigma:
            return fixed_noise(truth, data.sigma, data.noise_seed, number), truth
        return data.inputs[number], truth

    def middles(self, count: int, side: int) -> Batch:
        """A batch of the middles of the first `count` pictures, all of one size, `side` pixels of the truth at most."""
        scale = self.data.scale
        pairs = [self.picture(number) for number in range(min(count, len(self.data)))]
        least = min(side, *(min(truth.shape[1:]) for _, truth in pairs)) // scale
        cut = []
        for low, truth in pairs:
            top, left = ((length - least) // 2 for length in low.shape[1:])
            cut.append((_window(low, top, left, least), _window(truth, scale * top, scale * left, scale * least)))
        inputs, truths = (torch.stack(tensors) for tensors in zip(*cut, strict=True))
        return self.scale(inputs), truths.to(self.scale.device)


def _window(picture: Tensor, top: int, left: int, side: int) -> Tensor:
    return picture[:, top : top + side, left : left + side]
