"""How near a restored image is to the truth: PSNR and SSIM, as the benchmarks of super-resolution measure them."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

_LUMINANCE = (65.738, 129.057, 25.064)
"""Of red, green and blue: 256 times the luminance of ITU-R 601 for values in 0..1, in 16..235."""


_REACH = 5
"""Pixels from the middle of a window of SSIM to its border."""


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
    inputs, targets = comparable(output, truth, shave, luminance)
    offset = 16.0 if luminance else 0.0
    found = structural_similarity_index_measure(
        inputs + offset, targets + offset, sigma=1.5, data_range=255.0, reduction="none", return_full_image=True
    )
    assert isinstance(found, tuple)
    return found[1][..., _REACH:-_REACH, _REACH:-_REACH].flatten(1).mean(1)
