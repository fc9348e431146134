"""Tasks whose output is an image: super-resolution and denoising."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from budgetnet.errors import UsageError
from budgetnet.tasks.image_quality import WINDOW, psnr, ssim
from budgetnet.tasks.task import Metric, Output, Task

PSNR = Metric("psnr", "PSNR", unit="dB")
SSIM = Metric("ssim", "SSIM", unit="")
MOST_DECIBELS = 100.0
"""The PSNR of an image without any difference, which would be infinite."""


class Restoration(Task):
    """An image from a smaller or noisy one: output (N, C, H, W) in 0..1, targets (N, C, H, W) in 0..255.

    The loss of an image is the mean absolute difference to the truth, in 0..1 (L1). The metrics are means over images
    of PSNR and SSIM (`image_quality`).

    scale: how many times as high and wide the output is. shave: pixels at every border that do not count. luminance:
    whether the metrics are of the luminance of colours.
    """

    metrics = (PSNR, SSIM)
    target_dims = 4
    has_examples = True
    any_size = True

    def __init__(self, scale: int, shave: int, luminance: bool) -> None:
        if type(scale) is not int or scale < 1:
            raise UsageError(f"task.scale={scale!r}: expected a whole number, 1 or more")
        if not isinstance(luminance, bool):
            raise UsageError(f"task.luminance={luminance!r}: expected true or false")
        self.scale, self.shave, self.luminance = scale, shave, luminance

    def losses(self, output: Output, targets: Tensor) -> Tensor:
        assert isinstance(output, Tensor)
        return (output - targets.to(output.dtype) / 255).abs().flatten(1).mean(1)

    def sums(self, output: Output, targets: Tensor) -> Tensor:
        """PSNR, SSIM and number of the images, (3,): single-precision numbers, whose sums are exact in float64."""
        assert isinstance(output, Tensor)
        pair = 255 * output.float(), targets
        decibels = psnr(*pair, self.shave, self.luminance).clamp(max=MOST_DECIBELS)
        values = torch.stack([decibels, ssim(*pair, self.shave, self.luminance), torch.ones_like(decibels)])
        return values.float().double().sum(1)

    def compute(self, sums: Tensor) -> dict[str, float]:
        decibels, similarity, images = sums.tolist()
        return {"psnr": decibels / images, "ssim": similarity / images}

    def examples(self, output: Output, targets: Tensor) -> dict[str, Tensor]:
        assert isinstance(output, Tensor)
        return {"output": output.float().clamp(0, 1), "truth": targets / 255}

    def read(self, output: Output, classes: Sequence[str]) -> Tensor:
        """The picture as pixels of 0..255, uint8 (H, W, C), or (H, W) of a grey one."""
        assert isinstance(output, Tensor)
        pixels = (255 * output[0].float().clamp(0, 1)).round().to(torch.uint8).movedim(0, -1)
        return pixels[..., 0] if pixels.shape[-1] == 1 else pixels

    def output_shape(self, outputs: int, input_shape: tuple[int, int, int]) -> tuple[int, ...]:
        return (outputs, *(self.scale * side for side in input_shape[1:]))

    def check(self, output: Any, outputs: int, input_shape: tuple[int, int, int]) -> None:
        """Raises UsageError if the output is no image of the right size, and for images too small for the metrics."""
        super().check(output, outputs, input_shape)
        least, side = WINDOW + 2 * self.shave, self.scale * min(input_shape[1:])
        if side < least:
            raise UsageError(
                f"patches of {side} pixels a side are too small for SSIM, whose windows have {WINDOW} within a border "
                f"of {self.shave}: set dataset.source.patch to {-(-least // self.scale) * self.scale} at least"
            )


class SuperResolution(Restoration):
    """Images `scale` times as high and wide.

    luminance: PSNR and SSIM of the luminance without `scale` pixels at every border, as on Set5, Set14, BSD100 and
    Urban100; else of all colours without scale + 6 pixels, as on DIV2K.
    """

    name = "super_resolution"

    def __init__(self, scale: int, luminance: bool = True) -> None:
        super().__init__(scale, shave=scale if luminance is True else scale + 6, luminance=luminance)


class Denoising(Restoration):
    """Images without their noise; the pixels at the border do not count."""

    name = "denoising"

    def __init__(self) -> None:
        super().__init__(scale=1, shave=1, luminance=False)
