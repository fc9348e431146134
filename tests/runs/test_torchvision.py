"""Trained ResNets are written in torchvision's layout."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from budgetnet import backbones
from budgetnet.channels import ChannelGraph, resize
from budgetnet.errors import UsageError
from budgetnet.runs.checkpoints import CHECKPOINT_FORMAT
from budgetnet.runs.torchvision import export_torchvision, plain

KEYS = Path(__file__).with_name("torchvision_resnet50.json")
"""The keys and shapes of torchvision.models.resnet50().state_dict(), torchvision 0.29.1."""


def write_run(directory: Path, name: str, net: nn.Module) -> Path:
    directory.mkdir(parents=True)
    (directory / "config.yaml").write_text(f"backbone: {{name: {name}}}\n")
    (directory / "metrics.csv").write_text("epoch\n1\n")
    (directory / "done.json").write_text("{}")
    state = {f"net.{key}": value for key, value in net.state_dict().items()} | {"own.other": torch.zeros(1)}
    torch.save({"budgetnet": {"format": CHECKPOINT_FORMAT}, "state_dict": state}, directory / "best.ckpt")
    return directory


def test_the_keys_and_shapes_of_a_full_resnet_50_are_torchvisions() -> None:
    with torch.device("meta"):
        state = backbones.build("resnet50", num_classes=1000).state_dict()
    assert {key: list(value.shape) for key, value in state.items()} == json.loads(KEYS.read_text())


def test_the_weights_of_a_run_are_written_with_their_widths(tmp_path: Path) -> None:
    net = backbones.build("resnet50", num_classes=3, seed_width=2)
    ChannelGraph.trace(net, torch.empty(1, 3, 64, 64))
    resize(net, {"layer2.1.conv2": 5, "conv1": 3})
    run = write_run(tmp_path / "run", "resnet50", net)
    export_torchvision(run)
    weights = torch.load(run / "torchvision.pt", weights_only=True)
    assert list(weights) == list(json.loads(KEYS.read_text()))
    assert all(torch.equal(weights[key], value) for key, value in net.state_dict().items())
    facts = json.loads((run / "torchvision.json").read_text())
    assert facts["network"] == "resnet50" and facts["depths"] == [3, 4, 6, 3] and facts["plain"]
    assert (facts["widths"]["layer2.1.conv2"], facts["widths"]["conv1"], facts["widths"]["conv1"]) == (5, 3, 3)


def test_shortcuts_that_join_unequal_widths_are_told() -> None:
    net = backbones.build("resnet18", num_classes=3, seed_width=4)

    def widths() -> dict[str, int]:
        return {name: module.out_channels for name, module in net.named_modules() if isinstance(module, nn.Conv2d)}

    ChannelGraph.trace(net, torch.empty(1, 3, 64, 64))
    assert plain(widths(), (2, 2, 2, 2))
    resize(net, {"layer3.0.conv1": 7})
    assert plain(widths(), (2, 2, 2, 2))
    resize(net, {"layer3.1.conv2": 5})
    assert not plain(widths(), (2, 2, 2, 2))
    resize(net, {"layer3.1.conv2": 4, "conv1": 6})
    assert not plain(widths(), (2, 2, 2, 2))


def test_other_runs_are_refused_in_one_line(tmp_path: Path) -> None:
    other = write_run(tmp_path / "other", "vgg11", nn.Linear(2, 2))
    with pytest.raises(UsageError, match="is a run of vgg11: expected one of resnet18, resnet34, resnet50"):
        export_torchvision(other)
    (other / "done.json").unlink()
    with pytest.raises(UsageError, match="is not the directory of a finished run"):
        export_torchvision(other)
    with pytest.raises(UsageError, match="is not a run directory"):
        export_torchvision(tmp_path)
