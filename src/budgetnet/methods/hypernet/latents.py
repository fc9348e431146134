"""Which latents stand along the axes of every convolution: one vector for each width group, fixed ones elsewhere."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from budgetnet.channels import ChannelGraph
from budgetnet.channels.graph import Layout, layout_size, positions_of
from budgetnet.errors import UsageError


@dataclass(frozen=True, eq=False)
class Latents:
    """All latents of a network as places in one vector of `size` entries.

    groups: where a width group's own are, an entry for each channel; groups that no convolution writes or reads have
    none. axes: by module path of a convolution, the latents of its input axis, (c,), or (c, n) where it is grouped and
    every filter reads inputs of its own, and those of its output axis, (n,).

    What lies along an axis and belongs to no group (the image, logits, a frozen module's output) has latents that
    nothing removes, and so has the input axis of a depthwise convolution, which has one entry. Ties come from the
    groups: the convolutions of a residual stage, depthwise layers and squeeze-excite share a vector. After a
    concatenation vectors stand side by side; where a channel has several units along an axis its latent is repeated.
    """

    size: int
    groups: dict[str, slice]
    axes: dict[str, tuple[Tensor, Tensor]]

    @classmethod
    def of(cls, graph: ChannelGraph) -> Latents:
        """Raises UsageError for a network without a group of convolutions."""
        convolutions = [
            (path, module)
            for path, module in graph.model.named_modules()
            if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)) and (path, "in_channels") in graph.attributes
        ]
        sides = {
            path: [graph.attributes[path, side] for side in ("in_channels", "out_channels")] for path, _ in convolutions
        }
        touched = {segment.group for pair in sides.values() for layout in pair for segment in layout}
        groups, size = {}, 0
        for group in graph.groups:
            if group.name in touched and group.kind == "convolution":
                groups[group.name] = slice(size, size + group.width)
                size += group.width
        if not groups:
            raise UsageError(
                f"{type(graph.model).__name__} has no width that a hypernetwork could decide: expected a convolution "
                "whose number of filters may change"
            )
        axes = {}
        for path, module in convolutions:
            inputs, outputs = sides[path]
            z_out, size = _along(graph, outputs, groups, size)
            if module.groups == module.in_channels > 1:
                z_in, size = torch.tensor([size]), size + 1
            else:
                z_in, size = _along(graph, inputs, groups, size)
                if module.groups > 1:
                    parts = z_in.reshape(module.groups, -1)
                    z_in = parts.repeat_interleave(module.out_channels // module.groups, dim=0).T.contiguous()
            axes[path] = z_in, z_out
        return cls(size, groups, axes)


def _along(graph: ChannelGraph, layout: Layout, groups: dict[str, slice], size: int) -> tuple[Tensor, int]:
    """The latents along an axis, and how many there are altogether with the fixed ones that it adds."""
    widths = graph.widths
    found = torch.full((layout_size(layout, widths),), -1)
    for name in dict.fromkeys(segment.group for segment in layout):
        if name in groups:
            place = groups[name]
            units = positions_of(layout, name, widths)
            found[units] = torch.arange(place.start, place.stop)[:, None].expand_as(units)
    fixed = found < 0
    found[fixed] = torch.arange(size, size + int(fixed.sum()))
    return found, size + int(fixed.sum())
