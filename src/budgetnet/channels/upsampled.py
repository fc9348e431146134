"""Width groups that no filter makes alone: channels of a pixel shuffle and of a transposed convolution."""

from __future__ import annotations

from torch import nn

from budgetnet.channels.assembling import partly_held
from budgetnet.channels.graph import Graph


def upsampled(graph: Graph) -> dict[str, tuple[str, ...]]:
    """Groups of kind "other" that convolutions make whole, with the paths of these, in order of execution.

    Before a pixel shuffle every channel has factor² filters; a transposed convolution has its filters along dimension 1
    of its weight. Such a group may be resized like any other, but has no weight with one filter for each channel.
    """
    joined = {segment.group for join in graph.joins for layout in join for segment in layout}
    partly = partly_held(graph.axes)
    makers: dict[str, list[str]] = {
        group.name: []
        for group in graph.groups
        if group.kind == "other" and group.name not in partly and group.name not in joined
    }
    for path, module in graph.model.named_modules():
        if not isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)) or module.groups > 1:
            continue
        layout = graph.axes.get(f"{path}.weight", {}).get(int(isinstance(module, nn.ConvTranspose2d)), ())
        if len(layout) == 1 and layout[0].group in makers:
            makers[layout[0].group].append(path)
    return {name: tuple(paths) for name, paths in makers.items() if paths}
