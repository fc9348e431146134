"""Change the widths of a live model together with its optimizer's state: the only code that changes a shape."""

from __future__ import annotations

import operator
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from budgetnet.channels.gradmax import obstacle
from budgetnet.channels.graph import Graph, GraphError, layout_size
from budgetnet.channels.initialise import INITIALISATIONS, initialise
from budgetnet.channels.shadow import set_attribute
from budgetnet.channels.width_change import WidthChange
from budgetnet.errors import nearest

Plan = Mapping[str, "int | Sequence[int]"]
"""New widths by group name. A list of channel indices instead of a number narrows the group to those channels."""


def resize(
    model: nn.Module,
    plan: Plan,
    optimizer: torch.optim.Optimizer | None = None,
    init: str = "he",
    seed: int | None = None,
    batch: tuple[Tensor, Tensor] | None = None,
    loss: Callable[[Tensor, Tensor], Tensor] = nn.functional.cross_entropy,
) -> Graph:
    """Widen or narrow the groups named in `plan`, in place; returns the model's graph.

    New channels are appended at the end of their group, so old slices stay bit-identical; narrowing to a number keeps
    the first channels. Parameters are replaced in the same slot of the same param group, and every optimizer state
    tensor of the parameter's shape (momentum, Adam moments, Z, Γ) moves along, zero for new channels (under net2wider
    that of the copied channel).

    optimizer: the one that trains the model, if there is one already: without it, it would go on training old tensors.
    init: "he" (the paper: every new tensor entry is drawn with the fan of the grown layer), "zero_out" (He, but the
    function stays the same), "net2wider" (copies of old channels; the function stays the same unless a parameter-free
    shortcut pads or crops the group, or weights are normalised over their inputs), or "gradmax" (needs `batch` =
    (inputs, targets), and `loss`).
    seed: makes the new entries a function of (seed, tensor name); None draws from torch's global generator.
    Raises GraphError for an unknown group, an impossible width, an optimizer of another model or whose state cannot
    follow, a DDP-wrapped or an untraced model, and where gradmax cannot be computed. Whatever fails, nothing has
    changed then.
    """
    if isinstance(model, nn.parallel.DistributedDataParallel):
        raise GraphError("resize the module inside DistributedDataParallel (model.module), then wrap it again")
    if init not in INITIALISATIONS:
        raise GraphError(f"unknown initialisation init={init!r}{nearest(init, INITIALISATIONS)}")
    if init == "gradmax" and batch is None:
        raise GraphError("init='gradmax' chooses the new channels by a gradient: pass batch=(inputs, targets)")
    if optimizer is not None:
        known = {id(parameter) for parameter in model.parameters()}
        if not any(id(parameter) in known for group in optimizer.param_groups for parameter in group["params"]):
            raise GraphError("the optimizer has no parameter of this model: pass the one that trains it")
    graph = Graph.of(model)
    sources = {name: source_of(graph, name, width) for name, width in plan.items()}
    widths = graph.widths
    sources = {
        name: source
        for name, source in sources.items()
        if len(source) != widths[name] or not torch.equal(source, torch.arange(widths[name]))
    }
    if not sources:
        warnings.warn(f"resize: the plan {dict(plan)} changes nothing", stacklevel=2)
        return graph
    change = WidthChange(graph, widths, sources, seed)
    if init == "net2wider":
        change.duplicate()
    if init == "gradmax" and (why := obstacle(graph, change.growing())):
        raise GraphError(f"init='gradmax' does not reach these channels, as {why}; use 'he'")
    operate(change, lambda: initialise(change, init, batch, loss), optimizer)
    return graph


def operate(change: WidthChange, fill: Callable[[], None], optimizer: torch.optim.Optimizer | None = None) -> None:
    """Put resized tensors in the place of the old ones and `fill` what is new; all is as it was if anything fails.

    Raises GraphError for an optimizer whose state cannot follow, and where the operations of `fill` fail.
    """
    graph = change.graph
    if optimizer is not None:
        _check_state(optimizer, change)
    touched = {name.rpartition(".")[0] for name in change.tensors()}
    before = [(m, m._parameters.copy(), m._buffers.copy()) for m in map(graph.model.get_submodule, touched)]
    keys = {(path, name.partition("[")[0]) for path, name in graph.attributes}
    attributes = [(path, name, getattr(graph.model.get_submodule(path), name)) for path, name in keys]
    slots = [] if optimizer is None else [list(group["params"]) for group in optimizer.param_groups]
    state = {} if optimizer is None else dict(optimizer.state)
    try:
        replaced = _replace_tensors(change)
        _set_attributes(graph)
        if optimizer is not None:
            _migrate(optimizer, replaced, change)
        fill()
    except BaseException as error:
        for module, parameters, buffers in before:
            module._parameters.update(parameters)
            module._buffers.update(buffers)
        for path, name, value in attributes:
            setattr(graph.model.get_submodule(path), name, value)
        if optimizer is not None:
            for group, own in zip(optimizer.param_groups, slots, strict=True):
                group["params"] = own
            optimizer.state.clear()
            optimizer.state.update(state)
        if isinstance(error, RuntimeError | NotImplementedError):
            line = (str(error).splitlines() or [type(error).__name__])[0]
            raise GraphError(f"resize to {change.new_widths} failed, and nothing has changed: {line}") from error
        raise


