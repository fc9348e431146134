"""GradMax (Evci et al., ICLR 2022): new channels whose incoming weights have the largest gradient."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from budgetnet.channels.graph import Graph, GraphError
from budgetnet.channels.width_change import WidthChange

_NUDGE = 1e-3  # shift of a silent new channel, so that a ReLU behind it passes gradient
_ITERATIONS = 8


def gradmax(change: WidthChange, batch: tuple[Tensor, Tensor], loss: Callable[[Tensor, Tensor], Tensor]) -> None:
    """Zero incoming weights; outgoing weights that maximise the gradient norm of the incoming ones.

    The gradient of the incoming weights at zero is linear in the outgoing weights V, A·V, so the best orthonormal V
    are the top right singular vectors of A (equation 11 of the paper). Subspace iteration V <- orth(AᵀA V) finds them
    with two backward passes a step, which holds for any path between producer and consumer (pooling, flattening,
    depthwise, squeeze-excite), in eval mode and on one `batch` (inputs, targets). Columns are scaled to half the mean
    norm of the old ones.

    Where a batch norm follows, it is its scale that starts at zero, and the filter where its first step would lead: a
    norm divides by the deviation of what it gets, so that a filter at zero would take a step 1/√ε times too long, to
    full strength at once. Raises GraphError where the gradient at zero is not finite.
    """
    model, grown = change.graph.model, change.growing()
    if not grown:
        return
    columns = {name: _columns(change, name) for name in grown}
    drawn = {name: _close(change, name) for name in grown}
    for name in grown:
        generator = change.generator(f"gradmax/{name}")
        start = [torch.randn(part.shape, generator=generator).to(part) for part in _read(columns[name])]
        _write(columns[name], _orthonormal(start))
    training = {module: module.training for module in model.modules()}
    model.eval()
    incoming = {
        name: [model.get_parameter(f"{p}.weight") for p in change.graph.group(name).producers] for name in grown
    }
    producers = [weight for name in grown for weight in incoming[name]]

    def lost() -> Tensor:
        with sdpa_kernel(SDPBackend.MATH):  # the one attention that has a second derivative
            return loss(model(batch[0]), batch[1])

    try:
        for _ in range(_ITERATIONS):
            value = lost()
            consumers = [weight for name in grown for weight, _, _ in columns[name]]
            first = torch.autograd.grad(value, producers, create_graph=True, allow_unused=True)
            taken = iter(first)
            square = torch.zeros((), dtype=value.dtype, device=value.device)
            for name in grown:
                new = (change.sources[name] < 0).nonzero().flatten()
                for gradient in (next(taken) for _ in incoming[name]):
                    if gradient is not None:
                        square = square + gradient.index_select(0, new.to(gradient.device)).square().sum()
            second = iter(torch.autograd.grad(square, consumers, allow_unused=True))
            for name in grown:
                gradients = [next(second) for _ in columns[name]]
                _write(columns[name], _orthonormal(_select(columns[name], gradients)))
        slopes = iter(torch.autograd.grad(lost(), producers, materialize_grads=True))
        for name in grown:
            _aim(change, name, [-next(slopes) for _ in incoming[name]], drawn[name])
    finally:
        for module, mode in training.items():
            module.training = mode
    with torch.no_grad():
        for name in grown:
            _rescale(columns[name])
            if not all(bool(weight.isfinite().all()) for weight, _, _ in columns[name]):
                raise GraphError(f"init='gradmax': empty filters of {name!r} have no finite gradient; use 'he'")


def obstacle(graph: Graph, names: Collection[str]) -> str | None:
    """Why GradMax cannot make new channels of these groups, or None: only plain layers may make and read them."""
    read = {segment.group for layout in graph.reading.values() for segment in layout}
    for name in names:
        if graph.group(name).kind == "other":
            return f"the channels of {name!r} are not the filters of a layer"
        if name not in read:
            return f"no layer reads the channels of {name!r}"
    parameters = dict(graph.model.named_parameters())
    for tensor, layout in graph.reading.items():
        grown = [segment for segment in layout if segment.group in names]
        if any(segment.parts > 1 for segment in grown):
            return f"the grouped convolution {tensor.rpartition('.')[0]!r} reads those of {grown[0].group!r}"
        if grown and (graph.reads[tensor] != 1 or tensor not in parameters):
            return f"{tensor!r} reads those of {grown[0].group!r} otherwise than a Conv2d or Linear does"
    return None


_Columns = list[tuple[nn.Parameter, Tensor, int]]
"""(consumer weight, (n, k) positions on its input axis of each of the n new channels, n)"""


def _columns(change: WidthChange, name: str) -> _Columns:
    found: _Columns = []
    for tensor, layout in change.graph.reading.items():
        if any(segment.group == name for segment in layout):
            labels = change.labels(layout, name)
            count = int(labels.max()) + 1
            position = torch.stack([(labels == j).nonzero().flatten() for j in range(count)])
            parameter = change.graph.model.get_parameter(tensor)
            found.append((parameter, position.to(parameter.device), count))
    return found


@torch.no_grad()
def _aim(change: WidthChange, name: str, directions: Sequence[Tensor], drawn: Sequence[Tensor]) -> None:
    """Behind whose filters a batch norm stands: let these point there, at the length of He's draws, and close the norm.

    directions: like the weight of each producer. drawn: He's draws of the new filters, which a filter keeps that no
    direction is better for.
    """
    graph, new = change.graph, (change.sources[name] < 0).nonzero().flatten()
    for producer, direction, draw in zip(graph.group(name).producers, directions, drawn, strict=True):
        scale = norm_scale(graph, producer)
        if scale is None or name in graph.mixing:
            continue
        weight, here = graph.model.get_parameter(f"{producer}.weight"), new.to(scale.device)
        towards = direction[here].flatten(1)
        length = torch.linalg.vector_norm(towards, dim=1, keepdim=True)
        unit = torch.where(length > 0, towards / length.clamp_min(1e-30), draw.flatten(1) / math.sqrt(2))
        weight[here] = (math.sqrt(2) * unit).reshape(draw.shape)
        scale[here] = 0


def norm_scale(graph: Graph, producer: str) -> Tensor | None:
    """The scale of the norm behind a producer, if there is one."""
    norm = graph.norm_after.get(producer)
    return None if norm is None else graph.model.get_submodule(norm)._parameters.get("weight")


def _close(change: WidthChange, name: str) -> list[Tensor]:
    """Zero the incoming weights of new channels, and nudge the shift behind them; returns what was drawn for them."""
    model, drawn = change.graph.model, []
    new = (change.sources[name] < 0).nonzero().flatten()
    with torch.no_grad():
        for producer in change.graph.group(name).producers:
            shifting = change.graph.norm_after.get(producer, producer)
            resized = f"{shifting}.bias" in change.graph.axes
            shift = getattr(model.get_submodule(shifting), "bias", None) if resized else None
            weight = model.get_parameter(f"{producer}.weight")
            drawn.append(weight[new.to(weight.device)].clone())
            if shift is None:  # nothing to nudge: leave a trace of the He weights instead
                weight[new.to(weight.device)] *= _NUDGE
            else:
                weight[new.to(weight.device)] = 0
                shift[new.to(shift.device)] = _NUDGE
    return drawn


def _select(columns: _Columns, tensors: Sequence[Tensor | None]) -> list[Tensor]:
    """(n, entries) of each consumer: what belongs to each new channel."""
    parts = []
    for (weight, position, count), tensor in zip(columns, tensors, strict=True):
        full = torch.zeros_like(weight) if tensor is None else tensor
        parts.append(full.movedim(1, 0)[position].reshape(count, -1))
    return parts


def _read(columns: _Columns) -> list[Tensor]:
    return _select(columns, [weight.detach() for weight, _, _ in columns])


def _write(columns: _Columns, parts: list[Tensor]) -> None:
    with torch.no_grad():
        for (weight, position, _), part in zip(columns, parts, strict=True):
            shape = (*position.shape, weight.shape[0], *weight.shape[2:])
            weight.movedim(1, 0)[position] = part.reshape(shape)


def _orthonormal(parts: list[Tensor]) -> list[Tensor]:
    """Rows over all consumers together made orthonormal, keeping their span."""
    sizes = [part.shape[1] for part in parts]
    joined = torch.cat(parts, dim=1)
    basis = torch.linalg.qr(joined.T.double()).Q.T.to(joined.dtype)
    if basis.shape[0] < joined.shape[0]:  # more new channels than directions: the rest repeat them
        basis = basis.repeat(-(-joined.shape[0] // basis.shape[0]), 1)[: joined.shape[0]]
    return list(basis.split(sizes, dim=1))


def _rescale(columns: _Columns) -> None:
    for weight, position, _ in columns:
        old = torch.ones(weight.shape[1], dtype=torch.bool, device=weight.device)
        old[position.flatten()] = False
        rows = weight.movedim(1, 0)
        per_unit = rows[old].flatten(1).norm(dim=1).mean() if bool(old.any()) else rows.new_ones(())
        norm = rows[position.flatten()].flatten(1).norm(dim=1).clamp_min(1e-12).mean()
        rows[position] = rows[position] * (0.5 * per_unit / norm)
