"""What a network costs, as closed forms of its widths."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from budgetnet.channels.channel_graph import ChannelGraph
from budgetnet.channels.graph import Layout
from budgetnet.errors import UsageError, nearest


class _Quadratic(NamedTuple):
    """wᵀQw + l·w + c, all divided by `divisor`, in exact 64-bit integers."""

    square: np.ndarray
    linear: np.ndarray
    constant: int
    divisor: int

    def __call__(self, w: np.ndarray) -> int:
        return int(w @ (self.square @ w + self.linear) + self.constant) // self.divisor

    def rise(self, w: np.ndarray, step: np.ndarray) -> np.ndarray:
        slope = self.square @ w + w @ self.square + self.linear
        return np.asarray((slope + step * self.square.diagonal()) * step / self.divisor)


class _Affine(NamedTuple):
    """The size of an axis, (slope · w + constant) / parts."""

    slope: np.ndarray
    constant: int
    parts: int


class CostModel:
    """Prices any widths of a traced network without building it: every cost is a quadratic form of the widths.

    FLOPs are multiply-accumulates for one image, the integer that fvcore counts in eval mode (convolutions and linear
    layers, two per batch-norm element); `macs` are convolutions and linear layers alone; `params` are all parameters.
    """

    def __init__(self, graph: ChannelGraph) -> None:
        self.graph = graph
        self.names: tuple[str, ...] = tuple(graph.members)
        self._index = {name: i for i, name in enumerate(self.names)}
        self._forms = {
            "params": self._sum(self._parameter_terms()),
            "macs": self._sum([(t.coefficient, t.divisor, t.left, t.right) for t in graph.terms if t.matrix]),
            "flops": self._sum([(t.coefficient, t.divisor, t.left, t.right) for t in graph.terms]),
        }

    def params(self, widths: Mapping[str, int] | None = None) -> int:
        """Parameters of the network at `widths`; groups that are not named have their width now."""
        return self._forms["params"](self.vector(widths))

    def macs(self, widths: Mapping[str, int] | None = None) -> int:
        """Multiply-accumulates of convolutions and linear layers for one image."""
        return self._forms["macs"](self.vector(widths))

    def flops(self, widths: Mapping[str, int] | None = None) -> int:
        """Multiply-accumulates for one image as fvcore counts them."""
        return self._forms["flops"](self.vector(widths))

    def costs(self, widths: Mapping[str, int] | None = None) -> dict[str, int]:
        """{"params", "macs", "flops"} at `widths`."""
        w = self.vector(widths)
        return {kind: form(w) for kind, form in self._forms.items()}

    def price(self, kind: str, w: np.ndarray) -> int:
        """Cost of one kind at a width vector in the order of `names`: the fast path of the planner."""
        return self._forms[kind](w)

    def rises(self, kind: str, w: np.ndarray, step: np.ndarray) -> np.ndarray:
        """(groups,) by how much the cost at `w` rises if one group after the other alone were `step` channels wider."""
        return self._forms[kind].rise(w, step)

    def vector(self, widths: Mapping[str, int] | None = None) -> np.ndarray:
        """Widths as int64 in the order of `names`. Raises UsageError for an unknown group."""
        if widths is not None and len(widths) == len(self.names):
            try:
                return np.array([widths[name] for name in self.names], dtype=np.int64)
            except KeyError:
                pass
        now = self.graph.widths
        for name, width in (widths or {}).items():
            if name not in self._index:
                raise UsageError(f"no width group is called {name!r}{nearest(name, self.names)}")
            now[name] = width
        return np.array([now[name] for name in self.names], dtype=np.int64)

    def _parameter_terms(self) -> list[tuple[int, int, Layout | None, Layout | None]]:
        terms: list[tuple[int, int, Layout | None, Layout | None]] = []
        for name, parameter in self.graph.model.named_parameters():
            dims = self.graph.axes.get(name, {})
            rest = math.prod(size for dim, size in enumerate(parameter.shape) if dim not in dims)
            layouts: Sequence[Layout | None] = [dims[dim] for dim in sorted(dims)]
            left, right = (*layouts, None, None)[:2]
            terms.append((rest, 1, left, right))
        return terms

    def _sum(self, terms: Sequence[tuple[int, int, Layout | None, Layout | None]]) -> _Quadratic:
        sides = [(self._affine(left), self._affine(right)) for _, _, left, right in terms]
        whole = [divisor * a.parts * b.parts for (_, divisor, _, _), (a, b) in zip(terms, sides, strict=True)]
        common = math.lcm(
            1, *(w // math.gcd(w, coefficient) for w, (coefficient, *_) in zip(whole, terms, strict=True))
        )
        n = len(self.names)
        square, linear, constant = np.zeros((n, n), np.int64), np.zeros(n, np.int64), 0
        for (coefficient, *_), w, (a, b) in zip(terms, whole, sides, strict=True):
            scale = coefficient * common // w
            square += scale * np.outer(a.slope, b.slope)
            linear += scale * (a.slope * b.constant + b.slope * a.constant)
            constant += scale * a.constant * b.constant
        return _Quadratic(square, linear, constant, common)

    def _affine(self, layout: Layout | None) -> _Affine:
        slope = np.zeros(len(self.names), np.int64)
        if layout is None:
            return _Affine(slope, 1, 1)
        parts, constant = math.lcm(*(segment.parts * segment.of for segment in layout)), 0
        for segment in layout:
            units = segment.factor * parts // (segment.parts * segment.of)
            if segment.group is None:
                constant += units
            else:
                slope[self._index[segment.group]] += units * len(segment.chosen or (0,))
        return _Affine(slope, constant, parts)
