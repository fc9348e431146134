"""The table: what each operation does to channel labels, and what it costs.

A rule runs the operation and says which labels its result carries. Here are those without weights; layers.py has
layers, movements.py what moves values about. What is in no table is never guessed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from budgetnet.channels.calls import Call, first, leaves
from budgetnet.channels.joining import join_planes
from budgetnet.channels.labels import Carried, Plane, aligned, vector_plane
from budgetnet.channels.layers import LAYERS
from budgetnet.channels.movements import MOVEMENTS
from budgetnet.channels.picking import PICKING
from budgetnet.channels.prices import Price, price
from budgetnet.channels.products import PRODUCTS
from budgetnet.channels.running import Rule, Run, unknown


def elementwise(run: Run, call: Call) -> Any:
    """Any function of the elements that meet."""
    given = leaves(out := call.run())
    if not given:
        return out
    shape, tensors = given[0].shape, call.tensors
    if len(tensors) == 1 or all(t.dim() == 0 for t in tensors[1:]):
        known = run.known(tensors[0])
        planes: Sequence[Plane] = [aligned(p, len(shape)) for p in known.planes]
        image, blank, spread = run.of_image(*tensors), known.blank, known.spread
    else:
        entries = [(_narrow(t, run.known(t)), run.known(t)) for t in tensors if t.dim() > 0]
        whole = [known for own, known in entries if own == shape and known.image and known.planes]
        run.residual |= call.name == "add" and len(whole) > 1
        planes = join_planes(run, call, entries, shape)
        image, blank = any(k.image for _, k in entries), all(k.blank for _, k in entries)
        lead = [(1,) * (len(shape) - len(own)) + own for own, _ in entries]
        spread = frozenset(d for d, size in enumerate(shape) if size > 1 and all(own[d] == 1 for own in lead))
    for tensor in given:
        run.carry(tensor, planes, blank, image, spread)
    return out


def _narrow(tensor: Tensor, known: Carried) -> tuple[int, ...]:
    """Its shape before it was expanded."""
    return tuple(1 if d in known.spread else size for d, size in enumerate(tensor.shape))


def created(run: Run, call: Call) -> Any:
    """A tensor of one value, or of random ones: it has no channels of its own, unless it is made like another."""
    out = call.run()
    source = (
        run.known(first(call)) if call.name.endswith("_like") and call.tensors else Carried(blank=True, image=False)
    )
    for tensor in leaves(out):
        run.carry(tensor, source.planes, not source.planes, source.image)
    return out


def _dimensions(call: Call, rank: int, position: int = 1) -> set[int]:
    dims = call.argument(position, "dim", call.kwargs.get("axis"))
    if dims is None or isinstance(dims, (bool, Tensor)):
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


def similarity(run: Run, call: Call) -> Any:
    """cosine_similarity and pairwise_distance: what meets along a dimension is multiplied, and summed there."""
    one, other = call.tensors
    dim = call.argument(2, "dim", 1) if call.name == "cosine_similarity" else -1
    product = elementwise(run, Call("mul", torch.mul, (one, other), {}, call.tensors))
    keepdim = call.argument(4, "keepdim", False)
    return reduce(run, Call("mean", torch.mean, (product, dim, keepdim), {}, [product]))


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
        run.term(run.current(), run.per_image(cost, x), *(p.labels.reshape(-1) for p in planes))
    for tensor in leaves(out):
        run.carry(tensor, planes, image=run.known(x).image)
    return out


def transform(run: Run, call: Call) -> Any:
    """Fourier transforms: over space, labels stay; across channels, these stay as they are."""
    x, out = first(call), call.run()
    default = None if call.name.endswith("n") else (-2, -1) if call.name.endswith("2") else -1
    dims = call.argument(2, "dim", default)
    across = set(range(x.dim())) if dims is None else {d % x.dim() for d in ([dims] if isinstance(dims, int) else dims)}
    planes = []
    for plane in run.known(x).planes:
        if plane.dims & across:
            run.keep_labels(plane.labels, call.name, "works across its channels")
        else:
            planes.append(plane)
    run.carry(out, planes, image=run.of_image(x))
    return out


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


# -- the table ----------------------------------------------------------------------------------------------------


def _words(text: str) -> list[str]:
    return text.split()


_ELEMENTWISE = _words(
    "relu relu6 leaky_relu elu selu celu gelu silu mish tanh sigmoid hardtanh hardswish hardsigmoid softplus "
    "logsigmoid softsign tanhshrink hardshrink softshrink threshold rrelu dropout dropout1d dropout2d dropout3d "
    "feature_dropout "
    "alpha_dropout feature_alpha_dropout neg abs exp expm1 exp2 log log1p log2 log10 sqrt rsqrt square sign sgn round "
    "floor ceil trunc frac erf cos sin tan atan reciprocal clamp clamp_min clamp_max pow float_power add sub rsub mul "
    "div floor_divide remainder fmod maximum minimum where lerp addcmul addcdiv masked_fill copy eq ne lt le gt ge and "
    "or xor invert logical_and logical_or logical_not logical_xor bitwise_and bitwise_or bitwise_not isnan isinf "
    "isfinite atan2 hypot heaviside bernoulli fill zero xlogy sinh cosh asinh acosh logit real imag complex polar conj "
    "angle"
)
_CREATED = _words(
    "zeros ones full empty zeros_like ones_like full_like empty_like new_zeros new_ones new_full new_empty rand randn "
    "rand_like randn_like normal uniform"
)
_REDUCTIONS = _words(
    "mean sum amax amin max min std var norm prod all any logsumexp median argmax argmin nanmean var_mean std_mean "
    "nansum vector_norm count_nonzero"
)
_SPATIAL = _words(
    "max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d "
    "adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d lp_pool1d lp_pool2d lp_pool3d "
    "fractional_max_pool2d fractional_max_pool3d interpolate upsample upsample_nearest upsample_bilinear grid_sample "
    "max_unpool1d max_unpool2d max_unpool3d"
)
_TRANSFORMS = [
    f"fft_{way}{kind}{dims}" for way in ("", "i") for kind in ("fft", "rfft", "hfft") for dims in ("", "2", "n")
]
_NOTHING = _words(
    "size dim ndimension numel nelement element_size stride storage_offset is_contiguous is_floating_point is_complex "
    "is_signed get_device len bool int float item tolist format repr index hash _assert is_tensor arange tensor "
    "as_tensor linspace from_numpy is_same_size equal result_type promote_types can_cast finfo register_hook "
    "retain_grad is_pinned is_inference is_neg is_conj _parse_to _has_compatible_shallow_copy_type _set_grad_enabled "
    "manual_seed initial_seed randperm randint meshgrid is_nonzero numpy broadcast_shapes tril_indices triu_indices "
    "is_shared data_ptr untyped_storage requires_grad dir eye tril triu contains reversed"
)

RULES: dict[str, Rule | None] = {
    **dict.fromkeys(_NOTHING, None),
    **MOVEMENTS,
    **PICKING,
    **LAYERS,
    **dict.fromkeys(_ELEMENTWISE, elementwise),
    **dict.fromkeys(_CREATED, created),
    **dict.fromkeys(_REDUCTIONS, reduce),
    **dict.fromkeys(_SPATIAL, spatial),
    **dict.fromkeys(("softmax", "log_softmax", "softmin", "normalize", "cumsum", "logcumsumexp", "cumprod"), along),
    **PRODUCTS,
    **dict.fromkeys(_TRANSFORMS, transform),
    **dict.fromkeys(("sort", "topk", "argsort", "kthvalue", "msort"), ordered),
    **dict.fromkeys(("cosine_similarity", "pairwise_distance"), similarity),
    "local_response_norm": neighbours, "match_channels": match_channels,
}  # fmt: skip
