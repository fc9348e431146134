"""What one run cannot tell, a second one at other widths does.

Every group is made wider on a copy without storage, each by another amount. What then has another shape than it should
is not free to change (a view to a fixed size, a slice at a fixed channel): it stays as it is, and the graph says why.
Only what is the same pattern at both widths becomes a width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from budgetnet.channels.calls import Call, Event, Place, leaves
from budgetnet.channels.graph import GraphError, Layout, Segment
from budgetnet.channels.groups import Structure, distinct
from budgetnet.channels.labels import Planes
from budgetnet.channels.running import Rule, Run
from budgetnet.channels.shadow import Shadow

Layouts = dict[tuple[int, int], Layout]
"""What lies along a vector of labels of the first run, by its id, and the parts in which a grouped layer reads it."""

WRITTEN_DOWN = "holds a number of channels that is written down"
_NOWHERE = Place("forward", "", "", 0, True)


class Stop(Exception):
    """A run at other widths cannot go on."""


class Failed(GraphError):
    """The model's own code has raised something. what: that, and where."""

    def __init__(self, message: str, what: str) -> None:
        super().__init__(message)
        self.what = what


class Second(Run):
    """A run at other widths that compares every operation with the first run's, and stops where it differs.

    suspects: the operation, why, and labels of the first run whose channels are not free to change.
    """

    def __init__(self, first: Run, grown: Callable[[Planes, tuple[int, ...]], tuple[int, ...] | None]) -> None:
        super().__init__(first.model, first.rules, first.frozen)
        self.first, self.grown = first, grown
        self.suspects: list[tuple[Place, str, list[Tensor]]] = []
        self.alike: list[Event] = []

    def fails_as_before(self) -> bool:
        return len(self.events) == self.first.failed_at

    def follow(self, rule: Rule, call: Call) -> Any:
        number = len(self.events)
        if number == self.first.failed_at:
            return super().follow(rule, call)  # it fails here at any width
        if number >= len(self.first.events) or self.first.events[number].name != call.name:
            self.suspect(call.name, number, "is another one at other widths")
            raise Stop
        try:
            return super().follow(rule, call)
        except (RuntimeError, ValueError, IndexError, TypeError, AssertionError) as error:
            self.suspect(call.name, number, WRITTEN_DOWN)
            raise Stop from error

    def note(self, call: Call, out: Any) -> None:
        super().note(call, out)
        number = len(self.events) - 1
        if number >= len(self.first.events):
            return
        for tensor, (old, planes) in zip(leaves(out), self.first.events[number].outputs):
            known, expected = self.known(tensor), self.grown(planes, old)
            if expected is None or known.blank or not known.image:  # of weights, where they are used is enough
                continue
            differ = {d for d, (a, b) in enumerate(zip(expected, tensor.shape)) if a != b} - known.spread
            if differ or len(expected) != tensor.dim():
                self.suspect(call.name, number, WRITTEN_DOWN)
                raise Stop

    def suspect(self, operation: str | None, number: int, why: str) -> None:
        """What the operation reads and gives in the first run, here and wherever this line of code is run.

        operation: None where the model's own code fails, right behind an operation: here alone.
        """
        here, labels = self.first.events[min(number, len(self.first.events) - 1)], list[Tensor]()
        everywhere = self.first.events if operation else [here]
        self.alike = [event for event in everywhere if event.line == here.line and event.name == here.name]
        for event in self.alike:
            labels += event.labels()
        place = _NOWHERE if operation is None else self.place(operation)
        self.suspects.append((place, why, labels))


def find_layouts(run: Run, shadow: Shadow, again: Callable[[Run], None]) -> tuple[Structure, Layouts]:
    """The groups that are the same pattern at two widths, and what lies along every vector of labels.

    again: runs the shadow's passes once more. What turns out not to be free is fixed in `run`.
    """
    shadow.restore()
    tried: set[tuple[str, int]] = set()
    while True:
        structure = Structure(run)
        unfit = structure.find_blocks()
        if unfit:
            _fix(run, structure, unfit, _NOWHERE, "has channels in an order that no width follows")
            continue
        if not structure.groups:
            return structure, {}
        comparison = _Comparison(run, structure, tried)
        try:
            fixed, layouts = comparison.made(shadow, again)
        finally:
            shadow.restore()
        if not fixed:
            return structure, layouts


