"""Layers: what has weights, in a module or as a function, and what it does to channel labels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from budgetnet.channels.calls import Call, first
from budgetnet.channels.labels import vector_plane
from budgetnet.channels.prices import price
from budgetnet.channels.running import Rule, Run


def _path(run: Run, tensor: Tensor) -> str:
    """The module that a weight belongs to, or the one that is being run."""
    name = run.names.get(id(tensor))
    return run.current() if name is None else name.rpartition(".")[0]


def _attributes(run: Run, path: str, **layouts: Tensor) -> None:
    """What a layer knows of its own widths."""
    module = run.modules.get(path)
    for attribute, vector in layouts.items():
        if isinstance(getattr(module, attribute, None), (int, tuple)):
            known = run.attributes.setdefault((path, attribute), vector)
            if known is not vector and len(known) == len(vector):
                run.labels.unite(known, vector)


def _name(run: Run, path: str, weight: Tensor) -> str | None:
    """The parameter that a weight is, or that the layer has computed it from, entry by entry."""
    if (name := run.names.get(id(weight))) is not None:
        return name
    name, own = f"{path}.weight", run.modules[path]._parameters.get("weight")
    if own is None or own.shape != weight.shape or name not in run.axes:
        return None
    planes = {dim: plane.labels for plane in run.known(weight).planes for dim in plane.dims if len(plane.dims) == 1}
    for dim in run.dimensions(name, own):
        here, there = planes.get(dim), run.axes[name].get(dim)
        if here is None or there is None or (run.labels.roots(here.reshape(-1)) != run.labels.roots(there)).any():
            return None
    return name


def _weight_rest(run: Run, weight: Tensor, call: Call) -> None:
    """Labels that a computed weight carries along its kernel stay as they are."""
    if run.names.get(id(weight)) is None:
        for plane in run.known(weight).planes:
            if any(d > 1 for d in plane.dims):
                run.labels.freeze(plane.labels)


def convolution(run: Run, call: Call) -> Any:
    """conv1d, conv2d and conv3d, of a module or of a parameter."""
    x, weight, bias = call.argument(0, "input"), call.argument(1, "weight"), call.argument(2, "bias")
    groups, out = call.argument(6, "groups", 1), call.tensor()
    dim = 1 if x.dim() == weight.dim() else 0
    source, path = run.vector(x, dim, call.name), _path(run, weight)
    cost = run.per_image(price(call.name, call.argument, out), x, weight)
    _weight_rest(run, weight, call)
    if groups == x.shape[dim] and groups > 1:
        layout = source.repeat_interleave(weight.shape[0] // groups)
        run.tensor_axis(weight, 0, layout)
        run.term(path, cost, layout)
        _attributes(run, path, groups=source)
    elif not _has_channels(run, weight):
        run.keep_labels(source, call.name, "reads channels by constant weights")
        layout = torch.zeros(weight.shape[0], dtype=torch.int64)
        run.term(path, cost)
    else:
        name = _name(run, path, weight)
        layout = run.produce(weight, 0, "convolution")
        if groups > 1:
            run.labels.cut(source, groups)
            run.labels.cut(layout, groups)
            if id(weight) not in run.names:  # what it was computed with is not known along its inputs
                run.labels.mix(source)
        if name is not None:
            run.axis(name, 1, source)
            run.parts[name] = groups
            run.consumers.append((name, source))
            run.producers.append((name, "convolution", layout))
        elif groups > 1:
            run.labels.freeze(source)
        else:
            run.tensor_axis(weight, 1, source)
        run.read(weight, 1, source)
        run.tensor_axis(weight, 0, layout)
        run.term(path, cost, source, layout, divisor=groups)
    run.tensor_axis(bias, 0, layout)
    _attributes(run, path, in_channels=source, out_channels=layout)
    run.carry(out, [vector_plane(layout, dim, out.dim())], image=run.of_image(x, weight))
    run.made(out, weight)
    return out


def transposed_convolution(run: Run, call: Call) -> Any:
    """Its weight is (inputs, outputs / groups, ...)."""
    x, weight, bias = call.argument(0, "input"), call.argument(1, "weight"), call.argument(2, "bias")
    groups, out = call.argument(6, "groups", 1), call.run()
    dim = 1 if x.dim() == weight.dim() else 0
    source, path, name = run.vector(x, dim, call.name), _path(run, weight), run.names.get(id(weight))
    cost = run.per_image(price(call.name, call.argument, out), x, weight)
    _weight_rest(run, weight, call)
    if groups == x.shape[dim] and groups > 1 and weight.shape[1] == 1:
        layout = source
        run.tensor_axis(weight, 0, layout)
        run.term(path, cost, layout)
        _attributes(run, path, groups=source)
    elif groups > 1 or not _has_channels(run, weight):
        run.keep_labels(source, call.name, "is a grouped transposed convolution")
        layout = torch.zeros(out.shape[dim], dtype=torch.int64)
        run.term(path, cost)
    else:
        layout = run.produce(weight, 1, "transposed")
        if name is not None:
            run.producers.append((name, "transposed", layout))
        run.tensor_axis(weight, 0, source)
        run.tensor_axis(weight, 1, layout)
        run.read(weight, 0, source)
        run.term(path, cost, source, layout)
    run.tensor_axis(bias, 0, layout)
    _attributes(run, path, in_channels=source, out_channels=layout)
    run.carry(out, [vector_plane(layout, dim, out.dim())], image=run.of_image(x, weight))
    run.made(out, weight)
    return out


def linear(run: Run, call: Call) -> Any:
    """(..., inputs) to (..., outputs)."""
    x, weight, bias = call.argument(0, "input"), call.argument(1, "weight"), call.argument(2, "bias")
    out = call.tensor()
    source, path = run.vector(x, -1, call.name, strict=False), _path(run, weight)
    others = [plane for plane in run.known(x).planes if x.dim() - 1 not in plane.dims]
    cost = run.per_image(price(call.name, call.argument, out), x, weight)
    if not _has_channels(run, weight):
        run.keep_labels(source, call.name, "reads channels by constant weights")
        run.term(path, cost, *(plane.labels.reshape(-1) for plane in others))
        run.carry(out, others, image=run.of_image(x, weight))
        return out
    layout = run.produce(weight, 0, "linear")
    if (name := _name(run, path, weight)) is not None:
        run.producers.append((name, "linear", layout))
        run.consumers.append((name, source))
    run.tensor_axis(weight, 1, source)
    run.read(weight, 1, source)
    run.tensor_axis(weight, 0, layout)
    run.tensor_axis(bias, 0, layout)
    _attributes(run, path, in_features=source, out_features=layout)
    run.term(path, cost, source, layout, *(plane.labels.reshape(-1) for plane in others))
    run.carry(out, [*others, vector_plane(layout, out.dim() - 1, out.dim())], image=run.of_image(x, weight))
    run.made(out, weight)
    return out


def _has_channels(run: Run, weight: Tensor) -> bool:
    return id(weight) in run.names or bool(run.known(weight).planes)


def _norm(run: Run, call: Call, vector: Tensor, *tensors: Tensor | None, attribute: str) -> None:
    """A norm with one entry a channel in its tensors."""
    x, path = first(call), run.current()
    for tensor in tensors:
        if tensor is not None:
            run.tensor_axis(tensor, 0, vector)
            if id(tensor) in run.names:
                path = _path(run, tensor)
    _attributes(run, path, **{attribute: vector})
    cost = price(call.name, call.argument, x)
    run.term(path, run.per_image(cost, x), vector)
    run.normed(x, path)


def batch_norm(run: Run, call: Call) -> Any:
    """Channel by channel."""
    x, out = first(call), call.run()
    mean, variance, weight, bias = (
        call.argument(i, n) for i, n in enumerate(("running_mean", "running_var", "weight", "bias"), 1)
    )
    vector = run.vector(x, 1, call.name, strict=False)
    _norm(run, call, vector, weight, bias, mean, variance, attribute="num_features")
    planes = [vector_plane(vector, 1, x.dim())] if any(1 in p.dims for p in run.known(x).planes) else []
    for plane in run.known(x).planes:
        if 1 not in plane.dims:  # of weights that are normalised, the inputs
            run.labels.mix(plane.labels)
            planes.append(plane)
    run.carry(out, planes, image=run.of_image(x))
    return out


def instance_norm(run: Run, call: Call) -> Any:
    x, out = first(call), call.run()
    mean, variance, weight, bias = (
        call.argument(i, n) for i, n in enumerate(("running_mean", "running_var", "weight", "bias"), 1)
    )
    vector = run.vector(x, 1, call.name)
    _norm(run, call, vector, weight, bias, mean, variance, attribute="num_features")
    run.carry(out, [vector_plane(vector, 1, x.dim())] if run.known(x).planes else (), image=run.of_image(x))
    return out


def group_norm(run: Run, call: Call) -> Any:
    """Groups of channels are normalised together, unless each is alone."""
    x, groups, out = first(call), call.argument(1, "num_groups"), call.run()
    vector = run.vector(x, 1, call.name)
    weight = call.argument(2, "weight")
    _norm(run, call, vector, weight, call.argument(3, "bias"), attribute="num_channels")
    if groups == x.shape[1] and groups > 1:
        _attributes(run, run.current() if weight is None else _path(run, weight), num_groups=vector)
    else:
        run.labels.mix(vector)
        if groups > 1:
            run.labels.cut(vector, groups)
    run.carry(out, [vector_plane(vector, 1, x.dim())] if run.known(x).planes else (), image=run.of_image(x))
    return out


def layer_norm(run: Run, call: Call) -> Any:
    """Over the last dimensions, all channels together."""
    x, shape, out = first(call), call.argument(1, "normalized_shape"), call.run()
    weight, bias = call.argument(2, "weight"), call.argument(3, "bias")
    begin, path = x.dim() - len(shape), run.current()
    factors, planes = [], run.known(x).planes
    for plane in planes:
        factors.append(plane.labels.reshape(-1))
        inside = [d for d in plane.dims if d >= begin]
        if inside:
            run.labels.mix(plane.labels)
        for d in inside:
            vector = run.vector(x, d, call.name, strict=False)
            for tensor in (weight, bias):
                if tensor is not None:
                    run.tensor_axis(tensor, d - begin, vector)
                    if id(tensor) in run.names:
                        path = _path(run, tensor)
            if d == begin:
                _attributes(run, path, normalized_shape=vector)
            else:
                run.keep_labels(vector, call.name, "has its channels behind other dimensions")
    if weight is not None and id(weight) in run.names:
        path = _path(run, weight)
    run.term(path, run.per_image(price(call.name, call.argument, out), x), *factors)
    run.normed(x, path)
    run.carry(out, planes, image=run.of_image(x))
    return out


def prelu(run: Run, call: Call) -> Any:
    x, weight, out = first(call), call.argument(1, "weight"), call.run()
    if weight.numel() > 1 and x.dim() > 1:
        vector = run.vector(x, 1, call.name)
        run.tensor_axis(weight, 0, vector)
        _attributes(run, _path(run, weight), num_parameters=vector)
    run.carry(out, run.known(x).planes, image=run.of_image(x))
    return out


def embedding(run: Run, call: Call) -> Any:
    """Rows of a table."""
    weight, out = call.argument(1, "weight"), call.run()
    planes = [p for p in run.known(weight).planes if 1 in p.dims]
    for plane in run.known(weight).planes:
        if 0 in plane.dims:
            run.labels.freeze(plane.labels)
    given = [vector_plane(p.labels.reshape(-1), out.dim() - 1, out.dim()) for p in planes]
    run.carry(out, given, image=run.of_image(first(call)))
    return out


def weight_norm(run: Run, call: Call) -> Any:
    """torch's own: v·g / ‖v‖, along one dimension."""
    v, g, out = call.argument(0, "v"), call.argument(1, "g"), call.run()
    planes = list(run.known(v).planes)
    for plane in run.known(g).planes:
        for other in planes:
            if other.dims & plane.dims:
                run.labels.unite(other.labels, plane.labels)
    run.carry(out, planes, image=False)
    return out


LAYERS: dict[str, Rule] = {
    **dict.fromkeys(("conv1d", "conv2d", "conv3d"), convolution),
    **dict.fromkeys(("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), transposed_convolution),
    "linear": linear, "batch_norm": batch_norm, "instance_norm": instance_norm, "group_norm": group_norm,
    "layer_norm": layer_norm, "rms_norm": layer_norm, "prelu": prelu, "embedding": embedding,
    "_weight_norm": weight_norm,
}  # fmt: skip
