"""Runs that begin from trained weights, and from the network of another run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from budgetnet import backbones
from budgetnet.command.build import build
from budgetnet.command.compose import composed
from budgetnet.command.start import inherited
from budgetnet.errors import UsageError
from budgetnet.runs.weights import load_weights, read_weights

DIGITS = ("dataset=digits", "dataset.limit_train=64", "dataset.batch_size=16", "backbone=lenet5", "logger=csv")


def lenet(classes: int = 10, seed: int = 1) -> nn.Module:
    torch.manual_seed(seed)
    return backbones.build("lenet5", num_classes=classes, in_channels=1)


def safetensors(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    header, blob = {"__metadata__": {"format": "pt"}}, b""
    for name, tensor in tensors.items():
        raw = tensor.contiguous().numpy().tobytes()
        header[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [len(blob), len(blob) + len(raw)]}
        blob += raw
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + blob)


WRITERS: dict[str, Callable[[Path, dict[str, torch.Tensor]], None]] = {
    "state dict": lambda path, state: torch.save(state, path),
    "checkpoint": lambda path, state: torch.save({"epoch": 3, "state_dict": state, "optimizer": {}}, path),
    "DDP": lambda path, state: torch.save({"model": {f"module.{n}": v for n, v in state.items()}}, path),
    "Lightning": lambda path, state: torch.save({"state_dict": {f"model.net.{n}": v for n, v in state.items()}}, path),
    "safetensors": safetensors,
}


@pytest.mark.parametrize("kind", WRITERS)
def test_weights_are_read_from_every_kind_of_file(kind: str, tmp_path: Path) -> None:
    source, net = lenet(), lenet(seed=2)
    path = tmp_path / ("weights.safetensors" if kind == "safetensors" else "weights.pt")
    WRITERS[kind](path, dict(source.state_dict()))
    said = load_weights(net, read_weights(path), "FILE", outputs=10)
    assert said.startswith("10 of 10 tensors from FILE")
    assert all(torch.equal(value, source.state_dict()[name]) for name, value in net.state_dict().items())


def test_a_head_of_another_size_is_drawn_anew_and_this_is_said() -> None:
    source, net = lenet(classes=3), lenet(seed=2)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    said = load_weights(net, {**source.state_dict(), "more": torch.zeros(1)}, "FILE", outputs=10)
    assert said == "8 of 10 tensors from FILE; fc3.weight and fc3.bias drawn anew; 1 of the file not used"
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name] if name.startswith("fc3") else source.state_dict()[name])


def test_a_number_beside_the_head_is_no_part_of_it() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.scale, self.fc = nn.Conv2d(3, 8, 3), nn.Parameter(torch.tensor(9.0)), nn.Linear(8, 10)

    assert load_weights(Scaled(), Scaled().state_dict(), "FILE", outputs=10) == "5 of 5 tensors from FILE"


def test_weights_of_another_network_are_refused_by_their_first_tensor(tmp_path: Path) -> None:
    state = lenet().state_dict()
    with pytest.raises(UsageError, match=r"FILE lacks conv1.bias: expected the weights of this backbone"):
        load_weights(lenet(), {name: value for name, value in state.items() if name != "conv1.bias"}, "FILE", 10)
    wrong = {**state, "conv2.weight": torch.zeros(3, 3)}
    with pytest.raises(UsageError, match=r"FILE has conv2.weight of \(3, 3\) instead of \(16, 6, 5, 5\)"):
        load_weights(lenet(), wrong, "FILE", 10)
    torch.save(nn.Linear(2, 2), tmp_path / "module.pt")
    (tmp_path / "text.pt").write_text("no weights")
    for name in ("module.pt", "text.pt", "missing.pt"):
        with pytest.raises(UsageError, match=f"backbone.weights=.*{name} cannot be read .*expected a state dict"):
            read_weights(tmp_path / name)


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    torch.save(lenet().state_dict(), tmp_path / "lenet.pt")
    return tmp_path / "lenet.pt"


def test_pruning_may_begin_at_once_with_trained_weights_only(weights: Path, tmp_path: Path) -> None:
    pruned = (*DIGITS, "method=l1", "prune.epochs=0", "budget.flops=50%", "epochs=3", "finetune.epochs=2")
    with pytest.raises(UsageError, match=r"prune.epochs=0 would prune weights that have learned nothing"):
        build(composed(pruned), tmp_path / "run")
    components = build(composed([*pruned, f"backbone.weights={weights}"]), tmp_path / "run")
    learner = components.learner
    assert torch.equal(learner.net.state_dict()["conv1.weight"], lenet().state_dict()["conv1.weight"])
    plan = learner.method.plan(0, None)
    assert plan is not None and plan.stop == "flops"


@pytest.mark.parametrize("method", ["adenel", "width", "lwdna", "autogrow"])
def test_a_method_that_draws_its_own_weights_refuses_them_with_the_reason(
    method: str, weights: Path, tmp_path: Path
) -> None:
    overrides = (*DIGITS, f"method={method}", "budget.flops=90%", f"backbone.weights={weights}")
    with pytest.raises(UsageError, match=f"backbone.weights=.*: method={method} cannot start from it, because it"):
        build(composed(overrides), tmp_path / "run")


@pytest.mark.parametrize("method", ["l1", "slimming", "pfp"])
def test_pruned_widths_are_multiples_of_round_to(method: str, tmp_path: Path) -> None:
    from budgetnet.channels import ChannelGraph
    from budgetnet.costs import CostModel
    from budgetnet.methods.pruning import allocate, coupled_channels, criteria

    graph = ChannelGraph.trace(backbones.build("resnet20"), torch.empty(1, 3, 32, 32))
    cost = CostModel(graph)
    fits = allocate.fits(cost, {"flops": cost.flops() // 2})
    found, scores = coupled_channels(graph, "all"), criteria.l1(graph)
    allocation = {"l1": allocate.uniform, "slimming": allocate.ranked, "pfp": allocate.by_error}[method]
    counts = allocation(found, scores, fits, 8)
    assert all(count % 8 == 0 for count in counts) and any(count < len(each) for count, each in zip(counts, found))
    assert fits(allocate.widths(found, counts))


def test_edges_are_learned_from_trained_weights(tmp_path: Path) -> None:
    edges = (
        "dataset=digits", "dataset.limit_train=64", "dataset.batch_size=16", "logger=csv", "backbone=cnf",
        "backbone.columns=2", "backbone.channels=4", "method=bsn", "budget.flops=50%", "method.warmup_epochs=0",
        "method.search_epochs=1", "epochs=2", "finetune.epochs=1",
    )  # fmt: skip
    weights = build(composed([*edges, "seed=5"]), tmp_path / "first").learner.net.state_dict()
    torch.save(weights, tmp_path / "cnf.pt")
    learner = build(composed([*edges, f"backbone.weights={tmp_path}/cnf.pt"]), tmp_path / "run").learner
    assert all(torch.equal(value, weights[name]) for name, value in learner.net.state_dict().items())


def test_a_run_that_goes_on_keeps_backbone_data_and_optimizer_but_for_what_is_typed(tmp_path: Path) -> None:
    before = composed([*DIGITS, "optim.lr=0.02", "optim.warmup_epochs=2", "dataset.batch_size=8"])
    (tmp_path / "config.yaml").write_text(json.dumps(before))

    def after(*typed: str) -> dict[str, Any]:
        overrides = [f"start.from={tmp_path}", *typed]
        return inherited(composed(overrides), overrides)

    assert after()["optim"] == before["optim"] and after()["dataset"] == before["dataset"]
    rate = after("optim.lr=0.5", "dataset.batch_size=4")
    assert rate["optim"] == {**before["optim"], "lr": 0.5} and rate["dataset"] == {**before["dataset"], "batch_size": 4}
    modern = after("recipe=modern")
    assert modern["optim"] == composed(["recipe=modern"])["optim"] and modern["dataset"]["batch_size"] == 512
    assert modern["dataset"]["name"] == "digits" and modern["backbone"]["name"] == "lenet5"
    assert after("experiment=demo")["optim"] == composed(["experiment=demo"])["optim"]
