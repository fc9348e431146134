"""Pure movements: what moves values about moves their labels in the same way."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from budgetnet.channels.calls import Call, first, leaves
from budgetnet.channels.joining import join_planes
from budgetnet.channels.labels import BLANK, Plane, expanded, reshaped, vector_plane
from budgetnet.channels.picking import on_labels
from budgetnet.channels.running import Rule, Run


def same(run: Run, call: Call) -> Any:
    """The labels stay where they are."""
    out, source = call.run(), run.known(first(call))
    for tensor in leaves(out):
        if tensor.shape == first(call).shape:
            run.carry(tensor, source.planes, source.blank, source.image, source.spread)
    return out


def reshape(run: Run, call: Call) -> Any:
    """view, reshape, flatten, squeeze and their like."""
    x, out = first(call), call.run()
    source = run.known(x)
    planes = []
    for plane in source.planes:
        moved = reshaped(plane, x.shape, out.shape)
        if moved is None:
            run.keep_labels(plane.labels, call.name, "takes the dimension of the channels away")
        else:
            if len(moved.dims) > len(plane.dims):
                run.labels.couple(plane.labels)
            planes.append(moved)
    run.carry(out, planes, source.blank, source.image)
    return out


def permute(run: Run, call: Call) -> Any:
    """Dimensions in another order."""
    x, out = first(call), call.run()
    source = run.known(x)
    if source.planes:
        probe = torch.empty(tuple(range(2, 2 + x.dim())), device="meta")
        order = [size - 2 for size in call.function(probe, *call.args[1:], **_without_input(call)).shape]
        planes = [
            Plane(p.labels.permute(order), frozenset(new for new, old in enumerate(order) if old in p.dims))
            for p in source.planes
        ]
        run.carry(out, planes, source.blank, source.image)
    else:
        run.carry(out, (), source.blank, source.image)
    return out


def _without_input(call: Call) -> dict[str, Any]:
    return {name: value for name, value in call.kwargs.items() if not isinstance(value, Tensor)}


def expand(run: Run, call: Call) -> Any:
    """expand, expand_as, broadcast_to: labels of a dimension of one are spread, and stay as they are."""
    x, out = first(call), call.run()
    source, more, planes = run.known(x), out.dim() - x.dim(), []
    for plane in source.planes:
        if any(x.shape[d] != out.shape[d + more] for d in plane.dims):
            run.keep_labels(plane.labels, call.name, "spreads one channel over many")
            continue
        shape = (1,) * more + tuple(plane.labels.shape)
        planes.append(Plane(plane.labels.reshape(shape), frozenset(d + more for d in plane.dims)))
    spread = frozenset(d for d, size in enumerate(out.shape) if size > 1 and (d < more or x.shape[d - more] == 1))
    run.carry(out, planes, source.blank, source.image, spread)
    return out


def repeat(run: Run, call: Call) -> Any:
    """repeat and tile."""
    x, out = first(call), call.run()
    source, more, planes = run.known(x), out.dim() - x.dim(), []
    spread = frozenset(d for d, size in enumerate(out.shape) if size > 1 and (d < more or x.shape[d - more] == 1))
    for plane in source.planes:
        if any(d + more in spread for d in plane.dims):
            run.keep_labels(plane.labels, call.name, "spreads one channel over many")
            continue
        times = [
            out.shape[d] // (x.shape[d - more] if d >= more else 1) if d - more in plane.dims else 1
            for d in range(out.dim())
        ]
        planes.append(Plane(plane.labels.repeat(times), frozenset(d + more for d in plane.dims)))
    run.carry(out, planes, source.blank, source.image, spread)
    return out


def concatenate(run: Run, call: Call) -> Any:
    """cat along any dimension."""
    parts: list[Tensor] = list(call.argument(0, "tensors"))
    out = call.run()
    dim = call.argument(1, "dim", call.kwargs.get("axis", 0)) % out.dim()
    parts = [part for part in parts if part.dim() == out.dim()]
    _join_along(run, call, parts, out, dim)
    return out


def stack(run: Run, call: Call) -> Any:
    """stack: the channels of all tensors lie beside each other along a new dimension, and are equally many."""
    listed: list[Tensor] = list(call.argument(0, "tensors"))
    out = call.run()
    dim = call.argument(1, "dim", 0) % out.dim()
    parts = []
    for tensor in listed:
        known, part = run.known(tensor), torch.empty_like(tensor).unsqueeze(dim)
        for plane in known.planes:
            run.labels.couple(
                torch.cat([plane.labels.reshape(-1), *(p.labels.reshape(-1) for p in run.known(listed[0]).planes)])
            )
        planes = [Plane(p.labels.unsqueeze(dim), frozenset(d + (d >= dim) for d in p.dims)) for p in known.planes]
        parts.append(run.carry(part, planes, known.blank, known.image))
    _join_along(run, call, parts, out, dim)
    return out


def _join_along(run: Run, call: Call, parts: list[Tensor], out: Tensor, dim: int) -> None:
    known = [run.known(part) for part in parts]
    image = any(k.image for k in known)
    planes = [k.planes for k in known]
    if not any(planes):
        run.carry(out, (), all(k.blank for k in known), image)
        return
    if any(len(own) > 1 for own in planes):
        if any(dim in plane.dims for own in planes for plane in own):
            for part in parts:
                run.keep(part, run.place(call.name), "joins tensors with channels along several dimensions")
            run.carry(out, (), image=image)
            return
        shape = list(out.shape)
        shape[dim] = 1
        entries = [([1 if d == dim else s for d, s in enumerate(p.shape)], k) for p, k in zip(parts, known)]
        run.carry(out, join_planes(run, call, entries, shape), image=image)
        return
    along = any(dim in plane.dims for own in planes for plane in own)
    dims = frozenset(d for own in planes for plane in own for d in plane.dims)
    if not along and len(parts) > 1 and call.name == "stack":
        along, dims = True, dims | {dim}
    if not along:
        entries = [([1 if d == dim else s for d, s in enumerate(p.shape)], k) for p, k in zip(parts, known)]
        shape = [1 if d == dim else s for d, s in enumerate(out.shape)]
        run.carry(out, join_planes(run, call, entries, shape), image=image)
        return
    rows = []
    for part, k in zip(parts, known, strict=True):
        sizes = [part.shape[d] if d in dims else 1 for d in range(out.dim())]
        if k.planes:
            rows.append(k.planes[0].labels.expand(sizes))
        else:
            rows.append(torch.full(sizes, BLANK if k.blank else 0))
    run.carry(out, [Plane(torch.cat(rows, dim), dims)], image=image)


def pad(run: Run, call: Call) -> Any:
    """Padding: along the channels, too."""
    x, out = first(call), call.run()
    source, planes = run.known(x), []
    for plane in source.planes:
        if all(x.shape[d] == out.shape[d] for d in plane.dims):
            planes.append(plane)
            continue
        mode, value = call.argument(2, "mode", "constant"), call.argument(3, "value", None)
        if mode != "constant" or value:
            run.keep_labels(plane.labels, call.name, "pads channels with something else than zeros")
            continue
        amounts = list(call.argument(1, "pad"))
        amounts += [0] * (2 * x.dim() - len(amounts))
        for d in range(x.dim()):
            if d not in plane.dims:
                back = x.dim() - 1 - d
                amounts[2 * back] = amounts[2 * back + 1] = 0
        planes.append(Plane(torch.nn.functional.pad(plane.labels, amounts, value=BLANK), plane.dims))
        if min(amounts) < 0:
            run.labels.couple(plane.labels)
    run.carry(out, planes, source.blank, source.image)
    return out


def rearrange(run: Run, call: Call) -> Any:
    """pixel_shuffle, pixel_unshuffle, channel_shuffle: through the function itself."""
    x, out = first(call), call.run()
    source, planes = run.known(x), []
    for plane in source.planes:
        labels = on_labels(call, expanded(plane, x.shape, range(x.dim())).contiguous())
        dims = frozenset(d for d in range(labels.dim()) if not bool((labels.narrow(d, 0, 1) == labels).all()))
        dims = dims or plane.dims
        for d in range(labels.dim()):
            if d not in dims:
                labels = labels.narrow(d, 0, 1)
        if len(dims) > 1:
            run.labels.couple(plane.labels)
        planes.append(Plane(labels, dims))
    run.carry(out, planes, source.blank, source.image)
    return out


def repeat_interleave(run: Run, call: Call) -> Any:
    x, out = first(call), call.run()
    source, dim, planes = run.known(x), call.argument(2, "dim", None), []
    for plane in source.planes:
        times = call.argument(1, "repeats")
        if dim is None or not isinstance(times, int):
            run.keep_labels(plane.labels, call.name, "repeats channels unevenly")
        elif dim % x.dim() in plane.dims:
            planes.append(Plane(plane.labels.repeat_interleave(times, dim), plane.dims))
        else:
            planes.append(plane)
    run.carry(out, planes, source.blank, source.image)
    return out


def windows(run: Run, call: Call) -> Any:
    """F.unfold: (N, C, H, W) to (N, C·k·k, positions)."""
    x, out = first(call), call.run()
    source, planes = run.known(x), list[Plane]()
    if source.planes:
        vector = run.vector(x, 1, call.name)
        planes = [vector_plane(vector.repeat_interleave(out.shape[1] // len(vector)), 1, 3)]
    run.carry(out, planes, image=source.image)
    return out


def fold(run: Run, call: Call) -> Any:
    """F.fold: (N, C·k·k, positions) to (N, C, H, W), the windows of a channel added."""
    x, out = first(call), call.run()
    planes = list[Plane]()
    if run.known(x).planes:
        labels = run.vector(x, x.dim() - 2, call.name).reshape(out.shape[-3], -1)
        run.labels.unite(labels[:, :1], labels)
        planes = [vector_plane(labels[:, 0], out.dim() - 3, out.dim())]
    run.carry(out, planes, image=run.of_image(x))
    return out


def sliding(run: Run, call: Call) -> Any:
    """Tensor.unfold: windows along one dimension, which are a new last one."""
    x, out = first(call), call.run()
    source, planes = run.known(x), []
    dim = call.args[1] % x.dim()
    for plane in source.planes:
        if dim in plane.dims:
            run.keep_labels(plane.labels, call.name, "takes windows of channels")
        else:
            planes.append(Plane(plane.labels.unsqueeze(-1), plane.dims))
    run.carry(out, planes, source.blank, source.image)
    return out


MOVEMENTS: dict[str, Rule] = {
    **dict.fromkeys(
        ("contiguous", "clone", "detach", "to", "type", "float", "half", "double", "bfloat16", "type_as", "long", "int",
         "bool", "requires_grad", "cpu", "cuda", "get data", "get real", "get imag", "alias", "nan_to_num", "positive",
         "resolve_conj"), same),
    **dict.fromkeys(
        ("view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "view_as", "reshape_as", "ravel"), reshape),
    **dict.fromkeys(
        ("permute", "transpose", "swapaxes", "swapdims", "movedim", "moveaxis", "t", "get T", "get mT", "adjoint"),
        permute),
    **dict.fromkeys(("expand", "expand_as", "broadcast_to"), expand),
    **dict.fromkeys(("repeat", "tile"), repeat),
    "cat": concatenate, "stack": stack, "pad": pad,
    **dict.fromkeys(("pixel_shuffle", "pixel_unshuffle", "channel_shuffle", "native_channel_shuffle"), rearrange),
    "repeat_interleave": repeat_interleave, "im2col": windows, "fold": fold, "unfold": sliding,
}  # fmt: skip
