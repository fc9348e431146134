"""Which latents stand along the axes of every convolution: one vector for each width group, fixed ones elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from budgetnet.channels import ChannelGraph
from budgetnet.channels.graph import Layout, layout_size
from budgetnet.channels.upsampled import upsampled
from budgetnet.errors import UsageError
from budgetnet.methods.pruning.coupled import CoupledChannels, coupled_channels


def shrinking_sets(graph: ChannelGraph) -> list[CoupledChannels]:
    """The channels that go together: filters, and what pixel shuffles and transposed convolutions make."""
    made = upsampled(graph)
    others = [group for group in graph.groups if group.name in made]
    return [*coupled_channels(graph), *(CoupledChannels((g.name,), 0, g.width, g.blocks) for g in others)]


@dataclass(frozen=True, eq=False)
class Latents:
    """All latents of a network as places in one vector of `size` entries.

    coupled: for each set of channels that go together (see `shrinking_sets`) the places of its latents. groups: for
    each width group in these sets, (width,), the place of each of its channels' latents. axes: by module path of a
    convolution, the places of its input axis, (c,), or (c, n) where it is grouped and every filter reads inputs of its
    own, and of its output axis, (n,).

    Ties come from the groups: the convolutions of a residual stage, depthwise layers and squeeze-excite share a vector,
    and so do groups that a parameter-free shortcut joins. After a concatenation vectors stand side by side; where a
    channel has several units along an axis its latent is repeated. What nothing may remove has latents of its own: the
    image, logits, a frozen module's output, a group outside all sets, and the single input of a depthwise convolution.
    """

    size: int
    coupled: tuple[slice, ...]
    groups: dict[str, Tensor]
    axes: dict[str, tuple[Tensor, Tensor]]

    @classmethod
    def of(cls, graph: ChannelGraph) -> Latents:
        """Raises UsageError for a network without convolutions that may change, and for one that computes a weight."""
        convolutions = {
            path: module
            for path, module in graph.model.named_modules()
            if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)) and (path, "in_channels") in graph.attributes
        }
        for path, module in convolutions.items():
            if module._parameters.get("weight") is None:
                raise UsageError(
                    f"a hypernetwork makes the weights of all convolutions, and {path!r} computes its own "
                    f"(weight_norm, spectral_norm or the like): keep it as it is, backbone.frozen=[{path}], or use "
                    "another method"
                )
        size, places = 0, []
        parts: dict[str, list[tuple[int, Tensor]]] = {}
        for each in shrinking_sets(graph):
            places.append(slice(size, size + len(each)))
            for name in each.groups:
                parts.setdefault(name, []).append((each.start, torch.arange(size, size + len(each))))
            size += len(each)
        if not parts:
            raise UsageError(
                f"{type(graph.model).__name__} has no width that a hypernetwork could decide: expected a convolution "
                "whose number of filters may change"
            )
        groups = {
            group.name: torch.cat([place for _, place in sorted(parts[group.name], key=lambda part: part[0])])
            for group in graph.groups
            if group.name in parts
        }
        known = dict(groups)
        for group in graph.groups:
            if group.kind != "linear" and group.name not in groups:
                known[group.name] = torch.arange(size, size + group.width)
                size += group.width
        axes = {}
        for path, module in convolutions.items():
            z_out, size = _along(graph, graph.attributes[path, "out_channels"], known, size)
            if module.groups == module.in_channels > 1:
                z_in, size = torch.tensor([size]), size + 1
            else:
                z_in, size = _along(graph, graph.attributes[path, "in_channels"], known, size)
                if module.groups > 1:
                    own = z_in.reshape(module.groups, -1)
                    z_in = own.repeat_interleave(module.out_channels // module.groups, dim=0).T.contiguous()
            axes[path] = z_in, z_out
        return cls(size, tuple(places), groups, axes)


def _along(graph: ChannelGraph, layout: Layout, known: Mapping[str, Tensor], size: int) -> tuple[Tensor, int]:
    """The latents along an axis, and how many there are altogether with the fixed ones that it adds."""
    widths, offset = graph.widths, 0
    found = torch.full((layout_size(layout, widths),), -1)
    for segment in layout:  # some hold a part of their group alone
        count = segment.size(widths)
        if segment.group is not None and segment.group in known:
            found[offset : offset + count] = known[segment.group][segment.channels(widths)[:count]]
        offset += count
    fixed = found < 0
    found[fixed] = torch.arange(size, size + int(fixed.sum()))
    return found, size + int(fixed.sum())
