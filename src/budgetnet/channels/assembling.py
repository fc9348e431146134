"""The channel graph, made of what the runs have found."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeVar

import numpy as np
from torch import Tensor, nn

from budgetnet.channels.calls import Cost, Place
from budgetnet.channels.graph import Graph, GraphError, Layout, Segment, Term, WidthGroup
from budgetnet.channels.groups import Structure
from budgetnet.channels.other_widths import Layouts
from budgetnet.channels.running import Run

Kind = TypeVar("Kind", bound=Graph)


def assemble(
    make: type[Kind],
    model: nn.Module,
    input_shape: tuple[int, ...],
    run: Run,
    structure: Structure,
    layouts: Layouts,
) -> Kind:
    """The graph of `model`, of the class `make`. Raises GraphError if no width can change."""

    def layout_of(vector: Tensor, parts: int = 1) -> Layout:
        return layouts.get((id(vector), parts)) or (Segment(None, len(vector), parts),)

    axes = {
        name: {dim: layout_of(vector, run.parts.get(name, 1) if dim == 1 else 1) for dim, vector in dims.items()}
        for name, dims in run.axes.items()
    }
    for name, dims in axes.items():
        if len(dims) > 2:  # of a weight that is computed with: those that change
            axes[name] = {dim: own for dim, own in dims.items() if any(s.group is not None for s in own)}
    blocks = {group.name: group.blocks for group in structure.groups}
    graph = make(
        model=model,
        input_shape=input_shape,
        axes=axes,
        attributes={
            **{key: layout_of(vector) for key, vector in run.attributes.items()},
            **{key: structure.layout(vector, blocks) or layout_of(vector) for key, vector in run.numbers.items()},
        },
        terms=[_term(structure, cost, layout_of) for cost in run.costs],
        joins=[(layout_of(source), layout_of(target)) for source, target in run.joins],
        residual=run.residual,
        norm_after=_norm_after(run),
        mixing=_mixing(run, structure),
        reads=_reads(run),
        fills=_fills(model, axes),
        frozen=run.frozen,
        fixed=_why_fixed(run),
    )
    partly = partly_held(axes)
    for group in structure.groups:
        kind = "other" if group.name in partly else group.kind
        graph.members[group.name] = WidthGroup(
            group.name, group.width, kind, tuple(group.producers), tuple(group.consumers), group.blocks
        )
    if not graph.members:
        why = f": {'; '.join(graph.fixed[:3])}" if graph.fixed else ""
        raise GraphError(f"{type(model).__name__} has no width that can change{why}")
    return graph


def _term(structure: Structure, cost: Cost, layout_of: Callable[[Tensor], Layout]) -> Term:
    factors = list(cost.factors)
    if len(factors) > 2:
        factors = [factor for factor in factors if (structure.along(factor)[0] >= 0).any()]
    assert len(factors) <= 2, cost
    coefficient, rest = divmod(cost.amount * cost.divisor, math.prod(len(factor) for factor in factors))
    assert rest == 0, cost
    left, right = (*(layout_of(factor) for factor in factors), None, None)[:2]
    return Term(cost.module, cost.matrix, coefficient, left or (Segment(None, 1),), right, cost.divisor)


def _reads(run: Run) -> dict[str, int]:
    """Of each tensor that a layer reads with, or computes such a weight from, the dimension along which it does.

    What a weight is computed from lies as the weight does, or else, as one that is transposed, where the labels are.
    """
    found = dict(run.reads)
    for names, computed, source in run.computed:
        roots = run.labels.roots(source)
        roots = roots[roots > 0]
        along = {
            name: [dim for dim, own in run.axes.get(name, {}).items() if np.isin(run.labels.roots(own), roots).any()]
            for name in sorted(names)
        }
        straight = {name: computed for name, dims in along.items() if computed in dims}
        for name, dim in (straight or {name: dims[0] for name, dims in along.items() if dims}).items():
            found.setdefault(name, dim)
    return found


def _norm_after(run: Run) -> dict[str, str]:
    """Of each layer all of whose outputs one norm reads, and nothing else does, that norm, if it reads nothing else."""
    reader = {id(tensor): norm for norm, tensor in run.norms}
    maker = {id(tensor): layer for layer, tensor in run.outputs}
    behind: dict[str, set[str | None]] = {}
    before: dict[str, set[str | None]] = {}
    for layer, tensor in run.outputs:
        alone = getattr(tensor, "_uses", 0) == 1
        behind.setdefault(layer, set()).add(reader.get(id(tensor)) if alone else None)
    for norm, tensor in run.norms:
        before.setdefault(norm, set()).add(maker.get(id(tensor)))
    pairs = {layer: next(iter(norms)) for layer, norms in behind.items() if len(norms) == 1}
    return {layer: norm for layer, norm in pairs.items() if norm is not None and before[norm] == {layer}}


def _mixing(run: Run, structure: Structure) -> frozenset[str]:
    found: set[int] = set()
    for labels in run.labels.mixed:
        groups = structure.group_of[np.maximum(labels, 0)]
        found |= set(np.unique(groups[groups >= 0]).tolist())
    return frozenset(structure.groups[number].name for number in found)


def _why_fixed(run: Run) -> tuple[str, ...]:
    """A line for each operation of the user's code, however many modules run it."""
    found: dict[tuple[str, str, int, str], list[Place]] = {}
    for place, why, labels in run.fixed:
        if bool((labels > 0).any()):
            found.setdefault((place.operation, place.file, place.line, why), []).append(place)
    lines = []
    for (_, _, _, why), places in found.items():
        more = len({place.module for place in places}) - 1
        lines.append(f"{places[0]}{f' and {more} more like it' if more else ''} {why}")
    return tuple(lines)


def partly_held(axes: dict[str, dict[int, Layout]]) -> set[str]:
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


def _fills(model: nn.Module, axes: dict[str, dict[int, Layout]]) -> dict[str, float]:
    """What new entries of a tensor outside torch's layers become: the value that all its entries have now."""
    found = {}
    for name in axes:
        path, _, leaf = name.rpartition(".")
        module = model.get_submodule(path)
        tensor = getattr(module, leaf)
        layer = type(module).__module__.startswith("torch.nn.modules") and not isinstance(module, nn.PReLU)
        if layer or tensor.is_meta or not tensor.numel() or not tensor.is_floating_point():
            continue
        value = tensor.detach().flatten()[0]
        if bool((tensor.detach() == value).all()):
            found[name] = float(value)
    return found
