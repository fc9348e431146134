"""From labels to width groups: which labels behave alike, and what lies along every axis.

Labels form a class when they lie along the same axes equally often; classes whose sizes an operation holds in
proportion (a split, a shuffle, a grouped convolution) form one group. A group is `blocks` equal runs, each of which
grows at its end: the fewest for which every axis is made of whole blocks.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor, nn

from budgetnet.channels.graph import Layout, Segment
from budgetnet.channels.running import Run

MOST_SINGLE_BLOCKS = 64
"""A group of more blocks than this, of one channel each, is no width: it stays as it is."""


@dataclass
class Group:
    """A width while it is being found. order: its roots; channel c is order[c]."""

    order: np.ndarray
    name: str = ""
    kind: str = "other"
    producers: list[str] = field(default_factory=list)
    consumers: list[str] = field(default_factory=list)
    blocks: int = 1

    @property
    def width(self) -> int:
        return len(self.order)


class Structure:
    """The groups of a run. group_of, channel_of: of each label (group -1: it is fixed)."""

    def __init__(self, run: Run) -> None:
        self.run = run
        count = run.labels.count
        self.roots = run.labels.roots(np.arange(count))
        vectors = [vector for dims in run.axes.values() for vector in dims.values()]
        self._freeze_mixed_couples()
        self._find(vectors)
        self._name()

    def _freeze_mixed_couples(self) -> None:
        """What has to stay in proportion to something fixed is fixed."""
        labels, changed = self.run.labels, True
        while changed:
            changed = False
            for array in labels.coupled:
                roots = self.roots[array[array >= 0]]
                if len(roots) and (roots == 0).any() and (roots > 0).any():
                    labels._parent[roots] = 0
                    changed = True
            if changed:
                self.roots = labels.roots(np.arange(labels.count))

    def _find(self, vectors: Sequence[Tensor]) -> None:
        count = self.run.labels.count
        random = np.random.default_rng(0).integers(1, 1 << 62, len(vectors) + 1, dtype=np.int64)
        signature = np.zeros(count, np.int64)
        listed = [self.roots[np.maximum(vector.numpy(), 0)] for vector in vectors]
        for number, roots in zip(random, listed, strict=False):
            np.add.at(signature, roots, number)
        produced = [self.roots[np.maximum(vector.numpy(), 0)] for _, _, vector in self.run.producers]
        appearing = np.concatenate([*produced, *listed, np.zeros(0, np.int64)])
        unique, place = np.unique(appearing, return_index=True)
        unique = unique[np.argsort(place)]
        unique = unique[unique > 0]
        _, classes = np.unique(signature[unique], return_inverse=True)
        parent = np.arange(classes.max() + 1 if len(classes) else 0)
        class_of = np.full(count, -1)
        class_of[unique] = classes

        def find(c: int) -> int:
            while parent[c] != c:
                parent[c] = parent[parent[c]]
                c = parent[c]
            return int(c)

        for array in self.run.labels.coupled:
            own = class_of[self.roots[array[array >= 0]]]
            present = [find(c) for c in np.unique(own[own >= 0])]
            for c in present[1:]:
                parent[find(c)] = find(present[0])
        together = np.array([find(c) for c in range(len(parent))], np.int64)
        owner = together[classes] if len(classes) else classes
        found = [unique[owner == number] for number in np.unique(owner)]
        self.groups = sorted((Group(order) for order in found), key=lambda group: int(group.order.min()))
        group_of, channel_of = np.full(count, -1), np.zeros(count, np.int64)
        for number, group in enumerate(self.groups):
            group_of[group.order], channel_of[group.order] = number, np.arange(group.width)
        self.group_of, self.channel_of = group_of[self.roots], channel_of[self.roots]

    def _name(self) -> None:
        run, used = self.run, set[str]()
        first: dict[int, str] = {}
        for name, kind, vector in run.producers:
            path, _, leaf = name.rpartition(".")
            groups, channels = self.along(vector)
            for number in distinct(groups):
                group = self.groups[number]
                whole = len(channels) == group.width and (groups == number).all()
                whole = whole and (channels == np.arange(group.width)).all()
                if whole and self._is_layer(path, leaf) and self._are_filters(name, number):
                    if path not in group.producers:
                        group.producers.append(path)
                    group.kind = "convolution" if "convolution" in (group.kind, kind) else kind
                first.setdefault(number, path if leaf == "weight" else name)
        for name, dims in run.axes.items():
            for vector in dims.values():
                groups, _ = self.along(vector)
                for number in distinct(groups):
                    first.setdefault(number, name)
        for number, group in enumerate(self.groups):
            name = group.producers[0] if group.producers else first[number]
            while name in used:
                name += "'"
            group.name = name
            used.add(name)
        for name, vector in run.consumers:
            path, _, leaf = name.rpartition(".")
            groups, _ = self.along(vector)
            for number in dict.fromkeys(groups[groups >= 0].tolist()):
                if self._is_layer(path, leaf) and path not in self.groups[number].consumers:
                    self.groups[number].consumers.append(path)

    def _are_filters(self, name: str, number: int) -> bool:
        """Whether a group lies along the first dimension of a weight: a product may make channels along another one."""
        first = self.run.axes.get(name, {}).get(0)
        return first is not None and bool((self.along(first)[0] == number).all())

    def _is_layer(self, path: str, leaf: str) -> bool:
        """Whether a weight is the filters of a convolution, or the units of a linear layer, of torch or like it."""
        module = self.run.modules.get(path)
        layer = isinstance(module, (nn.modules.conv._ConvNd, nn.Linear))
        return layer and leaf == "weight" and not isinstance(module, nn.modules.conv._ConvTransposeNd)

    def along(self, vector: Tensor) -> tuple[np.ndarray, np.ndarray]:
        """The group and the channel of each position of an axis; group -1 where it is fixed."""
        labels = np.maximum(vector.reshape(-1).numpy(), 0)
        return self.group_of[labels], self.channel_of[labels]

    def vectors(self) -> list[np.ndarray]:
        """Every axis and every piece that blocks have to fit."""
        run = self.run
        return [
            *(vector.numpy() for dims in run.axes.values() for vector in dims.values()),
            *(vector.numpy() for vector in run.attributes.values()),
            *(vector.numpy() for join in run.joins for vector in join),
            *run.labels.pieces,
        ]

    def find_blocks(self) -> set[int]:
        """Set the blocks of every group; returns the groups that no blocks fit."""
        runs: dict[int, dict[bytes, np.ndarray]] = {number: {} for number in range(len(self.groups))}
        seen: set[bytes] = set()
        for vector in self.vectors():
            labels = np.maximum(vector, 0)
            key = labels.tobytes()
            if key in seen:
                continue
            seen.add(key)
            for number, channels in _runs(self.group_of[labels], self.channel_of[labels]):
                if number >= 0:
                    runs[number].setdefault(channels.tobytes(), channels)
        unfit = set()
        for number, group in enumerate(self.groups):
            for blocks in _divisors(group.width):
                if all(parse(channels, group.width, blocks) is not None for channels in runs[number].values()):
                    group.blocks = blocks
                    break
            else:
                unfit.add(number)
            if group.blocks == group.width > MOST_SINGLE_BLOCKS:
                unfit.add(number)
        return unfit

    def layout(self, vector: Tensor, blocks: Mapping[str, int], parts: int = 1) -> Layout | None:
        """What lies along an axis; None where it is not made of whole blocks."""
        found: list[Segment] = []
        for number, channels in _runs(*self.along(vector)):
            if number < 0:
                found.append(Segment(None, len(channels)))
                continue
            group = self.groups[number]
            segments = parse(channels, group.width, blocks[group.name])
            if segments is None:
                return None
            found += [
                Segment(group.name, factor, parts, chosen, blocks[group.name] if chosen else 1)
                for chosen, factor in segments
            ]
        if parts > 1:
            found = [Segment(s.group, s.factor, parts, s.chosen, s.of) for s in found]
        return tuple(found)


def _divisors(number: int) -> list[int]:
    return [d for d in range(1, number + 1) if number % d == 0]


def _runs(groups: np.ndarray, channels: np.ndarray) -> Iterable[tuple[int, np.ndarray]]:
    """Stretches of an axis that belong to one group."""
    if not len(groups):
        return
    starts, lengths = _stretches(groups)
    for start, length in zip(starts.tolist(), lengths.tolist(), strict=True):
        yield int(groups[start]), channels[start : start + length]


def parse(channels: np.ndarray, width: int, blocks: int) -> list[tuple[tuple[int, ...], int]] | None:
    """An axis of channels of one group as segments: (blocks that alternate, units of each); () is the whole group.

    A segment is, for each index i below width / blocks, channel i of each of its blocks, each so many units. Channel i
    of block b is number b · width / blocks + i. None where the axis is not made so.
    """
    count, each = len(channels), width // blocks
    if count % width == 0:  # the usual case: the whole group, in order
        factor = count // width
        if channels[0] == 0 and channels[-1] == width - 1 and (channels == np.arange(count) // factor).all():
            return [((), factor)]
    if count % each or channels[0] % each:
        return None
    if count == each and (channels == np.arange(channels[0], channels[0] + count)).all():
        return [((int(channels[0]) // each,), 1)]
    block, index = channels // each, channels % each
    starts, lengths = _stretches(index if each > 1 else channels)
    if each > 1:  # channel 0 of each segment's blocks, then channel 1 of them, ...
        if len(starts) % each or not (index[starts].reshape(-1, each) == np.arange(each)).all():
            return None
        if not (lengths.reshape(-1, each) == lengths[::each, None]).all():
            return None
    found: list[tuple[tuple[int, ...], int]] = []
    for at, period in zip(starts[::each].tolist(), lengths[::each].tolist(), strict=True):
        pattern = block[at : at + period]
        if not (block[at : at + each * period].reshape(each, period) == pattern).all():
            return None
        factor = math.gcd(*_stretches(pattern)[1].tolist()) if period > 1 else 1
        found.append((tuple(pattern[::factor].tolist()), factor))
    return _whole(found, blocks)


def _stretches(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where each stretch of equal values starts, and its length."""
    starts = np.concatenate([[0], (values[1:] != values[:-1]).nonzero()[0] + 1])
    lengths = np.empty_like(starts)
    lengths[:-1], lengths[-1] = starts[1:] - starts[:-1], len(values) - starts[-1]
    return starts, lengths


def distinct(groups: np.ndarray) -> list[int]:
    """The groups along an axis, without what is fixed."""
    if len(groups) and (groups == groups[0]).all():
        return [int(groups[0])] if groups[0] >= 0 else []
    return [int(number) for number in np.unique(groups) if number >= 0]


def _whole(segments: list[tuple[tuple[int, ...], int]], blocks: int) -> list[tuple[tuple[int, ...], int]]:
    """All blocks one after the other are the whole group."""
    result: list[tuple[tuple[int, ...], int]] = []
    at = 0
    while at < len(segments):
        chosen, factor = segments[at]
        if chosen == (0,) and segments[at : at + blocks] == [((block,), factor) for block in range(blocks)]:
            result.append(((), factor))
            at += blocks
        else:
            result.append(segments[at])
            at += 1
    return result
