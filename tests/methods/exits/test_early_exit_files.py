"""The files of the stages let images leave where the network does, and the network of a checkpoint predicts so too."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from budgetnet.backbones import msdnet
from budgetnet.backbones.exits import ExitNetwork
from budgetnet.backbones.stages import stages
from budgetnet.errors import RunError
from budgetnet.methods.exits import export
from budgetnet.methods.exits.allocation import confidences
from budgetnet.methods.exits.budgeted import NEVER, Setting
from budgetnet.methods.exits.predict import EarlyExit, from_export, leaving_early

SHAPE = (3, 16, 16)


def problem() -> tuple[ExitNetwork, Tensor, Setting]:
    """A network, images, and thresholds between two images' confidences, so that rounding sends none elsewhere."""
    torch.manual_seed(0)
    network = msdnet.build(10, *SHAPE[:1], SHAPE[1:], exits=3, channels=4, growth=4)
    images = torch.randn(12, *SHAPE)
    network(images)
    with torch.no_grad():
        confidence = confidences(network.eval()(images))
    limits = confidence.double().quantile(0.5, 0)[:-1].tolist()
    return network, images, Setting(0.8, (*limits, -math.inf), 0.5, 1e6)


def test_the_files_predict_what_the_network_does_and_images_leave_at_every_exit(tmp_path: Path) -> None:
    network, images, setting = problem()
    export.export_exits(network, SHAPE, tmp_path, [1, 2, 3], setting, [setting])
    expected, found = EarlyExit(network, setting.thresholds).predict(images), from_export(tmp_path).predict(images)
    assert torch.equal(found.exits, expected.exits) and len(expected.exits.unique()) == 3
    assert torch.equal(found.classes, expected.classes)
    torch.testing.assert_close(found.probabilities, expected.probabilities, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(found.probabilities.sum(1), torch.ones(12))
    with torch.no_grad():
        whole = torch.stack(network(images))
    taken = whole[expected.exits, torch.arange(12)].softmax(1)
    torch.testing.assert_close(expected.probabilities, taken, rtol=1e-3, atol=1e-5)
    about = json.loads((tmp_path / "exits.json").read_text())
    assert about["thresholds"] == [*setting.thresholds[:-1], None] and about["flops"] == [1, 2, 3]
    assert about["settings"] == [about["chosen"]] and about["chosen"]["q"] == 0.8
    (tmp_path / "exit_2.onnx").write_bytes(b"")
    with pytest.raises(RunError, match=r"exits.json cannot be used .* export=true writes it"):
        from_export(tmp_path)


def test_files_that_compute_something_else_are_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network, _, setting = problem()
    other = copy.deepcopy(network)
    with torch.no_grad():
        other.classifiers[1].linear.bias[3] += 0.01  # type: ignore[union-attr, operator, index]
    monkeypatch.setattr(export, "stages", lambda _, shape: stages(other, shape))
    with pytest.raises(RunError, match="do not compute what the network computes: logits differ by"):
        export.export_exits(network, SHAPE, tmp_path, [1, 2, 3], setting, [setting])
    assert not list(tmp_path.iterdir())


def test_without_a_mean_budget_every_image_goes_to_the_last_exit_and_another_network_stays_as_it_is() -> None:
    network, images, _ = problem()
    early = leaving_early(network, {})
    assert isinstance(early, EarlyExit) and early.limits == (NEVER, NEVER, -math.inf)
    with torch.no_grad():
        assert early.predict(images).exits.tolist() == [2] * 12
        torch.testing.assert_close(early(images), network(images)[-1], rtol=1e-4, atol=1e-5)
    other = torch.nn.Flatten()
    assert leaving_early(other, {}) is other
