"""Prices of a network as it is and for other widths or edge masks, depending on the kind of network."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from budgetnet.backbones.fabric import Fabric
from budgetnet.channels import ChannelGraph
from budgetnet.costs.edges import EdgeCosts
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

    def update(self) -> None:
        """Price the network again after its shape has changed."""
        self._flops = self.model.flops()

    def costs(self, choice: Any = None) -> dict[str, int]:
        """The costs of the network by kind. choice: widths by group, or None for the current ones."""
        widths: Mapping[str, int] | None = choice
        return self.model.costs(widths)


class EdgePricing(Pricing):
    """Prices a network of edges and its edge masks. machines: the number of machines for sequential operations."""

    def __init__(self, net: Fabric, machines: int = 1) -> None:
        super().__init__(net)
        self.fabric, self.machines = net, machines

    @cached_property
    def edges(self) -> EdgeCosts:
        """The costs of the edges that the network has when this is first read; masks refer to these edges."""
        return EdgeCosts(self.fabric, self.machines)

    def costs(self, choice: Any = None) -> dict[str, int]:
        """The costs by kind, including sequential operations. choice: an edge mask, bool (edges,), or None."""
        if choice is None:
            steps = SequentialOperations(self.fabric.layout, self.machines).full()
            return {**super().costs(), "sequential_ops": steps}
        mask: Tensor = choice
        assert mask.dtype == torch.bool
        return self.edges.price(mask)


def pricing_of(net: nn.Module, machines: int | None = None) -> Pricing:
    """The pricing of this kind of network."""
    return EdgePricing(net, machines or 1) if isinstance(net, Fabric) else Pricing(net)
