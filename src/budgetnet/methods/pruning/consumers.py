"""The consumers of a width group, the layers that read it: their inputs on images, and their weights by channel."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from budgetnet.channels import ChannelGraph, WidthGroup
from budgetnet.channels.graph import Layout, positions_of
from budgetnet.errors import UsageError
from budgetnet.internals import symmetric_padding

Consumer = nn.Conv2d | nn.Linear
"""A consumer in the channel graph. A depthwise convolution is none, since it passes its group on."""

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)

_AT_ONCE = 64  # images in a forward pass


def measurable_groups(graph: ChannelGraph, images: Tensor | None = None) -> list[WidthGroup]:
    """The width groups of convolutions, all of which can be scored by their effect on their consumers.

    images: (N, C, height, width), or None before there are any. Raises UsageError if N is 0, for a group that no Conv2d
    or Linear reads, and for one that another layer reads too.
    """
    if images is not None and (images.dim() < 2 or not len(images)):
        raise UsageError(f"channels cannot be judged on images of shape {tuple(images.shape)}: pass at least one image")
    groups = [group for group in graph.groups if group.kind == "convolution"]
    for group in groups:
        if not group.consumers:
            raise UsageError(
                f"no Conv2d or Linear reads the channels of {group.name!r}, so that they cannot be judged on images; "
                "use a method that reads the weights alone, such as l1"
            )
        for path in group.consumers:
            if not isinstance(layer := graph.model.get_submodule(path), Consumer):
                raise UsageError(
                    f"{path!r}, which reads the channels of {group.name!r}, is a {type(layer).__name__}, so that they "
                    "cannot be judged on images; use a method that reads the weights alone, such as l1"
                )
    return groups


@torch.no_grad()
def observe(
    graph: ChannelGraph, paths: Iterable[str], images: Tensor, see: Callable[[str, Consumer, Tensor, int], None]
) -> None:
    """Run the model in eval mode and call `see(path, layer, inputs, n)` for every call of the consumers at `paths`.

    n: the number of images that are passed; the inputs may be windows or tokens of them. images: (N, C, height, width)
    on the model's device; they are passed in batches of 64. The state and mode of the model and the random state do not
    change.
    """
    model, count = graph.model, 0

    def pass_on(path: str, layer: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        assert isinstance(layer, Consumer)
        see(path, layer, arguments[0] if arguments else named["input"], count)

    training = {module: module.training for module in model.modules()}
    hooks = []
    model.eval()
    try:
        for path in paths:
            hook = partial(pass_on, path)
            hooks.append(model.get_submodule(path).register_forward_pre_hook(hook, with_kwargs=True))
        with torch.random.fork_rng([images.device] if images.is_cuda else []):
            for batch in torch.split(images, _AT_ONCE):
                count = len(batch)
                model(batch)
    finally:
        for handle in hooks:
            handle.remove()
        for module, mode in training.items():
            module.training = mode


def input_layout(graph: ChannelGraph, path: str) -> Layout:
    """The layout of the channels, or features, that a consumer reads."""
    convolution = (path, "in_channels")
    return graph.attributes[convolution if convolution in graph.attributes else (path, "in_features")]


def units(graph: ChannelGraph, path: str, name: str) -> Tensor:
    """The positions of each channel of a group on the input axis of a consumer, (width, units per channel)."""
    return positions_of(input_layout(graph, path), name, graph.widths)


def windows(layer: Consumer, inputs: Tensor) -> Tensor:
    """The input window of every output, (N, units, output rows, output columns, kernel rows, kernel columns).

    It is a view of the padded inputs. For a linear layer with inputs (N, ..., units), what lies between, such as
    tokens, makes the rows, and the last three dimensions are 1.
    """
    if isinstance(layer, nn.Linear):
        return inputs.reshape(len(inputs), -1, inputs.shape[-1]).transpose(1, 2)[..., None, None, None]
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    padded = F.pad(inputs, symmetric_padding(layer), mode=mode)
    count, channels, *space = padded.shape
    by_image, by_channel, *by_place = padded.stride()
    steps = [place * stride for place, stride in zip(by_place, layer.stride)]
    inside = [place * dilation for place, dilation in zip(by_place, layer.dilation)]
    outputs = [
        (size - dilation * (kernel - 1) - 1) // stride + 1
        for size, kernel, stride, dilation in zip(space, layer.kernel_size, layer.stride, layer.dilation)
    ]
    shape = (count, channels, *outputs, *layer.kernel_size)
    return padded.as_strided(shape, (by_image, by_channel, *steps, *inside))


def rows(layer: Consumer, filters: Tensor) -> Tensor:
    """The weights of these output filters, (filters, units, kernel entries).

    They are 0 for the units that a filter of a grouped convolution does not read.
    """
    weight = layer.weight.detach()
    groups = layer.groups if isinstance(layer, nn.Conv2d) else 1
    own = weight[filters].reshape(len(filters), weight.shape[1], -1)
    full = own.new_zeros(len(filters), groups, *own.shape[1:])
    full[torch.arange(len(filters), device=filters.device), filters // (weight.shape[0] // groups)] = own
    return full.flatten(1, 2)


def scale_columns(layer: Consumer, factors: Tensor) -> None:
    """Multiply the weights that read each of the layer's input units by its factor, (units,), in place."""
    layer.weight.detach().mul_(by_column(layer, factors))


def by_column(layer: Consumer | nn.Conv1d | nn.Conv3d, factors: Tensor) -> Tensor:
    """Factors of a layer's input units, (units,), in a shape that multiplies its weight. Differentiable."""
    groups = layer.groups if isinstance(layer, CONVOLUTIONS) else 1
    rows, width = layer.weight.shape[:2]
    by_group = factors.to(layer.weight).reshape(groups, 1, width).expand(-1, rows // groups, -1)
    return by_group.reshape(rows, width, *[1] * (layer.weight.dim() - 2))
