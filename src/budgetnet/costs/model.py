"""What a network costs, as closed forms of its widths."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from budgetnet.channels.graph import ChannelGraph, Layout
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
        parts = [s.parts for _, _, *sides in terms for side in sides if side for s in side]
        common = math.lcm(1, *parts, *(divisor for _, divisor, _, _ in terms))
        n = len(self.names)
        square, linear, constant = np.zeros((n, n), np.int64), np.zeros(n, np.int64), 0
        for coefficient, divisor, left, right in terms:
            (a, a0, pa), (b, b0, pb) = self._affine(left), self._affine(right)
            scale = coefficient * common // (divisor * pa * pb)
            assert scale * divisor * pa * pb == coefficient * common
            square += scale * np.outer(a, b)
            linear += scale * (a * b0 + b * a0)
            constant += scale * a0 * b0
        return _Quadratic(square, linear, constant, common)

    def _affine(self, layout: Layout | None) -> tuple[np.ndarray, int, int]:
        """Size of an axis as (a·w + a0) / parts."""
        a = np.zeros(len(self.names), np.int64)
        if layout is None:
            return a, 1, 1
        parts, constant = max(segment.parts for segment in layout), 0
        for segment in layout:
            if segment.group is None:
                constant += segment.factor * parts
            else:
                a[self._index[segment.group]] += segment.factor * parts // segment.parts
        return a, constant, parts
