"""ResNet Fabric: a ResNet for 32×32 images with more connections between its groups (Veniat and Denoyer, CVPR 2018).

There are three groups of n positions with 16, 32 and 64 channels. Every position has a basic block and a shortcut.
Those of the second and third groups also read two or three positions of the previous group, mirrored in depth.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from budgetnet.backbones.common import convolution, initialise, subsampled
from budgetnet.backbones.fabric import Edge, EdgeGraph, Fabric, Node, scaled
from budgetnet.backbones.resnet import projection
from budgetnet.errors import UsageError

DEPTHS = {20: 3, 32: 5, 44: 7, 56: 9, 110: 18}
"""The number of blocks in each group, by the depth of the ResNet that the fabric contains."""

FULL_WIDTHS = (16, 32, 64)


class Block(nn.Module):
    """Two 3×3 convolutions with batch norms; the node that reads it applies the ReLU."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = convolution(in_channels, out_channels, stride=stride)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = convolution(out_channels, out_channels)
        self.bn2 = nn.BatchNorm2d(out_channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return out


class Projection(nn.Module):
    """A shortcut that changes the size: a 1×1 convolution of every `stride`-th pixel, and a batch norm."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.project = projection(in_channels, out_channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        projected: torch.Tensor = self.project(subsampled(x, self.stride))
        return projected


class Head(nn.Module):
    """The mean over positions, and a linear layer."""

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.fc = nn.Linear(channels, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.fc(x.mean((2, 3)))  # fvcore counts no FLOPs for a mean, unlike a pooling layer
        return logits


def layout(
    blocks: int, widths: tuple[int, int, int], size: tuple[int, int] = (32, 32), extra: bool = True
) -> EdgeGraph:
    """The graph of a fabric with `blocks` blocks in each group.

    widths: the channels of each group. size: (height, width) of an image. extra: whether there are connections beyond
    those of the ResNet.
    """
    nodes, edges = [Node("input", (widths[0], *size), (0, 0))], []
    for group, width in enumerate(widths):
        shape = (width, *(-(-side // 2**group) for side in size))
        for position in range(blocks):
            name = f"g{group}b{position}"
            before = nodes[-1].name
            nodes.append(Node(name, shape, (position + 1, group)))
            widens = group > 0 and position == 0
            edges += [Edge(f"{name}_block", before, name), Edge(f"{name}_skip", before, name, steps=int(widens))]
            for source in _sources(group, position, blocks) if extra else ():
                edges += [Edge(f"{name}_block_{source}", source, name), Edge(f"{name}_skip_{source}", source, name)]
    return EdgeGraph(tuple(nodes), tuple(edges))


def _sources(group: int, position: int, blocks: int) -> list[str]:
    """The nodes of the previous group that a position also reads, mirrored in depth as in the authors' code.

    A node that would lie before the first block of that group is replaced by the node which that block reads.
    """
    if group == 0:
        return []
    mirrored = [blocks - position - 2]
    mirrored += [blocks - position - 1] if position > 0 else []
    mirrored += [blocks - position - 3] if position < blocks - 1 else []
    entry = "input" if group == 1 else f"g{group - 2}b{blocks - 1}"
    return [entry if place < 0 else f"g{group - 1}b{place}" for place in mirrored]


def build(
    num_classes: int,
    in_channels: int,
    image_size: tuple[int, int],
    depth: int = 20,
    multiplier: float | None = None,
    extra: bool = True,
    name: str = "resnet_fabric",
) -> Fabric:
    """A newly initialised fabric around the ResNet of this depth, with logits (batch, num_classes).

    image_size: (height, width). multiplier: a factor on the channels of every group.
    extra: False gives the ResNet alone, with projections as the shortcuts that widen it.
    name: the name of the backbone, which is not used.
    Raises UsageError for a depth without such a ResNet, and for values out of range.
    """
    if depth not in DEPTHS:
        raise UsageError(f"backbone.depth={depth}: expected one of {', '.join(map(str, DEPTHS))}")
    if not isinstance(extra, bool):
        raise UsageError(f"backbone.extra={extra!r}: expected true or false")
    first, second, third = (scaled(width, multiplier) for width in FULL_WIDTHS)
    graph = layout(DEPTHS[depth], (first, second, third), image_size, extra)
    shapes = {node.name: node.shape for node in graph.nodes}
    edges: dict[str, nn.Module] = {}
    for edge in graph.edges:
        (before, height, _), (after, lower, _) = shapes[edge.source], shapes[edge.target]
        stride = -(-height // lower)
        if "_block" in edge.name:
            edges[edge.name] = Block(before, after, stride)
        else:
            edges[edge.name] = Projection(before, after, stride) if edge.steps else nn.Identity()
    stem = nn.Sequential(convolution(in_channels, first), nn.BatchNorm2d(first), nn.ReLU())
    network = Fabric(graph, stem, edges, head := Head(third, num_classes))
    initialise(network, classifier=head.fc)
    return network