def source_of(graph: Graph, name: str, width: int | Sequence[int]) -> Tensor:
    """For each channel of the resized group, the old channel that it continues, or -1 for a new one.

    Raises GraphError for a width that the group cannot have.
    """
    group = graph.group(name)
    try:
        count, kept = (
            (operator.index(width), []) if not isinstance(width, Sequence) else (0, [*map(operator.index, width)])
        )
    except TypeError as error:
        raise GraphError(f"{name}: width {width!r} is neither a whole number nor a list of channels") from error
    if isinstance(width, Sequence):
        block_size = group.width // group.blocks
        per_block = [sum(index // block_size == block for index in kept) for block in range(group.blocks)]
        increasing = kept == sorted(set(kept)) and all(0 <= index < group.width for index in kept)
        if not kept or not increasing or len(set(per_block)) != 1:
            raise GraphError(
                f"{name}: the channels to keep must be increasing indices below {group.width}"
                + (f", equally many in each of its {group.blocks} blocks" if group.blocks > 1 else "")
            )
        return torch.tensor(kept)
    if isinstance(width, bool) or count < 1 or count % group.blocks:
        multiple = f", in multiples of {group.blocks}" if group.blocks > 1 else ""
        raise GraphError(f"{name}: cannot have width {width}; it takes 1 or more{multiple}")
    blocks = torch.arange(group.width).reshape(group.blocks, -1)
    new = count // group.blocks - blocks.shape[1]
    if new > 0:
        blocks = torch.cat([blocks, blocks.new_full((group.blocks, new), -1)], dim=1)
    return blocks[:, : count // group.blocks].flatten()


def _replace_tensors(change: WidthChange) -> dict[Tensor, tuple[str, nn.Parameter]]:
    """Swap in resized tensors; returns old parameter -> (name, new parameter)."""
    replaced: dict[Tensor, tuple[str, nn.Parameter]] = {}
    for name in change.tensors():
        path, _, leaf = name.rpartition(".")
        module = change.graph.model.get_submodule(path)
        old = getattr(module, leaf)
        new = change.migrate(name, old.detach())
        if leaf in module._parameters:
            parameter = replaced[old][1] if old in replaced else nn.Parameter(new, requires_grad=old.requires_grad)
            module._parameters[leaf] = parameter
            replaced[old] = (name, parameter)
        else:
            module._buffers[leaf] = new
    return replaced


def _set_attributes(graph: Graph) -> None:
    widths = graph.widths
    for (path, name), layout in graph.attributes.items():
        set_attribute(graph.model.get_submodule(path), name, layout_size(layout, widths))


def _check_state(optimizer: torch.optim.Optimizer, change: WidthChange) -> None:
    """Raises GraphError for a state of a resized parameter that cannot be resized along with it."""
    kind = type(optimizer).__name__
    if hasattr(optimizer, "_params"):  # LBFGS: one state of all parameters, flattened
        raise GraphError(f"optimizer {kind} keeps a state of all parameters together, which cannot be resized: use SGD")
    found = dict(change.graph.model.named_parameters())
    resized = {id(found[name]) for name in change.tensors() if name in found}
    for name, value in vars(optimizer).items():
        inner = value.param_groups if isinstance(value, torch.optim.Optimizer) else value
        if name not in ("param_groups", "state") and any(id(leaf) in resized for leaf in tree_leaves(inner)):
            raise GraphError(
                f"optimizer {kind} keeps parameters in {name!r} too, where they cannot be replaced: use SGD or Adam"
            )
    for name in change.tensors():
        path, _, leaf = name.rpartition(".")
        parameter = change.graph.model.get_submodule(path)._parameters.get(leaf)
        if parameter is None:
            continue
        for key, value in optimizer.state.get(parameter, {}).items():
            for part in value if isinstance(value, (list, tuple)) else [value]:
                known = isinstance(part, (bool, int, float, str, type(None)))
                if not known and not (isinstance(part, Tensor) and (part.shape == parameter.shape or part.dim() == 0)):
                    shape = f" of shape {tuple(part.shape)}" if isinstance(part, Tensor) else ""
                    raise GraphError(
                        f"optimizer {kind} keeps {key!r}, a {type(part).__name__}{shape}, for {name!r} of shape "
                        f"{tuple(parameter.shape)}: it cannot be resized along with it; use SGD or Adam, or clear "
                        "the optimizer's state first"
                    )


def _migrate(
    optimizer: torch.optim.Optimizer,
    replaced: Mapping[Tensor, tuple[str, nn.Parameter]],
    change: WidthChange,
) -> None:
    for group in optimizer.param_groups:
        group["params"] = [replaced[p][1] if p in replaced else p for p in group["params"]]
    for old, (name, new) in replaced.items():
        state = optimizer.state.pop(old, None)
        if state is not None:
            optimizer.state[new] = {key: _moved(change, name, old, value) for key, value in state.items()}


def _moved(change: WidthChange, name: str, old: Tensor, value: Any) -> Any:
    """A state of a parameter, or a list of them, at the parameter's new size."""
    if isinstance(value, (list, tuple)):
        return type(value)(_moved(change, name, old, part) for part in value)
    return change.migrate(name, value) if isinstance(value, Tensor) and value.shape == old.shape else value
