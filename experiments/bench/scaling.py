"""ImageNet on many GPUs, on paper: what limits a run, and what growth changes. Prints the tables of README.md.

python -m experiments.bench.scaling
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from budgetnet import backbones
from budgetnet.channels import ChannelGraph, resize
from budgetnet.channels.fresh import max_widths, seed_widths
from budgetnet.costs import CostModel
from budgetnet.growth import GrowthRule, Limit, Planner
from budgetnet.reports.tables import markdown_table

IMAGES, EPOCHS, ROUND, BATCH = 1_271_167, 90, 6, 128
"""ImageNet's training set without the 10,000 images held out; of experiment=imagenet; images of a step on each GPU."""


@dataclass(frozen=True)
class Machine:
    """An H100-class GPU and its share of a node, by their data sheets; README.md says where the other figures are from.

    reach, memory_reach: the parts of the peak rates that convolutions and element-wise kernels get to. passes: how
    often a training step reads or writes what a convolution puts out. decoded: images a core prepares in a second.
    """

    peak: float = 989e12  # FLOPs (two per multiply-accumulate) a second, dense, bf16
    reach: float = 0.4
    memory: float = 3.35e12  # bytes a second
    memory_reach: float = 0.7
    passes: int = 20
    cores: int = 14
    decoded: float = 550.0
    within_node: float = 450e9  # bytes a second, each way, from GPU to GPU
    between_nodes: float = 50e9
    gpus_per_node: int = 8


@dataclass(frozen=True)
class Network:
    """flops: multiply-accumulates of an image. elements: what its convolutions put out for it."""

    name: str
    flops: int
    params: int
    elements: int
    epochs: int


def compute(network: Network, gpu: Machine) -> float:
    """Seconds that a GPU trains on an image: three times the forward pass, then the traffic of everything between."""
    arithmetic = 3 * 2 * network.flops / (gpu.reach * gpu.peak)
    return arithmetic + 2 * gpu.passes * network.elements / (gpu.memory_reach * gpu.memory)


def reduced(network: Network, gpus: int) -> float:
    """Bytes that a GPU sends in a step: a ring all-reduce of float32 gradients."""
    return 2 * (gpus - 1) / gpus * 4 * network.params


def step(network: Network, gpus: int, gpu: Machine) -> tuple[float, str]:
    """Seconds of a step, and what limits it. The all-reduce hides behind the backward pass, two thirds of the step."""
    computing, input = BATCH * compute(network, gpu), BATCH / (gpu.cores * gpu.decoded)
    link = gpu.within_node if gpus <= gpu.gpus_per_node else gpu.between_nodes
    shown = max(0.0, reduced(network, gpus) / link - 2 / 3 * computing)
    if input > computing + shown:
        return input, "input"
    return computing + shown, "all-reduce" if shown > computing else "GPU"


def path() -> list[Network]:
    """The networks of a run with `experiment=imagenet budget.flops=50%` in which every layer is always saturated."""
    net = backbones.build("resnet18", num_classes=1000)
    graph = ChannelGraph.trace(net, torch.empty(1, 3, 224, 224))
    cost, most = CostModel(graph), max_widths(graph, "8x")
    full = _network("full", net, cost, EPOCHS)
    seed = seed_widths(graph, 16)
    _narrow(net, seed)
    planner = Planner(cost, GrowthRule(), {name: most[name] for name in seed if name in most})
    networks: list[Network] = []
    epochs = 0
    while True:
        networks.append(_network(f"round {len(networks) + 1}", net, cost, ROUND))
        epochs += ROUND
        saturated = dict.fromkeys(planner.max_widths, 1.0)
        plan = planner.plan(len(networks), saturated, [Limit("flops", "flops", full.flops // 2)])
        if plan.changes:
            resize(net, plan.changes)
        if plan.stop is not None:
            return [full, *networks, _network("fine-tuning", net, cost, EPOCHS - epochs)]


def _narrow(net: nn.Module, widths: Mapping[str, int]) -> None:
    now = ChannelGraph.of(net).widths
    resize(net, {name: width for name, width in widths.items() if width != now[name]})


def _network(name: str, net: nn.Module, cost: CostModel, epochs: int) -> Network:
    elements = 0

    def count(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal elements
        elements += output.numel()

    hooks = [module.register_forward_hook(count) for module in net.modules() if isinstance(module, nn.Conv2d)]
    with torch.inference_mode():
        net.eval()(torch.zeros(1, 3, 224, 224))
    for hook in hooks:
        hook.remove()
    costs = cost.costs()
    return Network(name, costs["flops"], costs["params"], elements, epochs)


def tables(gpu: Machine) -> str:
    full, *grown = path()
    header = ["network", "epochs", "FLOPs an image", "parameters", "images/s a GPU trains", "MB a GPU sends, of 8"]
    lines = [
        [n.name, str(n.epochs), f"{n.flops / 1e6:.0f}M", f"{n.params / 1e6:.2f}M", f"{1 / compute(n, gpu):,.0f}",
         f"{reduced(n, 8) / 1e6:.1f}"]
        for n in (full, *grown)
    ]  # fmt: skip
    text = markdown_table(header, lines) + "\n"
    header = ["run", "GPUs", "hours if the GPU limits", "hours if the input limits", "hours", "limited by"]
    lines = []
    for name, networks in (("full network", [full]), ("grown to 50 %", grown)):
        for gpus in (1, 8, 64):
            steps = IMAGES / (gpus * BATCH)
            times = [(n.epochs * steps * seconds, why) for n in networks for seconds, why in [step(n, gpus, gpu)]]
            alone = sum(n.epochs * steps * BATCH * compute(n, gpu) for n in networks)
            input = EPOCHS * IMAGES / (gpus * gpu.cores * gpu.decoded)
            why = ", then ".join(dict.fromkeys(why for _, why in times))
            hours = [f"{seconds / 3600:.2f}" for seconds in (alone, input, sum(seconds for seconds, _ in times))]
            lines.append([name, str(gpus), *hours, why])
    return text + markdown_table(header, lines)


if __name__ == "__main__":
    print(tables(Machine()))
