"""Prove a channel graph on the model itself."""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from budgetnet.channels.graph import ChannelGraph, GraphError
from budgetnet.channels.initialise import leaks
from budgetnet.channels.resize import resize
from budgetnet.channels.surgery import Surgery

TOLERANCE = 1e-10


@torch.no_grad()
def verify(graph: ChannelGraph) -> dict[str, str]:
    """Grow every group by 1 and by 8 channels a block, and narrow it back, on a float64 copy in eval mode.

    With zero-out initialisation the logits must stay within 1e-10, and after narrowing back every tensor must be
    bit-identical. Where the function cannot be kept the forward pass must still run, and the returned text says why:
    a norm across channels, or a shortcut that the group used to crop. Returns group -> what was proven. The copy gets
    random shifts, scales and statistics first, so that nothing agrees by being zero.
    """
    model = copy.deepcopy(graph.model).to("cpu", torch.float64).eval()
    _perturb(model)
    shape = (2, *graph.input_shape[1:])
    inputs = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    before, state = _outputs(model, inputs), {k: v.clone() for k, v in model.state_dict().items()}
    proven = {}
    for group in graph.groups:
        proven[group.name] = "function kept"
        for more in (1, 8):
            grown = {group.name: group.width + more * group.blocks}
            if group.name in graph.mixing:
                proven[group.name] = "shapes only: a norm across channels cannot keep the function"
            elif _reopens(ChannelGraph.of(model), group.name, more):
                proven[group.name] = "shapes only: growing it reopens a shortcut that it crops"
            try:
                resize(model, grown, init="zero_out", seed=0)
                after = _outputs(model, inputs)
            except (RuntimeError, ValueError) as error:
                raise GraphError(f"{group!r} grown by {more}: {str(error).splitlines()[0]}") from error
            difference = (after - before).abs().max().item()
            if proven[group.name] == "function kept" and not difference <= TOLERANCE * max(
                1, before.abs().max().item()
            ):
                raise GraphError(f"{group!r} grown by {more} changes the function by {difference:.1e}")
            resize(model, {group.name: group.width})
            changed = [name for name, value in model.state_dict().items() if not torch.equal(value, state[name])]
            if changed:
                raise GraphError(f"{group!r} grown by {more} and narrowed back has changed {', '.join(changed)}")
    return proven


def _outputs(model: nn.Module, inputs: torch.Tensor) -> torch.Tensor:
    """All the tensors that the model returns, in one."""
    return torch.cat([leaf.flatten() for leaf in tree_leaves(model(inputs)) if isinstance(leaf, torch.Tensor)])


def _reopens(graph: ChannelGraph, name: str, more: int) -> bool:
    group = graph.group(name)
    block = torch.arange(group.width).reshape(group.blocks, -1)
    source = torch.cat([block, block.new_full((group.blocks, more), -1)], dim=1).flatten()
    return name in leaks(Surgery(graph, graph.widths, {name: source}, seed=0))[1]


def _perturb(model: nn.Module) -> None:
    generator = torch.Generator().manual_seed(1)
    for name, tensor in model.state_dict().items():
        if tensor.dim() == 1 and tensor.is_floating_point():
            low, high = (0.5, 1.5) if name.endswith(("weight", "running_var")) else (-0.5, 0.5)
            tensor.copy_(torch.empty_like(tensor).uniform_(low, high, generator=generator))
