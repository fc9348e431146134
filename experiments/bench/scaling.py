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
from budgetnet.channels.untrained import max_widths, seed_widths
from budgetnet.costs import CostModel
from budgetnet.methods.growth import GrowthRule, Limit, Planner
from budgetnet.reports.tables import markdown_table

IMAGES, EPOCHS, ROUND = 1_271_167, 90, 6
"""ImageNet's training set without the 10,000 images held out; epochs of experiment=imagenet, and of a round of it."""
CASES = ((1, 256), (8, 256), (64, 256), (8, 1024), (64, 8192))
"""(GPUs, images of a step, all GPUs together)."""


@dataclass(frozen=True)
class Machine:
    """An H100-class GPU and its share of a node, by their data sheets; README.md says where the other figures are from.

    reach, memory_reach: the parts of the peak rates that convolutions and element-wise kernels get to. passes: how
    often a training step reads or writes what a convolution puts out. launch: seconds that an eager step of a ResNet-18
    keeps the host busy, however small it is. decoded: images a core prepares in a second. hidden: the part of a step
    that the all-reduce can hide behind, its backward pass.
    """

    peak: float = 989e12  # FLOPs (two per multiply-accumulate) a second, dense, bf16
    reach: float = 0.4
    memory: float = 3.35e12  # bytes a second
    memory_reach: float = 0.7
    passes: int = 20
    launch: float = 3.5e-3
    hidden: float = 2 / 3
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


def shown(computing: float, reducing: float, hidden: float) -> float:
    """Seconds of an all-reduce that a step waits for, beyond the part of its computing that hides it."""
    return max(0.0, reducing - hidden * computing)


def step(network: Network, gpus: int, images: int, gpu: Machine) -> tuple[float, str]:
    """Seconds of a step with `images` images, all GPUs together, and what limits it."""
    share = images / gpus
    busy, input = share * compute(network, gpu), share / (gpu.cores * gpu.decoded)
    computing = max(busy, gpu.launch)
    link = gpu.within_node if gpus <= gpu.gpus_per_node else gpu.between_nodes
    waiting = shown(computing, reduced(network, gpus) / link, gpu.hidden)
    if input > computing + waiting:
        return input, "input"
    if waiting > computing:
        return computing + waiting, "all-reduce"
    return computing + waiting, "GPU" if busy >= gpu.launch else "launches"


def path() -> list[Network]:
    """The networks of a run with `experiment=imagenet budget.flops=50%` in which every layer is always saturated."""
    net = backbones.build("resnet18", num_classes=1000)
    graph = ChannelGraph.trace(net, torch.empty(1, 3, 224, 224))
    cost, most = CostModel(graph), max_widths(graph, "8x")
    full = _network("full", net, cost, EPOCHS)
    seed = seed_widths(graph, 16)
    _narrow(net, seed)
    planner = Planner(cost, GrowthRule(policy="saturation"), {name: most[name] for name in seed if name in most})
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
    alone = [f"{what} alone, h" for what in ("GPU", "launches", "input")]
    header = ["run", "GPUs", "images a step", *alone, "hours", "limited by"]
    lines = []
    for name, networks in (("full network", [full]), ("grown to 50 %", grown)):
        for gpus, images in CASES:
            steps = IMAGES / images
            taken = [step(network, gpus, images, gpu) for network in networks]
            busy = sum(n.epochs * steps * images / gpus * compute(n, gpu) for n in networks)
            input = EPOCHS * IMAGES / (gpus * gpu.cores * gpu.decoded)
            whole = sum(n.epochs * steps * seconds for n, (seconds, _) in zip(networks, taken, strict=True))
            hours = [seconds / 3600 for seconds in (busy, EPOCHS * steps * gpu.launch, input, whole)]
            why = ", then ".join(dict.fromkeys(why for _, why in taken))
            lines.append([name, str(gpus), f"{images:,}", *(f"{value:.2f}" for value in hours), why])
    return text + markdown_table(header, lines)


if __name__ == "__main__":
    print(tables(Machine()))
