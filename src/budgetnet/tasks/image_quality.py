"""How near a restored image is to the truth: PSNR and SSIM, as the benchmarks of super-resolution measure them."""

from __future__ import annotations

import torch
from torch import Tensor

_LUMINANCE = (65.738, 129.057, 25.064)
"""Of red, green and blue: 256 times the luminance of ITU-R 601 for values in 0..1, in 16..235."""

WINDOW, _SIGMA = 11, 1.5
"""Pixels of a window of SSIM along a side, and of the deviation of its weights."""
_C1, _C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2


def comparable(output: Tensor, truth: Tensor, shave: int, luminance: bool) -> tuple[Tensor, Tensor]:
    """What a benchmark compares, float64 on a scale of 0..255: (N, C, H, W), or (N, 1, H, W) of the luminance.

    The output, (N, C, H, W) in 0..255, is clipped and rounded first, and `shave` pixels are cut off every border. The
    offset of 16 of the luminance is left out.
    Super-resolution: the luminance, shave = scale (Set5, Set14, BSD, Urban100), or all colours, shave = scale + 6
    (DIV2K). Denoising: grey images, shave = 1.
    """
    pair = output.double().clamp(0, 255).round(), truth.double()
    cut = [image[..., shave : image.shape[-2] - shave, shave : image.shape[-1] - shave] for image in pair]
    if luminance:
        weights = torch.tensor(_LUMINANCE, dtype=torch.float64, device=output.device) / 256
        cut = [torch.einsum("nchw,c->nhw", image, weights)[:, None] for image in cut]
    return cut[0], cut[1]


def psnr(output: Tensor, truth: Tensor, shave: int = 0, luminance: bool = False) -> Tensor:
    """(N,) float64, in dB: 10 · log10(255² / mean squared difference); infinite where there is none.

    Arguments as of `comparable`.
    """
    inputs, targets = comparable(output, truth, shave, luminance)
    return -10 * ((inputs - targets) / 255).square().flatten(1).mean(1).log10()


def ssim(output: Tensor, truth: Tensor, shave: int = 0, luminance: bool = False) -> Tensor:
    """(N,) float64, 1 for equal images: structural similarity in Gaussian windows of 11×11, σ = 1.5 (Wang et al. 2004).

    Windows lie inside the image. Arguments as of `comparable`; what is left must hold a window.
    """
    x, y = comparable(output, truth, shave, luminance)
    offset = 16.0 if luminance else 0.0
    x, y = x + offset, y + offset
    mean_x, mean_y, square_x, square_y, product = _blurred(torch.stack([x, y, x * x, y * y, x * y]))
    variances = square_x - mean_x**2 + square_y - mean_y**2
    covariance = product - mean_x * mean_y
    similar = (2 * mean_x * mean_y + _C1) * (2 * covariance + _C2)
    found: Tensor = similar / ((mean_x**2 + mean_y**2 + _C1) * (variances + _C2))
    return found.flatten(1).mean(1)


def _blurred(images: Tensor) -> Tensor:
    """Means (..., H - 10, W - 10) in Gaussian windows that lie inside images (..., H, W)."""
    places = torch.arange(WINDOW, dtype=torch.float64) - WINDOW // 2
    weights = torch.exp(-(places**2) / (2 * _SIGMA**2))
    for dim in (-2, -1):
        length = images.shape[dim] - WINDOW + 1
        blurred = torch.zeros_like(images.narrow(dim, 0, length))
        for first, weight in enumerate((weights / weights.sum()).tolist()):
            blurred.add_(images.narrow(dim, first, length), alpha=weight)
        images = blurred
    return images
