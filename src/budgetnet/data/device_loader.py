"""A loader of images that are held on the device and cropped, flipped and normalised there in batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from budgetnet.data.arrays import NO_CLASS, ImageArrays
from budgetnet.data.sharding import Batch, ShardedLoader
from budgetnet.errors import UsageError
from budgetnet.seeding import keyed_generator
from budgetnet.tasks import IGNORED


class Normalise:
    """(pixels / scale - mean) / std for each channel, from (N, H, W, C) to float32 (N, C, H, W).

    The scale is 255 for uint8 pixels and 1 for float32 pixels, which are overwritten.

    shape: (C, H, W) of an image. dtype: the type of the pixels. channels_last: whether the result has the memory format
    channels_last rather than contiguous.
    Raises UsageError for statistics of the wrong length, and for a std that is not positive.
    """

    def __init__(
        self,
        mean: Sequence[float],
        std: Sequence[float],
        shape: tuple[int, int, int],
        dtype: torch.dtype,
        device: torch.device,
        channels_last: bool,
    ) -> None:
        channels, _, width = shape
        if len(mean) != channels or len(std) != channels or not all(value > 0 for value in std):
            raise UsageError(
                f"dataset.mean={list(mean)}, dataset.std={list(std)}: expected {channels} numbers each, std > 0"
            )
        scale = 255.0 if dtype == torch.uint8 else 1.0
        # repeated for a whole row, since broadcasting over channels alone is several times slower on a CPU
        self.mean = torch.tensor(mean, device=device).mul(scale).repeat(width)
        self.std = torch.tensor(std, device=device).mul(scale).repeat(width)
        self.channels_last = channels_last

    def __call__(self, pixels: Tensor) -> Tensor:
        rows = pixels.flatten(2).float().sub_(self.mean).div_(self.std)
        images = rows.view(pixels.shape).permute(0, 3, 1, 2)
        if self.channels_last:
            return images
        return images.clone(memory_format=torch.contiguous_format)  # strides of a single channel are ambiguous


class DeviceLoader(ShardedLoader):
    """Batches (images float32 (N, C, H, W), labels int64 (N,)) of a set that is held on `device`.

    If the set has masks, the labels are (N, H, W), cropped and flipped like their images. They are tasks.IGNORED at
    pixels without a class and in the padding.

    Order, crops and flips are drawn on the CPU as functions of (seed, epoch, image) alone, so that they are the same
    for any device, batch size and number of processes.

    padding: the number of zero (black) pixels around every image, from which a window of the image's size is cropped at
    random. flip: whether each image is mirrored with probability 1/2. See `ShardedLoader` for sharding and resuming.
    Raises UsageError for statistics of the wrong length, an impossible padding, and batches that cannot be divided.
    """

    def __init__(
        self,
        data: ImageArrays,
        batch_size: int,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        padding: int = 0,
        flip: bool = False,
        shuffle: bool = False,
        drop_last: bool = False,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        device: torch.device | str = "cpu",
        channels_last: bool = False,
    ) -> None:
        super().__init__(len(data), batch_size, shuffle, drop_last, seed, rank, world_size)
        if not isinstance(padding, int) or padding < 0:
            raise UsageError(f"dataset.augment.padding={padding}: expected a whole number of pixels, 0 or more")
        self.device = torch.device(device)
        self.normalise = Normalise(mean, std, data.shape, data.images.dtype, self.device, channels_last)
        self.padding, self.flip = padding, flip
        self.shape = data.shape
        masks = data.labels.dim() == 3
        # Mirrored copies after the padded images cost memory and save most of the time of a batch. On a CPU they are
        # made as the first epoch needs them, so that training begins sooner.
        self.padded = _padded(data.images.to(self.device), padding, copies=1 + flip)
        labels = data.labels.to(self.device)
        self.labels = None if masks else labels
        self.masks = _padded(labels[:, None], padding, copies=1 + flip, border=NO_CLASS) if masks else None
        self.unmirrored = torch.full((self.size,), flip)
        self.missing = self.size * flip
        if flip and self.device.type != "cpu":
            self._mirror_all()

    def _load(self, parts: list[Tensor]) -> Iterator[Batch]:
        if not parts:
            return
        if 0 < self.missing < self.size:
            self._mirror_all()
        generator = keyed_generator("augment", self.seed, self.epoch)
        top, left = torch.randint(2 * self.padding + 1, (2, self.size), generator=generator)
        mirrored = torch.randint(2, (self.size,), generator=generator) * int(self.flip)
        offset = top * self.padded.shape[2] + left

        chosen = torch.cat(parts)
        images = (chosen + mirrored[chosen] * self.size).to(self.device)
        offsets = offset[chosen].to(self.device)
        labels = images if self.labels is None else self.labels[chosen.to(self.device)]
        sizes = [len(part) for part in parts]
        for image, start, target in zip(
            *(torch.split(drawn, sizes) for drawn in (images, offsets, labels)), strict=True
        ):
            if self.missing:
                self._mirror(image)
            if self.masks is not None:
                target = _classes(self._windows(self.masks.index_select(0, image), start))
            yield self.normalise(self._windows(self.padded.index_select(0, image), start)), target

    def _mirror_all(self) -> None:
        for images in torch.split(torch.arange(self.size, 2 * self.size), 1000):
            self._mirror(images)

    def _mirror(self, images: Tensor) -> None:
        """Make the missing mirrored copies among `images`, indices (N,) on the CPU."""
        originals = images[images >= self.size] - self.size
        originals = originals[self.unmirrored[originals]]
        self.unmirrored[originals] = False
        self.missing -= len(originals)
        originals = originals.to(self.device)
        for stored in (self.padded, self.masks):
            if stored is not None:
                stored.index_copy_(0, originals + self.size, stored.index_select(0, originals).flip(2))

    def _windows(self, padded: Tensor, offset: Tensor) -> Tensor:
        """Crop (N, H + 2 padding, W + 2 padding, C) to windows (N, H, W, C) with first pixels at `offset`, (N,)."""
        if not self.padding:
            return padded
        _, height, width = self.shape
        count, padded_height, padded_width, channels = padded.shape
        pixels = count * padded_height * padded_width
        # gather whole rows: row i of this view is the `width` pixels that begin at pixel i
        stretches = padded.as_strided((pixels - width + 1, width * channels), (channels, 1))
        first = torch.arange(count, device=self.device) * (padded_height * padded_width) + offset
        rows = first[:, None] + torch.arange(height, device=self.device) * padded_width
        return stretches.index_select(0, rows.view(-1)).view(count, height, width, channels)


def _classes(masks: Tensor) -> Tensor:
    """Classes, int64 (N, H, W), of masks of bytes (N, H, W, 1)."""
    classes = masks[..., 0].long()
    return classes.masked_fill_(classes == NO_CLASS, IGNORED)


def _padded(images: Tensor, padding: int, copies: int, border: int = 0) -> Tensor:
    """Images (N, C, H, W) with a border of value `border`, as the first N of (copies · N, H + 2 p, W + 2 p, C).

    The other copies are not initialised.
    """
    count, channels, height, width = images.shape
    padded = images.new_empty(copies * count, height + 2 * padding, width + 2 * padding, channels)
    bottom, right = padding + height, padding + width
    first = padded[:count]
    for edge in (first[:, :padding], first[:, bottom:], first[:, :, :padding], first[:, :, right:]):
        edge.fill_(border)
    first[:, padding:bottom, padding:right] = images.permute(0, 2, 3, 1)
    return padded
