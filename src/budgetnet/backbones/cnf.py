"""Convolutional Neural Fabric: a lattice of columns and scales (Saxena and Verbeek, NIPS 2016), as in Budgeted Super
Networks (Veniat and Denoyer, CVPR 2018).

The node at (column, scale) reads three nodes of the column before: a finer scale through a convolution of stride 2, the
same scale, and a coarser one, upsampled. The first and the last column also have edges from scale to scale.
"""

from __future__ import annotations

from torch import nn

from budgetnet.backbones.common import initialise
from budgetnet.backbones.fabric import Edge, EdgeGraph, Fabric, Node, scaled
from budgetnet.errors import UsageError

MOST_COLUMNS = 64
MOST_CHANNELS = 2**12


def layout(columns: int, channels: int, size: tuple[int, int], segments: bool = False) -> EdgeGraph:
    """The graph of a fabric from a finest scale of `size` (height, width) to a coarsest scale of a single position.

    segments: whether the last column leads up to the finest scale, instead of down to the coarsest one.
    """
    sizes = [size]
    while max(sizes[-1]) > 1:
        height, width = sizes[-1]
        sizes.append((-(-height // 2), -(-width // 2)))
    scales = len(sizes)
    nodes, edges = [], []
    for column in range(columns):
        upwards = segments and column == columns - 1
        for scale in reversed(range(scales)) if upwards else range(scales):
            name = _name(column, scale)
            nodes.append(Node(name, (channels, *sizes[scale]), (column, scale)))
            sources = [(column - 1, near) for near in (scale - 1, scale, scale + 1)] if column else []
            if column in (0, columns - 1):
                sources.append((column, scale + 1 if upwards else scale - 1))
            edges += [
                Edge(f"{name}_from_{_name(*source)}", _name(*source), name)
                for source in sources
                if 0 <= source[1] < scales
            ]
    return EdgeGraph(tuple(nodes), tuple(edges))


def _name(column: int, scale: int) -> str:
    return f"c{column}s{scale}"


def build(
    num_classes: int,
    in_channels: int,
    image_size: tuple[int, int],
    task: str = "classification",
    columns: int = 8,
    channels: int | None = None,
    multiplier: float | None = None,
    name: str = "cnf",
) -> Fabric:
    """A newly initialised fabric with logits (batch, num_classes).

    For task="segmentation" the logits are (batch, num_classes, height, width).

    image_size: (height, width). columns: the number of columns of nodes.
    channels: the channels of every node, by default 128, or 64 for segmentation. multiplier: a factor on channels.
    name: the name of the backbone, which is not used.
    Raises UsageError for values out of range.
    """
    segments = task == "segmentation"
    least = 2 if segments else 1
    if type(columns) is not int or not least <= columns <= MOST_COLUMNS:
        raise UsageError(f"backbone.columns={columns!r}: expected a whole number, {least} to {MOST_COLUMNS}")
    channels = (64 if segments else 128) if channels is None else channels
    if type(channels) is not int or not 1 <= channels <= MOST_CHANNELS:
        raise UsageError(f"backbone.channels={channels!r}: expected a whole number, 1 to {MOST_CHANNELS}")
    channels = scaled(channels, multiplier)
    graph = layout(columns, channels, image_size, segments)
    shapes = {node.name: node.shape[1:] for node in graph.nodes}
    edges = {edge.name: _convolution(channels, shapes[edge.source], shapes[edge.target]) for edge in graph.edges}
    stem = nn.Sequential(nn.Conv2d(in_channels, channels, 3, padding=1), nn.BatchNorm2d(channels), nn.ReLU())
    last = nn.Conv2d(channels, num_classes, 1)
    head: nn.Module = last if segments else nn.Sequential(last, nn.Flatten())
    network = Fabric(graph, stem, edges, head)
    initialise(network, classifier=last)
    return network


def _convolution(channels: int, before: tuple[int, ...], after: tuple[int, ...]) -> nn.Sequential:
    """A 3×3 convolution and a batch norm from size `before` to `after`, with stride 2 or upsampling if they differ.

    The bias has no effect before a batch norm, but the published numbers of parameters include it.
    """
    finer = before < after
    stride = 2 if before > after else 1
    layers: list[nn.Module] = [nn.Upsample(size=after)] if finer else []
    layers += [nn.Conv2d(channels, channels, 3, stride, padding=1), nn.BatchNorm2d(channels)]
    return nn.Sequential(*layers)
