"""Prices of a network as it is and for other widths or edge masks, depending on the kind of network."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from budgetnet.backbones.exits import ExitNetwork
from budgetnet.backbones.fabric import Fabric
from budgetnet.channels import ChannelGraph
from budgetnet.costs.edges import EdgeCosts
from budgetnet.costs.exits import ExitCosts
from budgetnet.costs.model import CostModel
from budgetnet.costs.sequential import SequentialOperations


class Pricing:
    """Prices a traced network at its own and at other widths, and follows the network when it is traced again."""

    def __init__(self, net: nn.Module) -> None:
        self.net = net
        self._model = CostModel(ChannelGraph.of(net))
        self._flops = self._model.flops()

    @property
    def model(self) -> CostModel:
        """The costs as closed forms of the widths, for the current channel graph."""
        graph = ChannelGraph.of(self.net)
        if self._model.graph is not graph:
            self._model = CostModel(graph)
        return self._model

    @property
    def flops(self) -> int:
        """FLOPs (multiply-accumulates) for one image as of the last `update`; cheap, since every step reads it."""
        return self._flops

    @property
    def edge_names(self) -> list[str] | None:
        """The edges that the network has now, or None if it is no network of edges."""
        return None

    def update(self) -> None:
        """Price the network again after its shape has changed."""
        self._flops = self.model.flops()

    def costs(self, selection: Any = None) -> dict[str, int]:
        """The costs of the network by kind. selection: widths by group, or None for the current ones."""
        widths: Mapping[str, int] | None = selection
        return self.model.costs(widths)


class EdgePricing(Pricing):
    """Prices a network of edges and its edge masks. machines: the number of machines for sequential operations."""

    def __init__(self, net: Fabric, machines: int = 1) -> None:
        super().__init__(net)
        self.fabric, self.machines = net, machines

    @property
    def edge_names(self) -> list[str] | None:
        return list(self.fabric.edges)

    @cached_property
    def edges(self) -> EdgeCosts:
        """The costs of the edges that the network has when this is first read; masks refer to these edges."""
        return EdgeCosts(self.fabric, self.machines)

    def costs(self, selection: Any = None) -> dict[str, int]:
        """The costs by kind, including sequential operations. selection: an edge mask, bool (edges,), or None."""
        if selection is None:
            steps = SequentialOperations(self.fabric.layout, self.machines).full()
            return {**super().costs(), "sequential_ops": steps}
        mask: Tensor = selection
        assert mask.dtype == torch.bool
        return self.edges.price(mask)


class ExitPricing(Pricing):
    """Prices a network with exits, and an image that leaves it at one of them."""

    def __init__(self, net: ExitNetwork) -> None:
        super().__init__(net)
        self.network = net
        self._exits: tuple[ChannelGraph, ExitCosts] | None = None

    @property
    def exits(self) -> ExitCosts:
        """Costs of the exits of the network as it is now."""
        graph = ChannelGraph.of(self.net)
        if self._exits is None or self._exits[0] is not graph:
            _, channels, height, width = graph.input_shape
            self._exits = graph, ExitCosts(self.network, (channels, height, width))
        return self._exits[1]

    def costs(self, selection: Any = None) -> dict[str, int]:
        """Costs by kind. selection: the number of an exit, from 0; None: the whole network, to its last exit.

        What an exit costs is the true cost of a lazy evaluation (`ExitCosts.lazy`): the image has passed the exits
        before it, and nothing is computed before an exit reads it.
        """
        if selection is None:
            return super().costs()
        lazy = self.exits.lazy
        return {kind: lazy[kind][selection] for kind in ("params", "macs", "flops")}


def pricing_of(net: nn.Module, machines: int | None = None) -> Pricing:
    """The pricing of this kind of network."""
    if isinstance(net, ExitNetwork):
        return ExitPricing(net)
    return EdgePricing(net, machines or 1) if isinstance(net, Fabric) else Pricing(net)
