"""The table: what each operation does to channel labels, and what it costs.

A rule runs the operation and says which labels its result carries. What is in no table is never guessed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from budgetnet.channels.labels import Carried, Plane, aligned, vector_plane
from budgetnet.channels.movements import MOVEMENTS, first
from budgetnet.channels.prices import Price, price
from budgetnet.channels.running import Call, Rule, Run, leaves, unknown

CONVOLUTIONS = (nn.modules.conv._ConvNd,)


# -- layers -------------------------------------------------------------------------------------------------------


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


def _weight_rest(run: Run, weight: Tensor, call: Call) -> None:
    """Labels that a computed weight carries along its kernel stay as they are."""
    if run.names.get(id(weight)) is None:
        for plane in run.known(weight).planes:
            if any(d > 1 for d in plane.dims):
                run.labels.freeze(plane.labels)


def convolution(run: Run, call: Call) -> Any:
    """conv1d, conv2d and conv3d, of a module or of a parameter."""
    x, weight, bias = call.argument(0, "input"), call.argument(1, "weight"), call.argument(2, "bias")
    groups, out = call.argument(6, "groups", 1), _convolved(call, x, weight)
    dim = 1 if x.dim() == weight.dim() else 0
    source, path = run.vector(x, dim, call.name), _path(run, weight)
    cost = _per_image(run, price(call.name, call.argument, out), x)
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
        name = run.names.get(id(weight))
        layout = run.produce(weight, 0, "convolution")
        if groups > 1:
            run.labels.cut(source, groups)
            run.labels.cut(layout, groups)
        if name is not None:
            run.axis(name, 1, source)
            run.parts[name] = groups
            run.consumers.append((name, source))
            run.producers.append((name, "convolution", layout))
        elif groups > 1:
            run.labels.freeze(source)
        else:
            run.tensor_axis(weight, 1, source)
        run.tensor_axis(weight, 0, layout)
        run.term(path, cost, source, layout, divisor=groups)
    run.tensor_axis(bias, 0, layout)
    _attributes(run, path, in_channels=source, out_channels=layout)
    run.carry(out, [vector_plane(layout, dim, out.dim())])
    run.made(out, weight)
    return out


def _convolved(call: Call, x: Tensor, weight: Tensor) -> Tensor:
    """A convolution's result by its shape alone: the meta device's own way is slow."""
    groups, padding = call.argument(6, "groups", 1), call.argument(4, "padding", 0)
    fits = x.dim() == weight.dim() and x.is_meta and x.dtype == weight.dtype and not isinstance(padding, str)
    if not fits or x.shape[1] != weight.shape[1] * groups or weight.shape[0] % groups:
        return call.run()
    space = []
    options = [call.argument(3, "stride", 1), padding, call.argument(5, "dilation", 1)]
    for number, (size, kernel) in enumerate(zip(x.shape[2:], weight.shape[2:])):
        stride, before, dilation = (
            o if isinstance(o, int) else o[number] if len(o) > 1 else o[0] for o in options
        )
        space.append((size + 2 * before - dilation * (kernel - 1) - 1) // stride + 1)
    if min(space) < 1:
        return call.run()
    return torch.empty((x.shape[0], weight.shape[0], *space), dtype=x.dtype, device="meta")


def transposed_convolution(run: Run, call: Call) -> Any:
    """Its weight is (inputs, outputs / groups, ...)."""
    x, weight, bias = call.argument(0, "input"), call.argument(1, "weight"), call.argument(2, "bias")
    groups, out = call.argument(6, "groups", 1), call.run()
    dim = 1 if x.dim() == weight.dim() else 0
    source, path, name = run.vector(x, dim, call.name), _path(run, weight), run.names.get(id(weight))
    cost = _per_image(run, price(call.name, call.argument, out), x)
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
            run.reads[name] = 0
            run.producers.append((name, "transposed", layout))
        run.tensor_axis(weight, 0, source)
        run.tensor_axis(weight, 1, layout)
        run.term(path, cost, source, layout)
    run.tensor_axis(bias, 0, layout)
    _attributes(run, path, in_channels=source, out_channels=layout)
    run.carry(out, [vector_plane(layout, dim, out.dim())])
    run.made(out, weight)
    return out


def linear(run: Run, call: Call) -> Any:
    """(..., inputs) to (..., outputs)."""
    x, weight, bias = call.argument(0, "input"), call.argument(1, "weight"), call.argument(2, "bias")
    out = call.run()
    source, path, name = run.vector(x, -1, call.name, strict=False), _path(run, weight), run.names.get(id(weight))
    others = [plane for plane in run.known(x).planes if x.dim() - 1 not in plane.dims]
    cost = _per_image(run, price(call.name, call.argument, out), x)
    if not _has_channels(run, weight):
        run.keep_labels(source, call.name, "reads channels by constant weights")
        run.term(path, cost, *(plane.labels.reshape(-1) for plane in others))
        run.carry(out, others)
        return out
    layout = run.produce(weight, 0, "linear")
    if name is not None:
        run.producers.append((name, "linear", layout))
        run.consumers.append((name, source))
    run.tensor_axis(weight, 1, source)
    run.tensor_axis(weight, 0, layout)
    run.tensor_axis(bias, 0, layout)
    _attributes(run, path, in_features=source, out_features=layout)
    run.term(path, cost, source, layout, *(plane.labels.reshape(-1) for plane in others))
    run.carry(out, [*others, vector_plane(layout, out.dim() - 1, out.dim())])
    run.made(out, weight)
    return out


def _has_channels(run: Run, weight: Tensor) -> bool:
    return id(weight) in run.names or bool(run.known(weight).planes)


def _per_image(run: Run, cost: Price, x: Tensor) -> Price:
    """Of what is computed from the input, one image's share."""
    images = run.images if run.known(x).image or id(x) not in run.names else 1
    return Price(cost.macs // images, cost.other // images)


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
    run.term(path, _per_image(run, cost, x), vector)
    run.normed(x, path)


def batch_norm(run: Run, call: Call) -> Any:
    """Channel by channel. It keeps the shape: to ask the meta device is most of the time of a trace."""
    x = first(call)
    mean, variance, weight, bias = (call.argument(i, n) for i, n in enumerate(("running_mean", "running_var", "weight", "bias"), 1))
    known = next((t for t in (weight, mean) if t is not None), None)
    out = torch.empty_like(x) if known is None or known.shape[0] == x.shape[1] else call.run()
    vector = run.vector(x, 1, call.name)
    _norm(run, call, vector, weight, bias, mean, variance, attribute="num_features")
    run.carry(out, [vector_plane(vector, 1, x.dim())] if run.known(x).planes else ())
    return out


def instance_norm(run: Run, call: Call) -> Any:
    x, out = first(call), call.run()
    mean, variance, weight, bias = (call.argument(i, n) for i, n in enumerate(("running_mean", "running_var", "weight", "bias"), 1))
    vector = run.vector(x, 1, call.name)
    _norm(run, call, vector, weight, bias, mean, variance, attribute="num_features")
    run.carry(out, [vector_plane(vector, 1, x.dim())] if run.known(x).planes else ())
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
    run.carry(out, [vector_plane(vector, 1, x.dim())] if run.known(x).planes else ())
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
    run.term(path, _per_image(run, price(call.name, call.argument, out), x), *factors)
    run.normed(x, path)
    run.carry(out, planes)
    return out


def rms_norm(run: Run, call: Call) -> Any:
    return layer_norm(run, call)


def prelu(run: Run, call: Call) -> Any:
    x, weight, out = first(call), call.argument(1, "weight"), call.run()
    if weight.numel() > 1 and x.dim() > 1:
        vector = run.vector(x, 1, call.name)
        run.tensor_axis(weight, 0, vector)
        _attributes(run, _path(run, weight), num_parameters=vector)
    run.carry(out, run.known(x).planes)
    return out


def embedding(run: Run, call: Call) -> Any:
    """Rows of a table."""
    weight, out = call.argument(1, "weight"), call.run()
    planes = [p for p in run.known(weight).planes if 1 in p.dims]
    for plane in run.known(weight).planes:
        if 0 in plane.dims:
            run.labels.freeze(plane.labels)
    run.carry(out, [vector_plane(p.labels.reshape(-1), out.dim() - 1, out.dim()) for p in planes])
    return out


# -- between layers -----------------------------------------------------------------------------------------------


def join_planes(
    run: Run, call: Call, entries: Sequence[tuple[Sequence[int], Carried]], shape: Sequence[int]
) -> list[Plane]:
    """What an element-wise operation gives: labels that meet change together.

    entries: the shape of each tensor and what it carries. A single channel that is spread over many stays single, and
    what meets a constant stays as it is.
    """
    rank, result = len(shape), list[Plane]()
    shapes = [(1,) * (rank - len(own)) + tuple(own) for own, _ in entries]
    for own, (_, carried) in zip(shapes, entries, strict=True):
        for plane in carried.planes:
            plane = aligned(plane, rank)
            if any(own[d] != shape[d] for d in plane.dims):
                run.keep_labels(plane.labels, call.name, "spreads one channel over many")
                continue
            for place, other in enumerate(result):
                if other.dims & plane.dims:
                    run.labels.unite(other.labels, plane.labels)
                    result[place] = _merged(other, plane)
                    break
            else:
                result.append(plane)
    for own, (_, carried) in zip(shapes, entries, strict=True):
        if carried.blank:
            continue
        dims = {d for plane in carried.planes for d in aligned(plane, rank).dims}
        for plane in result:
            if not plane.dims & dims and all(own[d] > 1 for d in plane.dims):
                run.keep_labels(plane.labels, call.name, "meets something that has no channels")
    return result


def _merged(one: Plane, other: Plane) -> Plane:
    if one.dims == other.dims and one.labels.data_ptr() == other.labels.data_ptr():
        return one
    if one.dims >= other.dims and bool((one.labels >= 0).all()):
        return one
    return Plane(torch.where(one.labels < 0, other.labels, one.labels), one.dims | other.dims)


def elementwise(run: Run, call: Call) -> Any:
    """Any function of the elements that meet."""
    given = [out] if (out := _elements(call)) is not None else leaves(out := call.run())
    if not given:
        return out
    shape, tensors = given[0].shape, call.tensors
    if len(tensors) == 1 or all(t.dim() == 0 for t in tensors[1:]):
        known = run.known(tensors[0])
        planes: Sequence[Plane] = [aligned(p, len(shape)) for p in known.planes]
        image, blank = any(run.known(t).image for t in tensors), known.blank
    else:
        entries = [(t.shape, run.known(t)) for t in tensors if t.dim() > 0]
        planes = join_planes(run, call, entries, shape)
        image, blank = any(k.image for _, k in entries), all(k.blank for _, k in entries)
    for tensor in given:
        run.carry(tensor, planes, blank, image)
    return out


def _elements(call: Call) -> Tensor | None:
    """What a plain element-wise function gives, by its shape alone: the meta device's own way is slow."""
    if call.name not in _PLAIN:
        return None
    x = call.tensors[0]
    shape = x.shape
    for other in call.tensors:
        if not other.is_meta or other.dtype != x.dtype:
            return None
        if other.shape != shape:
            shape = torch.broadcast_shapes(shape, other.shape)
    if call.function.__name__.endswith("_") or call.function.__name__.startswith("__i") or call.kwargs.get("inplace"):
        if shape != x.shape:
            raise RuntimeError(f"output with shape {tuple(x.shape)} does not match {tuple(shape)}")
        return x
    return torch.empty(shape, dtype=x.dtype, device="meta")


def created(run: Run, call: Call) -> Any:
    """A tensor of one value, or of random ones: it has no channels of its own."""
    out = call.run()
    for tensor in leaves(out):
        run.carry(tensor, (), blank=True, image=False)
    return out


def _dimensions(call: Call, rank: int, position: int = 1) -> set[int]:
    dims = call.argument(position, "dim", call.kwargs.get("axis"))
    if dims is None or isinstance(dims, bool) or isinstance(dims, Tensor):
        return set(range(rank))
    listed = [dims] if isinstance(dims, int) else list(dims)
    if not listed:
        return set(range(rank))
    return {d % max(rank, 1) for d in listed}


def reduce(run: Run, call: Call) -> Any:
    """mean, sum, maximum and their like: over space, labels stay; over all channels, they are mixed."""
    if call.name in ("max", "min") and len(call.tensors) > 1:
        return elementwise(run, call)
    x, out = first(call), call.run()
    given = leaves(out)
    source, position = run.known(x), 2 if call.name == "norm" else 1
    reduced = _dimensions(call, x.dim(), position)
    planes = []
    for plane in source.planes:
        rest = plane.dims - reduced
        if not plane.dims & reduced:
            planes.append(plane)
        elif not rest:
            if run.known(x).image or call.name not in ("sum", "norm", "vector_norm"):
                run.labels.mix(plane.labels)
        else:
            labels = plane.labels
            for d in plane.dims & reduced:
                run.labels.unite(labels.narrow(d, 0, 1), labels)
                labels = labels.narrow(d, 0, 1)
            planes.append(Plane(labels, rest))
    for tensor in given:
        own = planes
        if tensor.dim() < x.dim():
            keep = [d for d in range(x.dim()) if d not in reduced]
            own = [
                Plane(p.labels.reshape([p.labels.shape[d] for d in keep]), frozenset(keep.index(d) for d in p.dims))
                for p in planes
            ]
        run.carry(tensor, own, image=source.image)
    return out


def along(run: Run, call: Call) -> Any:
    """softmax, normalisation and sums along a dimension, which mix the channels that lie there."""
    x, out = first(call), call.run()
    source = run.known(x)
    position = {"normalize": 2}.get(call.name, 1)
    dim = call.argument(position, "dim", 1 if call.name == "normalize" else -1)
    dims = {d % x.dim() for d in ([dim] if isinstance(dim, int) else dim)}
    planes = []
    for plane in source.planes:
        if plane.dims & dims:
            rest = plane.dims - dims
            if rest:
                for d in plane.dims & dims:
                    run.labels.unite(plane.labels.narrow(d, 0, 1), plane.labels)
            else:
                run.labels.mix(plane.labels)
        planes.append(plane)
    for tensor in leaves(out):
        if tensor.shape == x.shape:
            run.carry(tensor, planes, image=source.image)
    return out


def neighbours(run: Run, call: Call) -> Any:
    """local_response_norm: channels beside each other are mixed."""
    x, out = first(call), call.run()
    for plane in run.known(x).planes:
        if 1 in plane.dims:
            run.labels.mix(plane.labels)
    run.carry(out, run.known(x).planes)
    return out


def spatial(run: Run, call: Call) -> Any:
    """Pooling and resampling: channel by channel, over the last dimensions."""
    x, out = first(call), call.run()
    rank = {"1": 1, "2": 2, "3": 3}.get(call.name[-2:-1] if call.name.endswith("d") else "", x.dim() - 2)
    behind = range(x.dim() - rank, x.dim())
    planes = []
    for plane in run.known(x).planes:
        inside, rest = plane.dims & set(behind), plane.dims - set(behind)
        labels = plane.labels
        if inside and not rest:
            run.keep_labels(labels, call.name, "works across its channels")
            continue
        for d in inside:
            run.labels.unite(labels.narrow(d, 0, 1), labels)
            labels = labels.narrow(d, 0, 1)
        planes.append(Plane(labels, rest))
    cost = price(call.name, call.argument, out)
    if cost != Price():
        run.term(run.current(), _per_image(run, cost, x), *(p.labels.reshape(-1) for p in planes))
    for tensor in leaves(out):
        run.carry(tensor, planes, image=run.known(x).image)
    return out


def matmul(run: Run, call: Call) -> Any:
    """A product of two tensors: what is summed over meets, what is left of each lies along the result."""
    left, right, out = call.tensors[0], call.tensors[1], call.run()
    place = run.place(call.name)
    summed = (left.dim() - 1, max(right.dim() - 2, 0))
    weight = run.names.get(id(right)) if right.dim() == 2 else None
    results: list[Plane] = []
    inner: list[Tensor] = []
    for tensor, dim, is_left in ((left, summed[0], True), (right, summed[1], False)):
        more = out.dim() - tensor.dim()
        found = None
        for plane in run.known(tensor).planes:
            if dim in plane.dims:
                if len(plane.dims) > 1:
                    run.keep_labels(plane.labels, place.operation, "sums over some of its channels")
                found = plane.labels.reshape(-1) if len(plane.dims) == 1 else None
            elif more >= 0:
                results.append(aligned(plane, out.dim()))
            else:
                run.keep_labels(plane.labels, place.operation, "is a product with a vector")
        inner.append(torch.zeros(tensor.shape[dim], dtype=torch.int64) if found is None else found)
        del is_left
    if bool((inner[0] != 0).any()) or bool((inner[1] != 0).any()):
        run.labels.unite(inner[0], inner[1])
        if weight is not None:
            run.reads[weight] = 0
        else:
            run.labels.mix(inner[0])
    cost = _per_image(run, price(call.name, call.argument, out), left)
    if weight is not None:
        run.axis(weight, 1, layout := run.produce(right, 1, "linear"))
        run.producers.append((weight, "parameter", layout))
    run.term(run.current(), cost, inner[0], *(plane.labels.reshape(-1) for plane in results))
    run.carry(out, results)
    return out


def fixed(run: Run, call: Call) -> Any:
    """Attention in one call, and products that are not looked into: what they read stays as it is."""
    return run.opaque(call, run.place(call.name), "is taken as a whole")


def match_channels(run: Run, call: Call) -> Any:
    """The shortcut of backbones/common.py, which pads or crops at the end."""
    x, like, out = call.argument(0, "x"), call.argument(1, "like"), call.run()
    target = run.vector(like, 1, call.name)
    if run.counting:
        run.joins.append((run.vector(x, 1, call.name), target))
    run.carry(out, [vector_plane(target, 1, out.dim())])
    return out


def ordered(run: Run, call: Call) -> Any:
    """Sorting: over space, labels stay; the largest few of all channels are picked by value, and keep these fixed."""
    x = first(call)
    dim = call.argument(2 if call.name in ("topk", "kthvalue") else 1, "dim", -1) % x.dim()
    across = [plane for plane in run.known(x).planes if dim in plane.dims]
    if across and call.name in ("sort", "argsort", "msort"):
        return unknown(run, call)
    for plane in across:
        run.keep_labels(plane.labels, call.name, "picks channels by their values")
    out = call.run()
    for tensor in leaves(out):
        run.carry(tensor, () if across else run.known(x).planes)
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


# -- the table ----------------------------------------------------------------------------------------------------

_ELEMENTWISE = (
    "relu relu6 leaky_relu elu selu celu gelu silu mish tanh sigmoid hardtanh hardswish hardsigmoid softplus logsigmoid "
    "softsign tanhshrink hardshrink softshrink threshold rrelu dropout dropout1d dropout2d dropout3d feature_dropout "
    "alpha_dropout feature_alpha_dropout neg abs exp expm1 exp2 log log1p log2 log10 sqrt rsqrt square sign sgn round "
    "floor ceil trunc frac erf cos sin tan atan reciprocal clamp clamp_min clamp_max pow float_power add sub rsub mul "
    "div floor_divide remainder fmod maximum minimum where lerp addcmul addcdiv masked_fill copy eq ne lt le gt ge and "
    "or xor invert logical_and logical_or logical_not logical_xor bitwise_and bitwise_or bitwise_not isnan isinf "
    "isfinite atan2 hypot heaviside bernoulli fill zero xlogy sinh cosh asinh acosh logit glu_ rot polar"
).split()
_PLAIN = frozenset(
    (
        "relu relu6 leaky_relu elu selu gelu silu mish tanh sigmoid hardtanh hardswish hardsigmoid softplus dropout "
        "dropout2d feature_dropout neg abs exp sqrt rsqrt square add sub mul div clamp maximum minimum"
    ).split()
)
"""Those that give what they get: elements of one type."""
_CREATED = (
    "zeros ones full empty zeros_like ones_like full_like empty_like new_zeros new_ones new_full new_empty rand randn "
    "rand_like randn_like normal uniform eye"
).split()
_REDUCTIONS = (
    "mean sum amax amin max min std var norm prod all any logsumexp median argmax argmin nanmean var_mean std_mean "
    "nansum vector_norm count_nonzero"
).split()
_SPATIAL = (
    "max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d "
    "adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d lp_pool1d lp_pool2d interpolate "
    "upsample upsample_nearest upsample_bilinear grid_sample max_unpool1d max_unpool2d max_unpool3d fractional_max_pool2d"
).split()
_NOTHING = (
    "size dim ndimension numel nelement element_size stride storage_offset is_contiguous is_floating_point is_complex "
    "is_signed get_device len bool int float item tolist format repr index hash _assert is_tensor arange tensor "
    "as_tensor linspace from_numpy is_storage is_same_size equal result_type promote_types can_cast finfo register_hook "
    "retain_grad backward _is_view is_pinned is_inference is_neg is_conj _parse_to _has_compatible_shallow_copy_type "
    "_set_grad_enabled manual_seed initial_seed randperm randint meshgrid ndgrid is_nonzero numpy broadcast_shapes "
    "tril_indices triu_indices is_shared share_memory set_ record_stream data_ptr untyped_storage storage scripted "
    "broadcast_tensors_ requires_grad_ constant uniform_ dir reduce_ex deepcopy get_default_dtype bartlett_window "
    "hann_window tril triu set_grad_enabled kaiming_uniform set get_num_threads iter contains reversed"
).split()

RULES: dict[str, Rule | None] = {
    **dict.fromkeys(_NOTHING, None),
    **MOVEMENTS,
    **dict.fromkeys(_ELEMENTWISE, elementwise),
    **dict.fromkeys(_CREATED, created),
    **dict.fromkeys(_REDUCTIONS, reduce),
    **dict.fromkeys(_SPATIAL, spatial),
    **dict.fromkeys(("conv1d", "conv2d", "conv3d"), convolution),
    **dict.fromkeys(("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), transposed_convolution),
    **dict.fromkeys(("softmax", "log_softmax", "softmin", "normalize", "cumsum", "logcumsumexp", "cumprod"), along),
    **dict.fromkeys(("matmul", "bmm", "mm"), matmul),
    **dict.fromkeys(
        ("multi_head_attention_forward", "scaled_dot_product_attention", "einsum", "addmm", "baddbmm", "addbmm", "mv",
         "dot", "lstm", "gru", "rnn_tanh", "rnn_relu", "outer", "cdist", "kron", "tensordot", "_native_multi_head_attention"), fixed),
    **dict.fromkeys(("sort", "topk", "argsort", "kthvalue", "msort"), ordered),
    "linear": linear, "batch_norm": batch_norm, "instance_norm": instance_norm, "group_norm": group_norm,
    "layer_norm": layer_norm, "rms_norm": rms_norm, "prelu": prelu, "embedding": embedding,
    "local_response_norm": neighbours, "match_channels": match_channels, "_weight_norm": weight_norm,
}  # fmt: skip
