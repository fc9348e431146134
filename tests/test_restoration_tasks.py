"""Restored images are judged as on the benchmarks."""

from __future__ import annotations

import pytest
import torch
from pictures import photograph

from budgetnet.errors import UsageError
from budgetnet.tasks import Denoising, SuperResolution
from budgetnet.tasks.image_quality import psnr, ssim


def test_the_loss_is_the_mean_absolute_difference_of_each_image_in_0_to_1() -> None:
    targets = torch.tensor([0, 255], dtype=torch.uint8)[:, None, None, None].expand(2, 3, 4, 4)
    output = torch.tensor([0.25, 0.5])[:, None, None, None].expand(2, 3, 4, 4)
    assert SuperResolution(2).losses(output, targets).tolist() == [0.25, 0.5]


@pytest.mark.parametrize(
    ("task", "channels", "shave", "luminance"),
    [(SuperResolution(3), 3, 3, True), (SuperResolution(3, luminance=False), 3, 9, False), (Denoising(), 1, 1, False)],
)
def test_metrics_are_means_over_images_that_do_not_depend_on_batches(
    task: SuperResolution | Denoising, channels: int, shave: int, luminance: bool
) -> None:
    targets = torch.stack([photograph(40, 36, top)[:channels] for top in (10, 200, 300)])
    output = (targets + 20 * torch.randn(targets.shape, generator=torch.Generator().manual_seed(0))) / 255
    together = task.sums(output, targets)
    parts = sum(task.sums(output[[i]], targets[[i]]) for i in (2, 0, 1))
    assert torch.equal(together, parts) and together[2] == 3
    scores = task.compute(together)
    pair = 255 * output, targets
    assert scores["psnr"] == pytest.approx(psnr(*pair, shave, luminance).mean().item(), abs=1e-5)
    assert scores["ssim"] == pytest.approx(ssim(*pair, shave, luminance).mean().item(), abs=1e-6)
    assert task.metric.text(scores["psnr"]).endswith(" dB") and task.metric.higher_is_better


def test_a_picture_without_a_difference_has_a_finite_psnr() -> None:
    truth = photograph(32, 32)[None]
    scores = SuperResolution(2).compute(SuperResolution(2).sums(truth / 255, truth))
    assert scores == {"psnr": 100, "ssim": pytest.approx(1)}


def test_an_output_is_an_image_of_the_right_size() -> None:
    task = SuperResolution(4)
    task.check(torch.empty(2, 3, 48, 48), 3, (3, 12, 12))
    with pytest.raises(
        UsageError, match=r"it gives \(2, 10\) for two images: expected a tensor of shape \(2, 3, 48, 4"
    ):
        task.check(torch.empty(2, 10), 3, (3, 12, 12))
    with pytest.raises(UsageError, match=r"patches of 16 pixels a side are too small for SSIM.* to 20 at least"):
        task.check(torch.empty(2, 3, 16, 16), 3, (3, 4, 4))


def test_what_a_report_shows_is_the_output_and_the_truth() -> None:
    truth = photograph(32, 32)[None]
    shown = Denoising().examples(truth / 255 + 1, truth)
    assert list(shown) == ["output", "truth"] and shown["output"].max() == 1 and shown["truth"].max() <= 1


@pytest.mark.parametrize("scale", [0, 2.0, True])
def test_another_scale_is_refused(scale: object) -> None:
    with pytest.raises(UsageError, match=r"task\.scale="):
        SuperResolution(scale)  # type: ignore[arg-type]
