"""Trace a model into its channel graph: run it on the meta device, with labels, at its widths and at other ones.

What one run cannot tell, a second one does: every group is made wider on a copy without storage, each by another
amount, and what then has another shape than it should is not free to change (a view to a fixed size, a slice at a fixed
channel). It stays as it is, and the graph says why. Only what is the same pattern at both widths becomes a width.
"""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Callable, Collection
from contextlib import contextmanager
from typing import Any, Iterator

import numpy as np
import torch
from torch import Tensor, nn

from budgetnet.channels.graph import ChannelGraph, GraphError, Layout, Segment, Term, WidthGroup
from budgetnet.channels.groups import Structure
from budgetnet.channels.labels import Planes
from budgetnet.channels.operations import RULES
from budgetnet.channels.running import Call, Place, Rule, Run, leaves

IMAGES = 2
import os
DEBUG = os.environ.get("DEBUG_LABELS")
"""Images of a trace: with one, a batch norm has nothing to take statistics of."""


def trace(model: nn.Module, example_input: Tensor, frozen: Collection[str] = ()) -> ChannelGraph:
    """See ChannelGraph.trace."""
    if isinstance(model, nn.parallel.DistributedDataParallel):
        raise GraphError("trace the module inside DistributedDataParallel (model.module), not the wrapper")
    _refuse_shared_parameters(model)
    graph = _Trace(model, tuple(example_input.shape), frozenset(frozen)).graph()
    model.__dict__["_channel_graph"] = graph  # not a submodule: the model's state and its copies stay plain
    return graph


def _refuse_shared_parameters(model: nn.Module) -> None:
    owners: dict[int, str] = {}
    for path, module in model.named_modules():
        for name, parameter in module._parameters.items():
            other = owners.setdefault(id(parameter), f"{path}.{name}")
            if parameter is not None and other != f"{path}.{name}":
                raise GraphError(f"{other} and {path}.{name} are one parameter in two layers, which is not followed")


def shadow_of(model: nn.Module) -> nn.Module:
    """A copy on the meta device; integer buffers, which may be indices, keep their values."""
    memo: dict[int, Any] = {}
    for module in model.modules():
        for store in (module._parameters, module._buffers, module.__dict__):
            for value in store.values():
                if isinstance(value, nn.Parameter):
                    twin = nn.Parameter(torch.empty_like(value, device="meta"), requires_grad=False)
                    memo[id(value)] = twin
                elif isinstance(value, Tensor):
                    plain = value.detach()
                    memo[id(value)] = plain.clone() if _index(plain) else torch.empty_like(plain, device="meta")
        hidden = module.__dict__.get("_channel_graph")
        if hidden is not None:
            memo[id(hidden)] = None
    return copy.deepcopy(model, memo)


