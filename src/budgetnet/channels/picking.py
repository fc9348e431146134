"""Pieces of tensors: splits, slices, picked entries, and entries that are written."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from budgetnet.channels.calls import Call, first, leaves
from budgetnet.channels.labels import BLANK, Plane, expanded
from budgetnet.channels.running import Rule, Run


def take(run: Run, call: Call) -> Any:
    """chunk, split, narrow, flip, roll, index_select: pieces of a tensor, dimension by dimension."""
    x, out = first(call), call.run()
    source = run.known(x)
    moved: list[list[Plane]] = [[] for _ in leaves(out)]
    along = _along(call, x.dim())
    for plane in source.planes:
        if plane.dims & along and _computed([*call.args[1:], *call.kwargs.values()]):
            run.keep_labels(plane.labels, call.name, "picks channels by an index that is computed")
            continue
        if not plane.dims & along:
            for planes in moved:
                planes.append(plane)
            continue
        pieces = leaves(on_labels(call, expanded(plane, x.shape, along)))
        for planes, piece in zip(moved, pieces, strict=True):
            planes.append(_narrowed(run, plane, piece, plane.dims))
    for tensor, planes in zip(leaves(out), moved, strict=True):
        run.carry(tensor, planes, source.blank, source.image)
    return out


def _along(call: Call, rank: int) -> set[int]:
    """The dimensions along which pieces are taken."""
    if call.name in ("narrow", "index_select", "flip"):
        dims = call.args[1:] if call.name == "flip" and len(call.args) > 2 else call.argument(1, "dim")
        dims = call.kwargs.get("dims", dims)
    elif call.name in ("chunk", "split", "split_with_sizes", "tensor_split", "unsafe_chunk", "unsafe_split", "roll"):
        dims = call.argument(2, "dim", 0)
        dims = call.kwargs.get("dims", dims if call.name != "roll" or len(call.args) > 2 else None)
    else:
        dims = None
    if dims is None or dims == ():
        return set(range(rank))
    return {d % rank for d in ([dims] if isinstance(dims, int) else dims)}


def _computed(index: Any) -> bool:
    """Whether an index is a tensor that has no values in a trace."""
    return any(tensor.is_meta and not hasattr(tensor, "_real") for tensor in leaves(index))


def on_labels(call: Call, labels: Tensor) -> Any:
    """The same function of the labels."""

    def real(value: Any) -> Any:
        if isinstance(value, Tensor):
            return getattr(value, "_real", value)
        if isinstance(value, tuple):
            return tuple(real(part) for part in value)
        return [real(part) for part in value] if isinstance(value, list) else value

    args = call.args
    if args and isinstance(args[0], Tensor):
        return call.function(labels, *(real(arg) for arg in args[1:]), **{k: real(v) for k, v in call.kwargs.items()})
    kwargs = {k: real(v) for k, v in call.kwargs.items()}
    return call.function(*(real(arg) for arg in args), **{**kwargs, "input": labels})


def _narrowed(run: Run, plane: Plane, piece: Tensor, dims: frozenset[int]) -> Plane:
    """Of labels at full size, those along `dims`; a part of them is in proportion to the rest."""
    for d in range(piece.dim()):
        if d not in dims:
            piece = piece.narrow(d, 0, 1) if piece.shape[d] else piece
    if piece.numel() < plane.labels.numel():
        run.labels.couple(plane.labels)
    return Plane(piece, dims)


def select(run: Run, call: Call) -> Any:
    """select and unbind: one dimension less."""
    x, out = first(call), call.run()
    source, dim = run.known(x), int(call.argument(1, "dim", 0)) % x.dim()
    moved: list[list[Plane]] = [[] for _ in leaves(out)]
    for plane in source.planes:
        full = expanded(plane, x.shape, range(x.dim()))
        rest = frozenset(d - (d > dim) for d in plane.dims if d != dim)
        if not rest:
            run.keep_labels(plane.labels, call.name, "picks single channels")
            continue
        for planes, piece in zip(moved, leaves(on_labels(call, full)), strict=True):
            planes.append(_narrowed(run, plane, piece, rest))
    for tensor, planes in zip(leaves(out), moved, strict=True):
        run.carry(tensor, planes, source.blank, source.image)
    return out


def halves(run: Run, call: Call) -> Any:
    """glu: one half of the channels gates the other."""
    x, out = first(call), call.run()
    source, dim, planes = run.known(x), call.argument(1, "dim", -1) % x.dim(), []
    for plane in source.planes:
        if dim in plane.dims:
            run.labels.couple(plane.labels)
            left, right = plane.labels.chunk(2, dim)
            run.labels.unite(left, right)
            plane = Plane(left, plane.dims)
        planes.append(plane)
    run.carry(out, planes, image=source.image)
    return out


def gather(run: Run, call: Call) -> Any:
    """Entries along one dimension by an index: channels along another stay."""
    x, out = first(call), call.run()
    source, planes = run.known(x), []
    dim = call.argument(2, "dim") if call.name == "take_along_dim" else call.argument(1, "dim")
    for plane in source.planes:
        if dim is None or dim % x.dim() in plane.dims or any(x.shape[d] != out.shape[d] for d in plane.dims):
            run.keep_labels(plane.labels, call.name, "picks channels by an index")
        else:
            planes.append(plane)
    run.carry(out, planes)
    return out


def getitem(run: Run, call: Call) -> Any:
    """x[...]"""
    x, out = first(call), call.run()
    if not isinstance(out, Tensor):
        return out
    source, index = run.known(x), call.args[1]
    if _computed(index):
        for plane in source.planes:
            run.keep_labels(plane.labels, call.name, "picks channels by an index that is computed")
        source = source._replace(planes=())
    if not source.planes:
        run.carry(out, (), source.blank, source.image)
        return out
    sources = _where_from(index, x.dim())
    planes: list[Plane] = []
    for plane in source.planes:
        if sources is None or len(sources) != out.dim():
            piece = on_labels(call, expanded(plane, x.shape, range(x.dim())))
            dims = frozenset(d for d in range(piece.dim()) if not bool((piece.narrow(d, 0, 1) == piece).all()))
        else:
            dims = frozenset(new for new, old in enumerate(sources) if old in plane.dims)
            whole = [d for d in range(x.dim()) if d in plane.dims]
            piece = on_labels(call, expanded(plane, x.shape, range(x.dim()) if whole else ()))
        if not dims:
            run.keep_labels(plane.labels, call.name, "picks single channels")
            continue
        planes.append(_narrowed(run, plane, piece, dims))
    run.carry(out, planes, source.blank, source.image)
    return out


def _where_from(index: Any, rank: int) -> list[int | None] | None:
    """The dimension that each dimension of x[index] was (None: a new one); None for lists and tensors of indices."""
    parts = list(index) if isinstance(index, tuple) else [index]
    taken = sum(not (part is None or part is Ellipsis) for part in parts)
    found: list[int | None] = []
    at = 0
    for part in parts:
        if part is None:
            found.append(None)
        elif part is Ellipsis:
            found += range(at, at + rank - taken)
            at += rank - taken
        elif isinstance(part, slice):
            found.append(at)
            at += 1
        elif isinstance(part, int):
            at += 1
        else:
            return None
    return [*found, *range(at, rank)]


def setitem(run: Run, call: Call) -> Any:
    """x[...] = y: the labels of y stand there from now on."""
    x, index, value = call.args[0], call.args[1], call.args[2]
    before = run.known(x)
    call.run()
    given = run.known(value) if isinstance(value, Tensor) else None
    if not before.planes and (given is None or not given.planes):
        run.carry(x, (), False, before.image or (given is not None and given.image))
        return None
    sources = _where_from(index, x.dim())
    place = run.place("setitem")
    if sources is None or len(before.planes) > 1 or (given is not None and len(given.planes) > 1):
        for tensor in call.tensors:
            run.keep(tensor, place, "writes into picked channels")
        run.carry(x, before.planes, image=run.of_image(*call.tensors))
        return None
    region = torch.empty(x.shape, device="meta")[index]
    planes: list[Plane] = list(before.planes)
    dims = set(before.planes[0].dims) if before.planes else set()
    placed: Tensor | None = None
    if given is not None and given.planes:
        plane = given.planes[0]
        more = region.dim() - value.dim()
        dims |= {int(sources[d + more]) for d in plane.dims if sources[d + more] is not None}
        placed = plane.labels
    sizes = [x.shape[d] if d in dims else 1 for d in range(x.dim())]
    labels = planes[0].labels.expand(sizes).clone() if planes else torch.full(sizes, BLANK if before.blank else 0)
    parts = list(index) if isinstance(index, tuple) else [index]
    at, shrunk = 0, list[Any]()
    taken = sum(not (part is None or part is Ellipsis) for part in parts)
    for part in parts:
        if part is Ellipsis:
            shrunk += [slice(None)] * (x.dim() - taken)
            at += x.dim() - taken
        elif part is None:
            shrunk.append(part)
        else:
            shrunk.append(part if at in dims else (slice(None) if isinstance(part, slice) else 0))
            at += 1
    target = labels[tuple(shrunk)]
    if placed is None:
        blank = (given is not None and given.blank) or not isinstance(value, Tensor)
        if not blank:
            run.labels.freeze(target)
    else:
        fitting = placed.expand(target.shape) if placed.dim() <= target.dim() else placed.reshape(target.shape)
        whole = target.numel() == labels.numel()
        if whole and bool((target >= 0).any()):
            run.labels.unite(target.contiguous(), fitting)
        labels[tuple(shrunk)] = fitting
    run.carry(x, [Plane(labels, frozenset(dims))], False, True)
    return None


PICKING: dict[str, Rule] = {
    **dict.fromkeys(
        ("chunk", "split", "split_with_sizes", "tensor_split", "narrow", "flip", "fliplr", "flipud", "roll",
         "index_select", "rot90", "hsplit", "vsplit", "unsafe_chunk", "unsafe_split"), take),
    **dict.fromkeys(("select", "unbind"), select),
    "getitem": getitem, "setitem": setitem, "glu": halves, "gather": gather, "take_along_dim": gather,
}  # fmt: skip
