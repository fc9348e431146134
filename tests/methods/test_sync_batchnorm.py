"""Batch norms over all processes: another class of layer, the same network."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from covering import covered
from torch import nn

from budgetnet import ChannelGraph, CostModel, backbones, resize
from budgetnet.command.build import build
from budgetnet.command.compose import composed

OVERRIDES = (
    "dataset=digits", "backbone=own", "backbone._target_=nets.Small", "growth.seed_width=3", "budget.flops=50%",
    "growth.seed_shape=equal", "growth.epochs_per_round=1", "growth.policy=saturation", "growth.readout=support",
    "growth.threshold=0.0", "lbi.selection_norm=0.3", "growth.number=1", "growth.ratio=0.0", "finetune.epochs=1",
    "epochs=6", "optim.lr=0.02", "logger=csv", "dataset.limit_train=80", "dataset.batch_size=8",
    "trainer.progress=false", "trainer.accelerator=cpu",
)  # fmt: skip


def converted(name: str) -> tuple[nn.Module, nn.Module]:
    """A backbone, and the same with its batch norms replaced; both traced."""
    torch.manual_seed(0)
    net = backbones.build(name)
    torch.manual_seed(0)
    other: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(backbones.build(name))
    assert sum(isinstance(module, nn.SyncBatchNorm) for module in other.modules()) > 10
    for module in (net, other):
        ChannelGraph.trace(module, torch.empty(1, 3, 32, 32))
    return net, other


@pytest.mark.parametrize("name", covered(("resnet20", "resnet18"), ("resnet20",)))
def test_a_converted_network_is_traced_and_resized_like_the_original(name: str) -> None:
    net, other = converted(name)
    first, second = ChannelGraph.of(net), ChannelGraph.of(other)
    assert first.groups == second.groups
    assert CostModel(first).costs() == CostModel(second).costs()
    wider = {group: width + 3 for group, width in list(first.widths.items())[::2]}
    for module in (net, other):
        resize(module, wider, seed=7)
    assert first.widths == second.widths
    one, two = net.state_dict(), other.state_dict()
    assert one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert torch.equal(net(images), other(images))
    assert torch.equal(net.eval()(images), other.eval()(images))


def test_a_converted_network_is_proven() -> None:
    _, other = converted("resnet20")
    graph = ChannelGraph.of(other)
    assert graph.verify().keys() == graph.widths.keys()


def test_with_one_process_a_run_has_the_same_bits_with_it(tmp_path: Path) -> None:
    def learned(directory: Path, overrides: Sequence[str]) -> dict[str, torch.Tensor]:
        directory.mkdir()
        parts = build(composed([*OVERRIDES, *overrides]), directory)
        parts.trainer.fit(parts.learner, datamodule=parts.data)
        assert parts.method.training.round >= 3
        return parts.learner.net.state_dict()

    without = learned(tmp_path / "without", [])
    synced = learned(tmp_path / "with", ["trainer.sync_batchnorm=true"])
    assert without.keys() == synced.keys() and all(torch.equal(without[key], synced[key]) for key in without)
