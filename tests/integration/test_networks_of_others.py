"""`make soak`: networks of pytorchcv are trained to a budget, exported, and the export computes what they do."""

from __future__ import annotations

import json
from pathlib import Path

import onnxruntime
import pytest
import torch
from commands import run
from killed import rounds
from torch import nn

from budgetnet import ChannelGraph, resize
from experiments.zoo.measures import fvcore_flops
from experiments.zoo.networks import pytorchcv_network

DIGITS = (
    "dataset=digits", "dataset.limit_train=128", "dataset.validation=60", "dataset.limit_test=100",
    "dataset.batch_size=32", "budget.flops=50%", "optim.lr=0.02", "backbone=own",
    "backbone._target_=experiments.zoo.networks.pytorchcv_network", "threads=1", "logger=csv", "trainer.progress=false",
)  # fmt: skip
GROWN = ("growth.epochs_per_round=1", "growth.seed_width=2", "growth.cost_ratio=0.6", "finetune.epochs=2", "epochs=12")
RUNS = {
    "mobilenetv2_wd4": GROWN,  # ties of depthwise convolutions and of residual sums
    "densenet40_k12_bc_cifar10": GROWN,  # every layer reads all layers before it
    "shufflenetv2_wd2": ("method=l1", "epochs=6", "prune.epochs=2", "prune.steps=2", "prune.epochs_per_step=1",
                         "finetune.epochs=2"),
}  # fmt: skip


@pytest.mark.soak
@pytest.mark.parametrize("model", RUNS)
def test_a_network_of_a_zoo_is_trained_to_its_budget_and_exported(model: str, tmp_path: Path) -> None:
    finished = run(*DIGITS, f"+backbone.model={model}", *RUNS[model], f"run.dir={tmp_path}/run")
    assert finished.returncode == 0, finished.stderr
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    limit = summary["budget"]["flops"]["limit"]
    assert limit == summary["full_flops"] // 2 and 0.97 * limit < summary["flops"] <= limit
    assert rounds(tmp_path / "run")
    images = torch.randn(5, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    net = network_of(tmp_path / "run", model)
    logits = net(images)
    assert fvcore_flops(net, (1, 1, 28, 28)) == summary["flops"]
    session = onnxruntime.InferenceSession(tmp_path / "run" / "model.onnx")
    (computed,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    assert torch.allclose(torch.from_numpy(computed), logits, atol=1e-4)
    exported = torch.export.load(tmp_path / "run" / "model.pt2").module()
    assert torch.allclose(exported(images), logits, atol=1e-4)


def network_of(directory: Path, model: str) -> nn.Module:
    """The trained network, made again of the widths and the checkpoint."""
    state = torch.load(directory / "best.ckpt", weights_only=True)
    net = pytorchcv_network(model, (28, 28), num_classes=10, in_channels=1)
    ChannelGraph.trace(net, torch.empty(1, 1, 28, 28))
    resize(net, state["budgetnet"]["widths"])
    net.load_state_dict(
        {key.removeprefix("net."): v for key, v in state["state_dict"].items() if key.startswith("net.")}
    )
    return net.eval()
