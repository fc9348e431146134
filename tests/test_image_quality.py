"""PSNR and SSIM are those of the benchmarks."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from budgetnet.tasks.image_quality import psnr, ssim


def images(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(seed)).float()


def test_psnr_of_a_constant_difference_has_a_closed_form() -> None:
    truth = torch.full((2, 3, 8, 8), 100.0)
    output = truth + torch.tensor([1.0, 5.0])[:, None, None, None]
    expected = [20 * math.log10(255 / difference) for difference in (1, 5)]
    assert psnr(output, truth).tolist() == pytest.approx(expected)
    luminance = [20 * math.log10(255 * 256 / (difference * (65.738 + 129.057 + 25.064))) for difference in (1, 5)]
    assert psnr(output, truth, luminance=True).tolist() == pytest.approx(luminance)
    assert psnr(truth, truth).tolist() == [math.inf] * 2


def test_the_output_is_clipped_and_rounded_first() -> None:
    truth = torch.tensor([[0.0, 255.0], [10.0, 20.0]])[None, None]
    output = torch.tensor([[-30.0, 300.0], [10.4, 19.6]])[None, None]
    assert psnr(output, truth).item() == math.inf


def test_the_border_does_not_count() -> None:
    truth = images(1, 3, 12, 10)
    output = truth.clone()
    output[:, :, 2:-2, 2:-2] += 3
    output = output.clamp(0, 255)
    spoilt = output.clone()
    spoilt[..., :2, :], spoilt[..., :, -2:] = 0, 255
    assert torch.equal(psnr(spoilt, truth, shave=2), psnr(output, truth, shave=2))
    assert psnr(spoilt, truth).item() < psnr(output, truth).item()


@pytest.mark.parametrize("luminance", [False, True])
def test_ssim_of_one_window_equals_its_definition(luminance: bool) -> None:
    channels = 3 if luminance else 1
    output, truth = images(1, channels, 11, 11), images(1, channels, 11, 11, seed=1)
    x, y = output[0, 0].double().numpy(), truth[0, 0].double().numpy()
    if luminance:
        weights = np.array([65.738, 129.057, 25.064]) / 256
        x, y = (16 + np.einsum("chw,c->hw", image[0].double().numpy(), weights) for image in (output, truth))
    line = np.exp(-((np.arange(11) - 5) ** 2) / (2 * 1.5**2))
    window = np.outer(line, line) / line.sum() ** 2
    mean_x, mean_y = (window * x).sum(), (window * y).sum()
    var_x, var_y = (window * x * x).sum() - mean_x**2, (window * y * y).sum() - mean_y**2
    cov = (window * x * y).sum() - mean_x * mean_y
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    expected = (2 * mean_x * mean_y + c1) * (2 * cov + c2) / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))
    assert ssim(output, truth, luminance=luminance).item() == pytest.approx(expected, abs=1e-9)


def test_ssim_is_one_for_equal_images_and_of_each_image_alone() -> None:
    truth = images(3, 3, 16, 20)
    output = truth.clone()
    output[1] = output[1].flip(-1)
    values = ssim(output, truth, shave=1)
    assert values.shape == (3,) and values[[0, 2]].tolist() == pytest.approx([1, 1])
    assert values[1].item() == pytest.approx(ssim(output[1:2], truth[1:2], shave=1).item())
    assert values[1] < 0.5
