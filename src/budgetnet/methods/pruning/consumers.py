"""What the layers that read a width group see on a batch of images, and which of it belongs to which channel."""

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
"""What the channel graph names as a consumer; a depthwise convolution only passes its group on."""

_AT_ONCE = 64  # images in a forward pass


def measurable_groups(graph: ChannelGraph, images: Tensor) -> list[WidthGroup]:
    """The convolution groups, each of which can be judged by what its consumers make of it.

    Raises UsageError without images, and for a group that no layer reads.
    """
    if images.dim() < 2 or not len(images):
        raise UsageError(f"channels cannot be judged on images of shape {tuple(images.shape)}: pass at least one image")
    groups = [group for group in graph.groups if group.kind == "convolution"]
    for group in groups:
        if not group.consumers:
            raise UsageError(
                f"no layer reads the channels of {group.name!r}, so that they cannot be judged on images; use a method "
                "that reads the weights alone, such as l1"
            )
    return groups


@torch.no_grad()
def observe(
    graph: ChannelGraph, paths: Iterable[str], images: Tensor, see: Callable[[str, Consumer, Tensor], None]
) -> None:
    """Run the model in eval mode and tell `see` (path, layer, inputs) of every call of the consumers at `paths`.

    images: (N, C, height, width) on the model's device, 64 at a time. The model's state, its mode and the random
    state stay as they are.
    """
    model = graph.model
    training = {module: module.training for module in model.modules()}
    hooks = []
    model.eval()
    try:
        for path in paths:
            hook = partial(_tell, path, see)
            hooks.append(model.get_submodule(path).register_forward_pre_hook(hook, with_kwargs=True))
        with torch.random.fork_rng([images.device] if images.is_cuda else []):
            for part in torch.split(images, _AT_ONCE):
                model(part)
    finally:
        for handle in hooks:
            handle.remove()
        for module, mode in training.items():
            module.training = mode


def _tell(
    path: str,
    see: Callable[[str, Consumer, Tensor], None],
    layer: nn.Module,
    arguments: tuple[Any, ...],
    named: dict[str, Any],
) -> None:
    assert isinstance(layer, (nn.Conv2d, nn.Linear))
    see(path, layer, arguments[0] if arguments else named["input"])


def input_layout(graph: ChannelGraph, path: str) -> Layout:
    """What lies along the channels, or features, that a consumer reads."""
    convolution = (path, "in_channels")
    return graph.attributes[convolution if convolution in graph.attributes else (path, "in_features")]


def units(graph: ChannelGraph, path: str, name: str) -> Tensor:
    """(width, units per channel) positions on the consumer's input axis of each channel of a group."""
    return positions_of(input_layout(graph, path), name, graph.widths)


def windows(layer: Consumer, inputs: Tensor) -> Tensor:
    """(N, units, output rows, output columns, kernel rows, kernel columns): what every output is computed from.

    A view of the padded inputs; of a linear layer's (N, units) the last four dimensions are 1.
    """
    if isinstance(layer, nn.Linear):
        return inputs[:, :, None, None, None, None]
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
    """(filters, units, kernel entries) weights of these output filters; 0 where a grouped convolution does not read."""
    weight = layer.weight.detach()
    parts = layer.groups if isinstance(layer, nn.Conv2d) else 1
    own = weight[filters].reshape(len(filters), weight.shape[1], -1)
    full = own.new_zeros(len(filters), parts, *own.shape[1:])
    full[torch.arange(len(filters), device=filters.device), filters // (weight.shape[0] // parts)] = own
    return full.flatten(1, 2)


def scale_columns(layer: Consumer, factors: Tensor) -> None:
    """Multiply the weights that read each of the layer's input units by its factor, (units,), in place."""
    layer.weight.detach().mul_(by_column(layer, factors))


def by_column(layer: Consumer, factors: Tensor) -> Tensor:
    """Factors of the layer's input units, (units,), as its weight can be multiplied with; differentiable."""
    parts = layer.groups if isinstance(layer, nn.Conv2d) else 1
    rows, width = layer.weight.shape[:2]
    by_part = factors.to(layer.weight).reshape(parts, 1, width).expand(-1, rows // parts, -1)
    return by_part.reshape(rows, width, *[1] * (layer.weight.dim() - 2))