def _fix(run: Run, structure: Structure, numbers: set[int], place: Place, why: str) -> None:
    for number in numbers:
        order = torch.from_numpy(structure.groups[number].order)
        run.fixed.append((place, why, order))
        run.labels.freeze(order)


class _Comparison:
    """The first run beside one in which every group is wider."""

    def __init__(self, run: Run, structure: Structure, tried: set[tuple[str, int]]) -> None:
        self.run, self.structure, self.tried = run, structure, tried
        self.wider = {
            g.name: (g.width // g.blocks + (1 + i % 3 if g.width > g.blocks else 2 + i % 2)) * g.blocks
            for i, g in enumerate(structure.groups)
        }
        self.numbers = {g.name: i for i, g in enumerate(structure.groups)}
        self.widths = {g.name: g.width for g in structure.groups}
        self._expected: dict[Any, tuple[int, ...] | None] = {}

    def made(self, shadow: Shadow, again: Callable[[Run], None]) -> tuple[set[int], Layouts]:
        """Groups that turned out not to be free, which are fixed now, or the layouts."""
        run = self.run
        shapes = {}
        for name, dims in run.axes.items():
            shapes[name] = list(shadow.tensors[name].shape)
            for dim, vector in dims.items():
                shapes[name][dim] = self._count(vector) // (run.parts.get(name, 1) if dim == 1 else 1)
        known = {**run.numbers, **run.attributes}
        shadow.resize(shapes, {key: self._count(vector) for key, vector in known.items()})
        second = Second(run, self._grown)
        try:
            again(second)
        except (Stop, GraphError) as error:
            if not second.suspects:
                what = error.what if isinstance(error, Failed) else error
                second.suspect(None, len(second.events) - 1, f"fails at other widths: {what}")
        if not second.suspects:
            return self._layouts(second)
        if second.alike and second.alike[0].line not in self.tried:
            self.tried.add(second.alike[0].line)
            numbers = _numbers(run, second.alike)
            if numbers.keys() - run.numbers.keys():
                run.numbers.update(numbers)
                return {-1}, {}
        modules = {event.module for event in second.alike}
        if wrong := [key for key in run.numbers if key[0] in modules]:  # no number of the module's own was the reason
            for key in wrong:
                del run.numbers[key]
            return {-1}, {}
        found = set()
        for place, why, labels in second.suspects:
            found |= self._fix(labels, place, why)
        place, why, _ = second.suspects[0]
        for event in reversed(run.events[: len(second.events) + 1]):  # what has no free channels: what came before
            found = found or self._fix(event.labels(), place, why)
        if not found:
            raise GraphError(f"{type(run.model).__name__} is another network at other widths: {place} {why}")
        return found, {}

    def _count(self, vector: Tensor) -> int:
        """How long an axis is with the wider groups."""
        counts = np.bincount(self.structure.along(vector)[0] + 1)
        total = int(counts[0]) if len(counts) else 0
        for number in np.flatnonzero(counts[1:]).tolist():
            group = self.structure.groups[number]
            total += int(counts[number + 1]) * self.wider[group.name] // group.width
        return total

    def _grown(self, planes: Planes, shape: tuple[int, ...]) -> tuple[int, ...] | None:
        """The shape that a tensor of the first run should have now; None where that cannot be said."""
        key = (*((p.labels.data_ptr(), p.labels.shape, p.labels.stride(), p.dims) for p in planes), shape)
        if key not in self._expected:
            expected: list[int] | None = list(shape)
            for plane in planes:
                shared = sum(bool(plane.dims & other.dims) for other in planes) > 1
                if shared or len(plane.dims) > 1 or bool((plane.labels < 0).any()):
                    expected = None
                    break
                (dim,) = plane.dims
                expected[dim] = self._count(plane.labels)  # type: ignore[index]
            self._expected[key] = None if expected is None else tuple(expected)
        return self._expected[key]

    def _fix(self, labels: Sequence[Tensor], place: Place, why: str) -> set[int]:
        """Fix the groups of these labels; those that no layer makes alone first, as what padding leaves."""
        numbers: set[int] = set()
        for vector in labels:
            numbers |= set(distinct(self.structure.along(vector)[0]))
        dependent = {number for number in numbers if not self.structure.groups[number].producers}
        _fix(self.run, self.structure, dependent or numbers, place, why)
        return dependent or numbers

    def _layouts(self, second: Run) -> tuple[set[int], Layouts]:
        """Layouts, read off the second run, that are the first run's too."""
        other = Structure(second)
        while stale := [
            g for g in other.groups if self.wider.get(g.name) != g.width
        ]:  # they are fixed in the first run
            for group in stale:
                second.labels.freeze(torch.from_numpy(group.order))
            other = Structure(second)
        blocks = {g.name: g.blocks for g in self.structure.groups}
        layouts: Layouts = {}
        known: dict[Any, Layout | None] = {}
        bad: set[int] = set()
        for one, two, parts in _pairs(self.run, second):
            key = (one.numpy().tobytes(), two.numpy().tobytes(), parts)
            if key not in known:
                known[key] = self._matched(one, other.layout(two, blocks, parts))
            layout = known[key]
            if layout is None:
                bad |= self._fix([one], _NOWHERE, "has channels in another order at other widths")
            else:
                layouts[id(one), parts] = layout
        return bad, layouts

    def _matched(self, one: Tensor, layout: Layout | None) -> Layout | None:
        """The layout, if it is that of a vector of the first run."""
        numbers, widths = self.numbers, self.widths
        owners, channels = self.structure.along(one)
        at = 0
        for segment in layout or ():
            whole = Segment(segment.group, segment.factor, 1, segment.chosen, segment.of)
            size = whole.size(widths)
            owner = owners[at : at + size]
            expected = -1 if segment.group is None else numbers[segment.group]
            if len(owner) != size or not (owner == expected).all():
                return None
            if segment.group is not None:
                each = widths[segment.group] // segment.of
                units = np.arange(each)[:, None] + np.array(segment.chosen or (0,)) * each
                if not (channels[at : at + size].reshape(-1, segment.factor) == units.reshape(-1, 1)).all():
                    return None
            at += size
        return layout if at == len(owners) else None


def _numbers(run: Run, events: Sequence[Event]) -> dict[tuple[str, str], Tensor]:
    """Numbers that the modules of these operations keep and that are the length of one of their axes of channels.

    A module of the user's own may know its widths, self.out_channels in a view or a slice: it is told the new ones.
    """
    found: dict[tuple[str, str], Tensor] = {}
    for event in events:
        module = run.modules[event.module]
        own = {k: v for k, v in vars(module).items() if type(v) is int and v > 1}
        for k, v in vars(module).items():
            if type(v) in (list, tuple) and all(type(item) is int for item in v):
                own |= {f"{k}[{number}]": item for number, item in enumerate(v) if item > 1}
        if type(module).__module__.startswith("torch.nn."):
            continue
        planes = [plane for _, given in event.outputs for plane in given]
        for plane in (*planes, *(plane for given in event.inputs for plane in given)):
            for dim in plane.dims:
                vector = plane.labels.movedim(dim, 0).reshape(plane.labels.shape[dim], -1)[:, 0]
                for name, value in own.items():
                    if value == len(vector) and bool((run.labels.roots(vector) > 0).any()):
                        found.setdefault((event.module, name), vector)
    return found


def _pairs(run: Run, second: Run) -> Iterator[tuple[Tensor, Tensor, int]]:
    """Vectors of labels that stand for the same thing in both runs, and in how many parts they are read."""
    for name, dims in run.axes.items():
        for dim, vector in dims.items():
            if name in second.axes and dim in second.axes[name]:
                yield vector, second.axes[name][dim], run.parts.get(name, 1) if dim == 1 else 1
    for key, vector in run.attributes.items():
        if key in second.attributes:
            yield vector, second.attributes[key], 1
    for (source, target), (other_source, other_target) in zip(run.joins, second.joins):
        yield source, other_source, 1
        yield target, other_target, 1
    for piece, other_piece in zip(run.labels.pieces, second.labels.pieces):
        yield torch.from_numpy(piece), torch.from_numpy(other_piece), 1
    for cost, other in zip(run.costs, second.costs):
        for factor, other_factor in zip(cost.factors, other.factors):
            yield factor, other_factor, 1
