"""Plain training of a fixed network: the full backbone, a width multiplier, or widths that another run found."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from budgetnet.backbones.fabric import Fabric
from budgetnet.channels import ChannelGraph
from budgetnet.channels.fresh import UNBOUNDED, reshape_fresh
from budgetnet.costs import Budget, CostModel, TrainCostLedger
from budgetnet.errors import UsageError
from budgetnet.methods.base import BudgetedModule
from budgetnet.methods.edges import keep_edges
from budgetnet.methods.options import Optimization, options
from budgetnet.methods.phases import learning_rate

_WIDEST = 64.0  # times the full widths


class Train(BudgetedModule):
    """SGD with momentum on a network whose widths never change ("train-scratch-base" of the paper's Table 4)."""

    def __init__(
        self,
        net: nn.Module,
        num_classes: int,
        ledger: TrainCostLedger,
        budget: Budget,
        optim: Optimization,
        epochs: int,
    ) -> None:
        super().__init__(net, num_classes, ledger, budget, optim.label_smoothing)
        self.optim = optim
        self.epochs = epochs

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return sgd(self.net, self.optim)

    def learning_rate(self, epoch: int, batch: int, steps_per_epoch: int) -> float:
        o, spe = self.optim, steps_per_epoch
        return learning_rate(o.schedule, o.lr, epoch * spe + batch, self.epochs * spe, o.warmup_epochs * spe)


def sgd(net: nn.Module, optim: Optimization) -> torch.optim.SGD:
    """SGD with momentum; biases, scales and shifts do not decay."""
    matrices = [p for p in net.parameters() if p.dim() > 1]
    vectors = [p for p in net.parameters() if p.dim() <= 1]
    groups: list[dict[str, Any]] = [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.SGD(groups, lr=optim.lr, momentum=optim.momentum, weight_decay=optim.weight_decay)


def widths_of_run(path: str) -> Mapping[str, int]:
    """The final widths of another run: `path` is its directory or its summary.json."""
    widths: dict[str, int] = _summary_of(path)["widths"]
    return widths


def edges_of_run(path: str, net: Fabric) -> list[str]:
    """The edges that another run has kept of this fabric, all that there are if it has not chosen any."""
    edges: list[str] = _summary_of(path).get("edges", list(net.edges))
    if unknown := set(edges) - set(net.edges):
        raise UsageError(f"method.widths_from={path}: this backbone has no edge {min(unknown)!r}, which it has kept")
    return edges


def _summary_of(path: str) -> dict[str, Any]:
    """Raises UsageError where there is no finished run."""
    try:
        file = Path(path)
        file = file / "summary.json" if file.is_dir() else file
        if not file.is_file():
            raise FileNotFoundError(f"{file} is not a file")
        summary: dict[str, Any] = dict(json.loads(file.read_text()))
        widths = dict(summary["widths"])
        if not all(type(width) is int and 0 < width <= UNBOUNDED for width in widths.values()):
            raise ValueError("its widths are not numbers of channels")
        if not all(isinstance(edge, str) for edge in summary.get("edges", [])):
            raise ValueError("its edges are not names")
    except (OSError, TypeError, ValueError, KeyError) as error:
        raise UsageError(f"method.widths_from={path}: no finished run's summary.json there ({error})") from error
    return summary


def build(config: Mapping[str, Any], net: nn.Module, num_classes: int, ledger: TrainCostLedger) -> Train:
    """The method for a resolved configuration; `net` is the backbone, traced.

    Raises UsageError for options out of range, and where the network costs more than a budget that is given.
    """
    graph, cost = ChannelGraph.of(net), CostModel(ChannelGraph.of(net))
    budget = Budget(**config["budget"]).resolve({**cost.costs(), "train_cost": ledger.baseline_cost})
    if (source := config["method"].get("widths_from")) is not None:
        if isinstance(net, Fabric):
            graph = keep_edges(net, edges_of_run(source, net))
            cost = CostModel(graph)
        widths = widths_of_run(source)
        if graph.widths.keys() - widths.keys():
            raise UsageError(f"method.widths_from={source}: its width groups are not those of this backbone")
        reshape_fresh(net, {name: width for name, width in widths.items() if graph.group(name)}, config["seed"])
    costs = _costs(cost, graph.widths, config["epochs"], ledger)
    for kind, limit in budget.limits.items():
        if costs[kind] > limit:
            raise UsageError(
                f"budget.{kind}={limit:,} is below the {costs[kind]:,} of this fixed network, which method=train does "
                "not change: raise the budget, or lower backbone.multiplier or epochs"
            )
    return Train(net, num_classes, ledger, budget, options(Optimization, "optim", config["optim"]), config["epochs"])


def build_scaled(config: Mapping[str, Any], net: nn.Module, num_classes: int, ledger: TrainCostLedger) -> Train:
    """The same for a backbone whose convolutions are all multiplied by the largest number that meets the budget.

    Raises UsageError also for a budget that one filter a layer exceeds.
    """
    graph, cost = ChannelGraph.of(net), CostModel(ChannelGraph.of(net))
    budget = Budget(**config["budget"])
    budget.require()
    budget = budget.resolve({**cost.costs(), "train_cost": ledger.baseline_cost})

    def fits(multiplier: float) -> bool:
        return budget.fits(_costs(cost, scaled_widths(graph, multiplier), config["epochs"], ledger))

    if not fits(0.0):
        raise UsageError(f"{budget} leaves no network: one filter a layer already costs more; raise it")
    low, high = 0.0, 1.0
    while fits(high) and high < _WIDEST:
        low, high = high, 2 * high
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    reshape_fresh(net, scaled_widths(graph, low), config["seed"])
    return Train(net, num_classes, ledger, budget, options(Optimization, "optim", config["optim"]), config["epochs"])


def scaled_widths(graph: ChannelGraph, multiplier: float) -> dict[str, int]:
    """The widths of a traced network with its convolutions times `multiplier`, rounded, at least one filter each."""
    widths = graph.widths
    for group in graph.groups:
        if group.kind == "convolution":
            widths[group.name] = max(1, round(group.width * multiplier / group.blocks)) * group.blocks
    return widths


def _costs(cost: CostModel, widths: Mapping[str, int], epochs: int, ledger: TrainCostLedger) -> dict[str, int]:
    """Of a network of these widths, with the train cost of all epochs."""
    costs = cost.costs(widths)
    return {**costs, "train_cost": epochs * ledger.images_per_epoch * costs["flops"]}
