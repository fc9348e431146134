"""ChannelGraph: a graph of width groups, with the ways to make one and to prove it."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import nn

from budgetnet.channels.graph import Graph
from budgetnet.channels.tracing import trace
from budgetnet.channels.verify import verify


@dataclass
class ChannelGraph(Graph):
    """The width groups of a model, and every tensor axis that belongs to one. Made by `ChannelGraph.trace`."""

    @classmethod
    def trace(cls, model: nn.Module, example_input: torch.Tensor, frozen: Collection[str] = ()) -> ChannelGraph:
        """Trace `model` into width groups, without running it on data or touching its state.

        example_input: (batch, channels, height, width) or (batch, features); only its shape is used.
        frozen: module paths, names of single operations, or parameters that are taken as they are: the widths around
        them never change. Raises GraphError for operations that are not followed, naming each and how to freeze it, and
        for a model of which no width can change.
        """
        return trace(model, example_input, frozen, cls)

    @staticmethod
    def of(model: nn.Module) -> ChannelGraph:
        """The graph that `trace` made for this model, or for the model it is a deep copy of.

        Raises GraphError if there is none.
        """
        graph = Graph.of(model)
        assert isinstance(graph, ChannelGraph)
        return graph

    def verify(self) -> dict[str, str]:
        """Prove the graph on a copy of the model: see verify.py. Raises GraphError where it is wrong."""
        return verify(self)
