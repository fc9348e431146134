"""Channel labels: integers that are carried beside a tensor, and which of them have to change together.

A label is one channel. FIXED belongs to what never changes, such as the colours of an image; BLANK to what has no
channels of its own, such as padding: it fits whatever it meets.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

FIXED, BLANK = 0, -1


class Plane(NamedTuple):
    """Labels of one tensor, int64, broadcastable to its shape: of size 1 along every dimension but `dims`.

    An activation has one plane, along its channels; a weight has two, along its outputs and along its inputs.
    """

    labels: Tensor
    dims: frozenset[int]


Planes = tuple[Plane, ...]


class Carried(NamedTuple):
    """What is known of a tensor.

    blank: made of one value, such as zeros. image: computed from the input. spread: dimensions along which all values
    are the same, since one was expanded.
    """

    planes: Planes = ()
    blank: bool = False
    image: bool = True
    spread: frozenset[int] = frozenset()


class Labels:
    """Every label of one trace: a forest (union-find) in which labels that must change together have one root."""

    def __init__(self) -> None:
        self._parent = np.zeros(1 << 12, np.int64)
        self.count = 1
        self.mixed: list[np.ndarray] = []  # labels that an operation mixes with each other, such as a layer norm
        self.coupled: list[np.ndarray] = []  # labels whose numbers must stay in proportion
        self.pieces: list[np.ndarray] = []  # runs of labels that begin and end with blocks of their groups

    def new(self, count: int) -> Tensor:
        """(count,) new labels."""
        first = self.count
        self.count += count
        if self.count > len(self._parent):
            self._parent = np.concatenate([self._parent, np.zeros(max(len(self._parent), count), np.int64)])
        self._parent[first : self.count] = np.arange(first, self.count)
        return torch.arange(first, self.count)

    def roots(self, labels: Tensor | np.ndarray) -> np.ndarray:
        """The root of each label, in the same shape; BLANK stays."""
        flat = labels.numpy() if isinstance(labels, Tensor) else labels
        found = self._parent[np.maximum(flat, 0)]
        while True:
            above = self._parent[found]
            if (above == found).all():
                break
            found = above
        return np.where(flat < 0, flat, found)

    def unite(self, left: Tensor, right: Tensor) -> None:
        """Each label of one with the label of the other that it meets."""
        if left.data_ptr() == right.data_ptr() and left.shape == right.shape and left.stride() == right.stride():
            return
        a, b = np.broadcast_arrays(left.numpy(), right.numpy())
        a, b = a.reshape(-1), b.reshape(-1)
        kept = (a >= 0) & (b >= 0)
        a, b = a[kept], b[kept]
        while True:
            one, other = self.roots(a), self.roots(b)
            differ = one != other
            if not differ.any():
                return
            low, high = np.minimum(one, other)[differ], np.maximum(one, other)[differ]
            np.minimum.at(self._parent, high, low)

    def freeze(self, labels: Tensor) -> None:
        """These never change."""
        self.unite(labels.reshape(-1), torch.zeros(1, dtype=torch.int64))

    def mix(self, labels: Tensor) -> None:
        self.mixed.append(labels.reshape(-1).numpy())

    def couple(self, labels: Tensor) -> None:
        self.coupled.append(labels.reshape(-1).numpy())

    def cut(self, labels: Tensor, parts: int) -> None:
        """An axis that is used in equal parts."""
        self.couple(labels)
        self.pieces += list(labels.numpy().reshape(parts, -1))


def vector_plane(vector: Tensor, dim: int, rank: int) -> Plane:
    """The plane of a tensor of this rank whose channels, (n,) labels, lie along `dim`."""
    return Plane(vector.reshape([-1 if d == dim else 1 for d in range(rank)]), frozenset((dim,)))


def aligned(plane: Plane, rank: int) -> Plane:
    """The plane of a tensor that is broadcast to a higher rank."""
    more = rank - plane.labels.dim()
    if more == 0:
        return plane
    return Plane(plane.labels.reshape((1,) * more + tuple(plane.labels.shape)), frozenset(d + more for d in plane.dims))


def expanded(plane: Plane, shape: Sequence[int], dims: Iterable[int]) -> Tensor:
    """The labels at full size along `dims` as well."""
    sizes = list(plane.labels.shape)
    for dim in dims:
        sizes[dim] = shape[dim]
    return plane.labels.expand(sizes)


def reshaped(plane: Plane, old: Sequence[int], new: Sequence[int]) -> Plane | None:
    """The plane after a reshape; None where the dimension it varied along is gone (it had one channel)."""
    if tuple(old) == tuple(new):
        return plane
    lead = 0
    while lead < min(len(old), len(new)) and old[lead] == new[lead]:
        lead += 1
    trail = 0
    while trail < min(len(old), len(new)) - lead and old[-1 - trail] == new[-1 - trail]:
        trail += 1
    inner, outer = range(lead, len(old) - trail), range(lead, len(new) - trail)
    sizes = list(plane.labels.shape)
    ends = sizes[:lead], sizes[len(old) - trail :]
    moved = {d for d in plane.dims if d < lead} | {d + len(new) - len(old) for d in plane.dims if d >= len(old) - trail}
    varying = [d for d in plane.dims if d in inner]
    if not varying:
        return Plane(plane.labels.reshape(ends[0] + [1] * len(outer) + ends[1]), frozenset(moved))
    labels = expanded(plane, old, inner).reshape(ends[0] + [new[d] for d in outer] + ends[1])
    inside = {d for d in outer if new[d] > 1 and not bool((labels.narrow(d, 0, 1) == labels).all())}
    if not inside:  # one channel: it goes to the dimension that begins where its own began
        before = int(np.prod([old[d] for d in range(lead, min(varying))]))
        starts = [d for d in outer if int(np.prod([new[e] for e in range(lead, d)])) == before]
        if not starts:
            return None
        inside = {starts[-1] if old[min(varying)] > 1 else starts[0]}
    for d in outer:
        if d not in inside:
            labels = labels.narrow(d, 0, 1)
    return Plane(labels, frozenset(moved | inside))
