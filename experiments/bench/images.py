"""The input pipelines beside what people write with Pillow."""

from __future__ import annotations

import os
import random
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from budgetnet.data.device_loader import DeviceLoader
from budgetnet.data.folder import centre_crop, decode, random_crop
from budgetnet.data.readers import cifar10
from budgetnet.errors import UsageError

ROOT = Path(os.environ.get("BUDGETNET_DATA", "data"))
_MEAN, _STD = (0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616)


class PillowImages(Dataset[tuple[Tensor, int]]):
    """Pad by 4, cut out, flip, normalise: one image at a time."""

    def __init__(self, images: np.ndarray, labels: list[int]) -> None:
        self.images, self.labels = images, labels  # (N, H, W, C)
        self.mean, self.std = (torch.tensor(values).view(3, 1, 1) for values in (_MEAN, _STD))

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = ImageOps.expand(Image.fromarray(self.images[index]), 4)
        left, top = random.randint(0, 8), random.randint(0, 8)
        image = image.crop((left, top, left + 32, top + 32))
        if random.random() < 0.5:
            image = ImageOps.mirror(image)
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().float().div_(255)
        return (pixels - self.mean) / self.std, self.labels[index]


def cifar_pipeline(device: torch.device, repeats: int) -> list[float]:
    """Images a second of our loader divided by those of a DataLoader with per-image Pillow transforms and 2 workers.

    CIFAR-10 in batches of 128 on the device. Ours has run for two epochs, after which all mirrored copies exist;
    the workers have started and filled their queues when their clock starts.
    """
    train, _ = cifar10(ROOT, download=False)
    ours = DeviceLoader(train, 128, mean=_MEAN, std=_STD, padding=4, flip=True, shuffle=True, drop_last=True,
                        device=device, channels_last=True)  # fmt: skip
    images = train.images.permute(0, 2, 3, 1).contiguous().numpy()
    theirs = DataLoader(PillowImages(images, train.labels.tolist()), 128, shuffle=True, drop_last=True, num_workers=2,
                        persistent_workers=True, pin_memory=device.type == "cuda")  # fmt: skip
    for epoch in range(2):
        ours.set_epoch(epoch)
        _rate(ours, device)
    found = []
    for epoch in range(2, 2 + repeats):
        ours.set_epoch(epoch)
        found.append(_rate(ours, device) / _rate(theirs, device, 150))
    return found


def _rate(loader: DeviceLoader | DataLoader[tuple[Tensor, int]], device: torch.device, skipped: int = 0) -> float:
    """Images a second of an epoch, after the first `skipped` batches."""
    start, count = time.perf_counter(), 0
    for number, (images, _) in enumerate(loader, start=1):
        images = images.to(device, non_blocking=True)
        count += len(images) * (number > skipped)
        if number == skipped:
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            start = time.perf_counter()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return count / (time.perf_counter() - start)


def folder_pipeline(repeats: int, shorter_side: int = 375) -> list[float]:
    """Images a second and core of the ImageNet folder pipeline divided by those of Pillow without draft mode.

    Random crops of 224, then centre crops, as in training and evaluation, in the proportion of ImageNet's sets (128 to
    5). The sample is enlarged to the common size of ImageNet's pictures, 500x375, and stored again as JPEG.
    """
    with tempfile.TemporaryDirectory() as folder:
        sample, files = sorted((ROOT / "imagenet-sample").rglob("*.JPEG"))[:133], []
        if len(sample) < 133:
            raise UsageError(f"{ROOT}/imagenet-sample holds {len(sample)} of the 133 .JPEG files that are needed")
        for number, path in enumerate(sample):
            picture = Image.open(path).convert("RGB")
            scale = shorter_side / min(picture.size)
            picture = picture.resize(
                (round(picture.width * scale), round(picture.height * scale)), Image.Resampling.LANCZOS
            )
            files.append(Path(folder, f"{number}.jpg"))
            picture.save(files[-1], quality=92)
        found = []
        for repeat in range(repeats + 1):
            times = []
            for read in (_ours, _pillow) if repeat % 2 else (_pillow, _ours):
                start = time.process_time()
                for number, file in enumerate(files):
                    read(file, random.Random(number) if number < 128 else None)
                times.append(time.process_time() - start)
            found.append(times[1] / times[0] if repeat % 2 else times[0] / times[1])
        return found[1:]


def _ours(file: Path, draw: random.Random | None) -> np.ndarray:
    return decode(file, centre_crop if draw is None else lambda width, height: random_crop(width, height, draw), 224)


def _pillow(file: Path, draw: random.Random | None) -> np.ndarray:
    image = Image.open(file).convert("RGB")
    if draw is None:
        scale = 256 / min(image.size)
        image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BILINEAR)
        left, top = (image.width - 224) // 2, (image.height - 224) // 2
        return np.array(image.crop((left, top, left + 224, top + 224)))
    part = image.crop(tuple(map(int, random_crop(*image.size, draw))))  # type: ignore[arg-type]
    return np.array(part.resize((224, 224), Image.Resampling.BILINEAR))