def _index(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() and not tensor.is_complex() and tensor.dim() > 0


class _Stop(Exception):
    """The second run cannot go on."""


class _Second(Run):
    """A run at other widths that compares every operation with the first run's, and mends what differs.

    suspects: labels of the first run whose channels are not free to change, with the operation that says so.
    """

    def __init__(self, model: nn.Module, frozen: frozenset[str], first: Run, grown: Callable[[Planes], Any]) -> None:
        super().__init__(model, RULES, frozen)
        self.first, self.grown = first, grown
        self.suspects: list[tuple[Place, str, list[Tensor]]] = []
        self.sizes: dict[int, Any] = {}

    def follow(self, rule: Rule, call: Call) -> Any:
        number = len(self.events)
        if number == len(self.first.events) == self.first.failed_at:
            return super().follow(rule, call)  # it fails here at any width
        if number >= len(self.first.events) or self.first.events[number].name != call.name:
            self.suspect(call.name, number, "is another one at other widths")
            raise _Stop
        try:
            return super().follow(rule, call)
        except (RuntimeError, ValueError, IndexError, TypeError, AssertionError) as error:
            if isinstance(error, _Stop):
                raise
            if DEBUG:
                print("second:", call.name, type(error).__name__, error)
            self.suspect(call.name, number, "holds a number of channels that is written down")
            raise _Stop from error

    def note(self, call: Call, out: Any) -> None:
        super().note(call, out)
        number = len(self.events) - 1
        if number >= len(self.first.events):
            return
        for (shape, _), (old, planes) in zip(self.events[number].outputs, self.first.events[number].outputs):
            expected = self.grown(planes, old)
            if expected is not None and expected != tuple(shape):
                if DEBUG:
                    print("second: expected", call.name, expected, tuple(shape), old)
                self.suspect(call.name, number, "holds a number of channels that is written down")
                raise _Stop

    def suspect(self, operation: str, number: int, why: str) -> None:
        number = min(number, len(self.first.events) - 1)
        line, labels = self.first.events[number].line, list[Tensor]()
        for event in self.first.events:  # the same line of other modules of this kind is no other
            if event.line == line and event.name == self.first.events[number].name:
                labels += [plane.labels for planes in event.inputs for plane in planes]
                labels += [plane.labels for _, planes in event.outputs for plane in planes]
        self.suspects.append((self.place(operation), why, labels))


class _Trace:
    """One trace of a model."""

    def __init__(self, model: nn.Module, input_shape: tuple[int, ...], frozen: frozenset[str]) -> None:
        self.model, self.input_shape, self.frozen = model, input_shape, frozen
        self.reasons: list[tuple[Place, str]] = []

    def graph(self) -> ChannelGraph:
        shadow = shadow_of(self.model)
        run = Run(shadow, RULES, self.frozen)
        run.images = IMAGES
        self._pass(run, shadow.eval())
        seen = len(run.events), sum(map(len, run.axes.values()))
        run.counting = False
        self._pass_in_training(run, shadow.train())
        names = [event.name for event in run.events]
        same = names[: seen[0]] == names[seen[0] :] and seen[1] == sum(map(len, run.axes.values()))
        self.modes = (False,) if same else (False, True)
        unknown = self.frozen - run.found_frozen - set(run.modules)
        if unknown:
            raise GraphError(
                f"frozen={sorted(unknown)}: neither a module path nor an operation of {type(self.model).__name__}"
            )
        self._refuse(run)
        structure, layouts = self._settled(run, shadow)
        return self._finish(run, structure, layouts)

    # -- running ----------------------------------------------------------------------------------------------------

    def _pass(self, run: Run, shadow: nn.Module) -> None:
        """One forward pass; what the model returns stays as it is."""
        dtype = next((p.dtype for p in shadow.parameters() if p.is_floating_point()), torch.float32)
        image = torch.empty((IMAGES, *self.input_shape[1:]), device="meta", dtype=dtype)
        with torch.no_grad(), _undisturbed(), run.watching(), run:
            run.carry(image, ())
            try:
                out = shadow(image)
            except _Stop:
                raise
            except Exception as error:  # whatever the model's own code raises
                run.stack.clear()
                raise self._failed(run, error) from error
        for tensor in leaves(out if isinstance(out, (Tensor, tuple, list, dict)) else getattr(out, "__dict__", {})):
            for plane in run.known(tensor).planes:
                run.labels.freeze(plane.labels)

    def _pass_in_training(self, run: Run, shadow: nn.Module) -> None:
        """A head for training alone may need a larger image than this one: what leads to it stays as it is."""
        try:
            self._pass(run, shadow)
        except GraphError as error:
            if type(run) is _Second and len(run.events) != len(run.first.events):
                raise
            run.failed_at = len(run.events)
            for planes in run.events[-1].inputs:
                for plane in planes:
                    run.keep_labels(plane.labels, Place("forward", "", "", 0, True), f"fails in training: {error}")

    def _failed(self, run: Run, error: Exception) -> GraphError:
        """What a forward pass raised, with the line of the user's code and what to do."""
        line = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        frame, where = error.__traceback__, ""
        while frame is not None:
            code = frame.tb_frame.f_code.co_filename
            if not code.startswith((str(torch.__path__[0]), str(__file__).rpartition("/")[0], "<")):
                module = frame.tb_frame.f_locals.get("self")
                path = next((p for p, m in run.modules.items() if m is module), None)
                where = f" in module {path!r}" if path else ""
                where += f" ({code.rpartition('/')[2]}:{frame.tb_lineno})"
            frame = frame.tb_next
        name = type(self.model).__name__
        if "meta" in line or isinstance(error, NotImplementedError):
            return GraphError(
                f"{name} cannot be traced{where}: {line}; move what depends on the data into a submodule and name that "
                "in frozen=(...), 'backbone.frozen=[...]' on the command line"
            )
        return GraphError(f"{name} does not take inputs of shape {self.input_shape[1:]}{where}: {line}")

    def _refuse(self, run: Run) -> None:
        """Raises GraphError with all that is not followed."""
        if not run.refused:
            return
        messages = list(dict.fromkeys(f"{place} {why}" for place, why in run.refused))
        names = list(dict.fromkeys(place.module or place.operation for place, _ in run.refused))
        raise GraphError(
            f"{'; '.join(messages)}; to keep the widths around {'it' if len(messages) == 1 else 'them'} fixed, trace "
            f"with frozen=({', '.join(map(repr, names))},), on the command line 'backbone.frozen=[{','.join(names)}]'"
        )

    # -- two widths -------------------------------------------------------------------------------------------------

    def _settled(self, run: Run, shadow: nn.Module) -> tuple[Structure, dict[tuple[int, int], Layout]]:
        """The groups that are the same pattern at two widths, and a layout for every vector of labels, by its id."""
        shadow.eval()
        original = {name: t for name, t in [*shadow.named_parameters(), *shadow.named_buffers()]}
        integers = _integers(shadow)
        while True:
            structure = Structure(run)
            for number in structure.find_blocks():
                self._fix(run, structure, {number}, Place("parse", structure.groups[number].name, "", 0, True), "is made of channels in no order that widths could follow")
            if any(run.labels.roots(g.order[:1])[0] == 0 for g in structure.groups):
                continue
            if not structure.groups:
                return structure, {}
            wider = {
                g.name: (g.width // g.blocks + (1 + i % 3 if g.width > g.blocks else 2 + i % 2)) * g.blocks
                for i, g in enumerate(structure.groups)
            }
            fixed = self._again(run, shadow, structure, wider, original)
            _restore(shadow, original, integers)
            if isinstance(fixed, dict):
                return structure, fixed
            if not fixed:
                raise GraphError(f"{type(self.model).__name__} has another structure at other widths")

    def _fix(self, run: Run, structure: Structure, numbers: set[int], place: Place, why: str) -> None:
        for number in numbers:
            run.fixed.append((place, why, torch.from_numpy(structure.groups[number].order)))
            run.labels.freeze(torch.from_numpy(structure.groups[number].order))

    def _again(
        self, run: Run, shadow: nn.Module, structure: Structure, wider: dict[str, int], original: dict[str, Tensor]
    ) -> dict[tuple[int, int], Layout] | set[int]:
        """Run at other widths. Layouts by the id of a vector of the first run; or the groups that are fixed now."""

        def count(vector: Tensor) -> int:
            groups, _ = structure.along(vector)
            numbers, counts = np.unique(groups, return_counts=True)
            return int(sum(
                c if n < 0 else c * wider[structure.groups[n].name] // structure.groups[n].width
                for n, c in zip(numbers.tolist(), counts.tolist())
            ))  # fmt: skip

        def fix(labels: list[Tensor], place: Place, why: str) -> set[int]:
            numbers: set[int] = set()
            for vector in labels:
                groups, _ = structure.along(vector)
                numbers |= set(np.unique(groups[groups >= 0]).tolist())
            dependent = {n for n in numbers if not structure.groups[n].producers}
            numbers = dependent or numbers  # what no layer makes alone, such as the rest that a padding leaves, first
            self._fix(run, structure, numbers, place, why)
            return numbers

        sizes: dict[Any, tuple[int, ...] | None] = {}

        def grown(planes: Planes, shape: tuple[int, ...]) -> tuple[int, ...] | None:
            key = (tuple((p.labels.data_ptr(), tuple(p.labels.shape), p.labels.stride(), p.dims) for p in planes), shape)
            if key not in sizes:
                expected: list[int] | None = list(shape)
                for plane in planes:
                    if len(plane.dims) > 1 or bool((plane.labels < 0).any()):
                        expected = None
                        break
                    (dim,) = plane.dims
                    expected[dim] = count(plane.labels)  # type: ignore[index]
                sizes[key] = None if expected is None else tuple(expected)
            return sizes[key]

        _forget(original)
        for name, dims in run.axes.items():
            tensor = original[name]
            shape = list(tensor.shape)
            for dim, vector in dims.items():
                shape[dim] = count(vector) // (run.parts.get(name, 1) if dim == 1 else 1)
            if shape != list(tensor.shape):
                _put(shadow, name, tensor.new_empty(shape))
        for (path, attribute), vector in run.attributes.items():
            _set_attribute(shadow.get_submodule(path), attribute, count(vector))
        second = _Second(shadow, self.frozen, run, grown)
        second.images = IMAGES
        try:
            for training in self.modes:
                second.counting = not training
                (self._pass_in_training if training else self._pass)(second, shadow.train(training))
        except (_Stop, GraphError) as error:
            if not second.suspects:
                second.suspect("forward", len(second.events) - 1, f"fails at other widths ({error})")
        if second.suspects:
            found = set()
            for place, why, labels in second.suspects:
                found |= fix(labels, place, why)
            if not found:  # the operation has no free channels: what was seen last has
                for event in reversed(run.events[: len(second.events) + 1]):
                    labels = [plane.labels for planes in event.inputs for plane in planes]
                    found = fix(labels, second.suspects[0][0], second.suspects[0][1])
                    if found:
                        break
            return found
        return self._compared(run, structure, second, wider, fix)

    def _compared(self, run: Run, structure: Structure, second: Run, wider: dict[str, int], fix: Any) -> Any:
        """Layouts, read off the second run, and the same on the first."""
        other = Structure(second)
        while stale := [g for g in other.groups if wider.get(g.name) != g.width]:  # they are fixed in the first run
            for group in stale:
                second.labels.freeze(torch.from_numpy(group.order))
            other = Structure(second)
        blocks = {g.name: g.blocks for g in structure.groups}
        widths = {g.name: g.width for g in structure.groups}
        layouts: dict[tuple[int, int], Layout] = {}
        place = Place("forward", "", "", 0, True)
        why = "lies otherwise at other widths"
        bad: set[int] = set()
        known: dict[Any, Layout | None] = {}
        for one, two, parts in _pairs(run, second):
            key = (one.numpy().tobytes(), two.numpy().tobytes(), parts)
            if key not in known:
                known[key] = self._matched(structure, other, one, two, parts, blocks, widths)
            layout = known[key]
            if layout is None:
                if DEBUG:
                    print("second: lies otherwise", structure.along(one), other.along(two), parts)
                    print([(g.name, g.width) for g in structure.groups], [(g.name, g.width) for g in other.groups], wider)
                bad |= fix([one], place, why)
            else:
                layouts[id(one), parts] = layout
        return bad or layouts

    @staticmethod
    def _matched(
        structure: Structure, other: Structure, one: Tensor, two: Tensor, parts: int,
        blocks: dict[str, int], widths: dict[str, int],
    ) -> Layout | None:  # fmt: skip
        layout = other.layout(two, blocks)
        if layout is None:
            return None
        numbers = {g.name: i for i, g in enumerate(structure.groups)}
        owners, channels = structure.along(one)
        at = 0
        for segment in layout:
            size = segment.size(widths)
            owner = owners[at : at + size]
            if segment.group is None:
                if len(owner) != size or (owner >= 0).any():
                    return None
            else:
                expected = segment.channels(widths).numpy()
                same = (owner == numbers[segment.group]).all() and len(owner) == size
                if not same or not (channels[at : at + size] == expected).all():
                    return None
            at += size
        if at != len(owners):
            return None
        return tuple(Segment(s.group, s.factor, parts, s.chosen, s.of) for s in layout)

    # -- result -----------------------------------------------------------------------------------------------------

    def _finish(self, run: Run, structure: Structure, layouts: dict[tuple[int, int], Layout]) -> ChannelGraph:
        def settle(vector: Tensor, parts: int = 1) -> Layout:
            return layouts.get((id(vector), parts)) or (Segment(None, len(vector), parts),)

        axes = {
            name: {dim: settle(vector, run.parts.get(name, 1) if dim == 1 else 1) for dim, vector in dims.items()}
            for name, dims in run.axes.items()
        }
        for name, dims in axes.items():
            if len(dims) > 2:  # of a weight that is computed with: those that change
                axes[name] = {dim: own for dim, own in dims.items() if any(s.group is not None for s in own)}
        mixed = set()
        for array in run.labels.mixed:
            groups = structure.group_of[np.maximum(array, 0)]
            mixed |= {structure.groups[n].name for n in np.unique(groups[groups >= 0]).tolist()}
        norm_after: dict[str, str] = {}
        for layer, norm, between in run.norms:
            if getattr(between, "_uses", 0) == 1:
                norm_after.setdefault(layer, norm)
        graph = ChannelGraph(
            model=self.model,
            input_shape=self.input_shape,
            axes=axes,
            attributes={key: settle(vector) for key, vector in run.attributes.items()},
            terms=[self._term(run, structure, cost, settle) for cost in run.costs],
            joins=[(settle(source), settle(target)) for source, target in run.joins],
            norm_after=norm_after,
            mixing=frozenset(mixed),
            reads=dict(run.reads),
            frozen=self.frozen,
            fixed=self._why_fixed(run),
        )
        partly = _partly(axes)
        for group in structure.groups:
            kind = "other" if group.name in partly else group.kind
            graph.members[group.name] = WidthGroup(
                group.name, group.width, kind, tuple(group.producers), tuple(group.consumers), group.blocks
            )
        graph.fills = _fills(graph)
        if not graph.members:
            why = f": {'; '.join(graph.fixed[:3])}" if graph.fixed else ""
            raise GraphError(f"{type(self.model).__name__} has no width that can change{why}")
        return graph

    def _why_fixed(self, run: Run) -> tuple[str, ...]:
        """A line for each operation of the user's code, however many modules run it."""
        found: dict[tuple[object, ...], list[Place]] = {}
        for place, why, labels in run.fixed:
            if bool((labels > 0).any()):
                found.setdefault((place.operation, place.file, place.line, why), []).append(place)
        lines = []
        for (*_, why), places in found.items():
            more = len({place.module for place in places}) - 1
            lines.append(f"{places[0]}{f' and {more} more like it' if more else ''} {why}")
        return tuple(lines)

    def _term(self, run: Run, structure: Structure, cost: Any, settle: Callable[[Tensor], Layout]) -> Term:
        free = [f for f in cost.factors if (structure.along(f)[0] >= 0).any()]
        kept = list(cost.factors)
        if len(kept) > 2:
            kept = free
        if len(kept) > 2:
            raise GraphError(f"{cost.module}: a cost that is a product of {len(kept)} widths is not followed")
        length = math.prod(len(f) for f in kept)
        coefficient, rest = divmod(cost.amount * cost.divisor, length)
        assert rest == 0, cost
        sides = [settle(f) for f in kept] or [(Segment(None, 1),)]
        return Term(cost.module, cost.matrix, coefficient, sides[0], sides[1] if len(sides) > 1 else None, cost.divisor)


def _pairs(run: Run, second: Run) -> Iterator[tuple[Tensor, Tensor, int]]:
    """Vectors of labels that stand for the same thing in both runs."""
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
        for one, two in zip(cost.factors, other.factors):
            yield one, two, 1


def _partly(axes: dict[str, dict[int, Layout]]) -> set[str]:
    """Groups of which some axis has some channels more often than others."""
    found = set()
    for layout in {layout for dims in axes.values() for layout in dims.values()}:
        counts: dict[tuple[str | None, int], dict[int, int]] = {}
        for s in layout:
            for block in s.chosen:
                own = counts.setdefault((s.group, s.of), {})
                own[block] = own.get(block, 0) + s.factor
        found |= {str(g) for (g, of), own in counts.items() if len(own) != of or len(set(own.values())) != 1}
    return found


def _fills(graph: ChannelGraph) -> dict[str, float]:
    """What new entries of a tensor become that belongs to none of torch's layers: the value all its entries have now."""
    found = {}
    for name in graph.axes:
        path, _, leaf = name.rpartition(".")
        module = graph.model.get_submodule(path)
        tensor = getattr(module, leaf, None)
        if not isinstance(tensor, Tensor) or tensor.is_meta or not tensor.numel() or not tensor.is_floating_point():
            continue
        if type(module).__module__.startswith("torch.nn.modules") and not isinstance(module, nn.PReLU):
            continue
        value = tensor.detach().flatten()[0]
        if bool((tensor.detach() == value).all()):
            found[name] = float(value)
    return found


def _integers(shadow: nn.Module) -> dict[tuple[str, str], Any]:
    names = ("in_channels", "out_channels", "groups", "num_features", "num_channels", "num_groups", "normalized_shape", "in_features", "out_features", "num_parameters")
    return {
        (path, name): module.__dict__[name]
        for path, module in shadow.named_modules() for name in names if name in module.__dict__
    }  # fmt: skip


def _forget(tensors: dict[str, Tensor]) -> None:
    """Parameters are known anew in each run."""
    for tensor in tensors.values():
        tensor.__dict__.pop("_carried", None)


def _restore(shadow: nn.Module, tensors: dict[str, Tensor], integers: dict[tuple[str, str], Any]) -> None:
    for name, tensor in tensors.items():
        _put(shadow, name, tensor)
    for (path, attribute), value in integers.items():
        shadow.get_submodule(path).__dict__[attribute] = value


def _put(shadow: nn.Module, name: str, tensor: Tensor) -> None:
    path, _, leaf = name.rpartition(".")
    module = shadow.get_submodule(path)
    if leaf in module._parameters:
        module._parameters[leaf] = tensor if isinstance(tensor, nn.Parameter) else nn.Parameter(tensor, False)
    else:
        module._buffers[leaf] = tensor


def _set_attribute(module: nn.Module, attribute: str, size: int) -> None:
    if attribute == "normalized_shape":
        module.normalized_shape = (size, *module.normalized_shape[1:])  # type: ignore[index, misc]
    else:
        setattr(module, attribute, size)


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Random states and torch's shortcuts for attention stay as they are."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    random.seed(0)
    np.random.seed(0)
    torch.default_generator.manual_seed(0)  # the CPU's alone
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
        torch.backends.mha.set_fastpath_enabled(fast)
