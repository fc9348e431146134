"""The penalty of network slimming, equation 1 of Liu et al. 2017."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from short_run import SHORT

from budgetnet.command.build import build
from budgetnet.command.compose import composed

SLIMMED = ("method=slimming", "backbone=resnet20", "prune.epochs=2", "finetune.epochs=2", "prune.sparsity=0.001")


@pytest.mark.parametrize("scale", [None, 1024.0])
def test_the_penalty_is_the_sign_of_every_scale_times_sparsity_however_the_loss_is_scaled(
    scale: float | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = build(composed([*SHORT, *SLIMMED]), tmp_path)
    net = parts.method.net
    parts.learner.trainer = parts.trainer
    if scale is not None:
        scaler = SimpleNamespace(get_scale=lambda: scale)
        monkeypatch.setattr(parts.trainer.precision_plugin, "scaler", scaler, raising=False)
    with torch.no_grad():
        net.get_parameter("layer1.0.bn1.weight")[:3] = torch.tensor([-2.0, 0.0, 0.5])
    for parameter in net.parameters():
        parameter.grad = torch.zeros_like(parameter)
    parts.method.before_step()
    for name, parameter in net.named_parameters():
        of_a_norm = ".bn" in f".{name}" and name.endswith("weight")
        expected = 0.001 * (scale or 1) * parameter.detach().sign() if of_a_norm else torch.zeros_like(parameter)
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad, expected)
    assert net.get_parameter("layer1.0.bn1.weight").grad.sign()[:3].tolist() == [-1, 0, 1]
