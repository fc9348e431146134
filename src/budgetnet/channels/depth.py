"""Change the depths of a live model together with its optimizer's state: the only code that adds or removes blocks.

A *stage* is a run of residual or plain blocks of one shape, such as layer1 of a ResNet; its depth is their number.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from budgetnet.channels.channel_graph import ChannelGraph
from budgetnet.channels.graph import GraphError
from budgetnet.channels.shadow import QuickShapes, Shadow
from budgetnet.channels.width_change import tensor_generator
from budgetnet.errors import nearest

DEPTH_INITIALISATIONS = ("he", "zero_out")


@dataclass(frozen=True)
class Stage:
    """A place where blocks may be added. name: path of its nn.Sequential. template: an untrained block, on the CPU."""

    name: str
    template: nn.Module = field(repr=False)


def find_stages(model: nn.Module) -> tuple[Stage, ...]:
    """The stages of a traced, untrained model, in the order of its modules; none if it has none.

    A stage is an nn.Sequential of two or more blocks of one class whose second and later blocks have tensors of the
    same names and shapes and keep the shape of their input; the first may have a stride, or a projection besides.
    Within a stage no other is looked for. What holds a frozen module is none.
    """
    graph = ChannelGraph.of(model)
    alike = {
        path: module
        for path, module in model.named_modules()
        if isinstance(module, nn.Sequential) and _alike(list(module)) and not _frozen(path, graph)
    }
    kept = _shape_kept(graph, alike)
    found: list[Stage] = []
    for path, module in alike.items():
        inside = any(path.startswith(f"{stage.name}.") for stage in found)
        if not inside and all(id(block) in kept for block in list(module)[1:]):
            found.append(Stage(path, copy.deepcopy(module[1]).to("cpu")))
    return tuple(found)


def depths(model: nn.Module, stages: Sequence[Stage]) -> dict[str, int]:
    """Blocks in each stage now."""
    return {stage.name: len(_blocks(model, stage.name)) for stage in stages}


def change_depth(
    model: nn.Module,
    stages: Sequence[Stage],
    plan: Mapping[str, int],
    optimizer: torch.optim.Optimizer | None = None,
    init: str = "he",
    seed: int | None = None,
) -> ChannelGraph:
    """Add blocks to, or remove them from, the end of the stages named in `plan`, in place; returns the new graph.

    plan: stage name -> blocks, 1 or more. Everything old keeps its bits and its optimizer state; new parameters join
    the group of the optimizer that holds the one before them of as many dimensions, in the order of the model.

    init: "he" (weights normal, variance 2 / fan-in, biases 0, the rest as a block is built) or "zero_out" (the same,
    but the last norm of a new block gives zeros, so that behind a shortcut the function stays the same).
    seed: makes new entries a function of (seed, tensor name); None draws from torch's global generator.
    Raises GraphError for an unknown stage, an impossible depth, a block that does not fit or is not run, and a
    DDP-wrapped or an untraced model; nothing has changed then.
    """
    if isinstance(model, nn.parallel.DistributedDataParallel):
        raise GraphError(
            "change the depth of the module inside DistributedDataParallel (model.module), then wrap again"
        )
    if init not in DEPTH_INITIALISATIONS:
        raise GraphError(f"new blocks cannot start by init={init!r}{nearest(init, DEPTH_INITIALISATIONS)}")
    old, templates = ChannelGraph.of(model), {stage.name: stage.template for stage in stages}
    for name, depth in plan.items():
        if name not in templates:
            raise GraphError(f"no stage is called {name!r}{nearest(name, templates)}")
        if isinstance(depth, bool) or not isinstance(depth, int) or depth < 1:
            raise GraphError(f"{name}: cannot have depth {depth!r}; it takes 1 block or more")
    before = {name: list(_blocks(model, name).items()) for name in plan}
    new = [path for name, depth in plan.items() for path in _rebuild(model, name, depth, templates[name])]
    try:
        graph = ChannelGraph.trace(model, torch.empty(old.input_shape, device="meta"), old.frozen)
        for path in new:
            if not any(term.module.startswith(f"{path}.") for term in graph.terms):
                raise GraphError(f"{path}: the forward pass does not run a block that is appended there")
    except GraphError:
        for name, blocks in before.items():
            _put(model.get_submodule(name), blocks)
        model.__dict__["_channel_graph"] = old
        raise
    with torch.no_grad():
        for path in new:
            _initialise(graph, path, init, seed)
    if optimizer is not None:
        _migrate(model, optimizer)
    return graph


# -- what is a stage ------------------------------------------------------------------------------------------------


def _alike(blocks: Sequence[nn.Module]) -> bool:
    """Whether a sequence's blocks are of one kind, and more than a single layer each."""
    if len(blocks) < 2 or len({id(block) for block in blocks}) < len(blocks) or len(set(map(type, blocks))) > 1:
        return False
    first, second, *others = ({name: t.shape for name, t in block.state_dict().items()} for block in blocks)
    layers = [module for module in blocks[1].modules() if isinstance(module, (nn.Conv2d, nn.Linear))]
    composite = bool(layers) and layers[0] is not blocks[1]
    return composite and second.keys() <= first.keys() and all(other == second for other in others)


def _frozen(path: str, graph: ChannelGraph) -> bool:
    return any(f"{name}.".startswith(f"{path}.") or f"{path}.".startswith(f"{name}.") for name in graph.frozen)


def _shape_kept(graph: ChannelGraph, sequences: Mapping[str, nn.Sequential]) -> set[int]:
    """Ids of the blocks that turn one tensor into one of the same shape, found by a pass on the meta device."""
    shadow = Shadow(graph.model).model.to("meta").eval()
    kept: set[int] = set()

    def watch(twin: nn.Module, original: nn.Module) -> None:
        def hook(module: nn.Module, inputs: tuple[object, ...], output: object) -> None:
            shapes = [value.shape for value in (*inputs, output) if isinstance(value, Tensor)]
            if len(inputs) == 1 and len(shapes) == 2 and shapes[0] == shapes[1]:
                kept.add(id(original))

        twin.register_forward_hook(hook)

    for path, sequence in sequences.items():
        for twin, original in zip(_blocks(shadow, path).values(), sequence, strict=True):
            watch(twin, original)
    if sequences:
        dtype = next((p.dtype for p in shadow.parameters() if p.is_floating_point()), torch.float32)
        with torch.no_grad(), QuickShapes():
            shadow(torch.empty((2, *graph.input_shape[1:]), device="meta", dtype=dtype))
    return kept


# -- adding and removing --------------------------------------------------------------------------------------------


def _blocks(model: nn.Module, name: str) -> dict[str, nn.Module]:
    return dict(model.get_submodule(name).named_children())


def _put(sequence: nn.Module, blocks: Sequence[tuple[str, nn.Module]]) -> None:
    sequence._modules.clear()
    for name, block in blocks:
        sequence.add_module(name, block)


def _rebuild(model: nn.Module, name: str, depth: int, template: nn.Module) -> list[str]:
    """Give a stage this many blocks; returns the paths of the new ones."""
    sequence, blocks = model.get_submodule(name), list(_blocks(model, name).items())[:depth]
    like = next(sequence.parameters())
    channels_last = any(p.dim() == 4 and not p.is_contiguous() for p in model.parameters())
    old = len(blocks)
    for number in range(old, depth):
        block = copy.deepcopy(template).to(like.device, like.dtype).train(sequence.training)
        if channels_last:
            block.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        blocks.append((str(number), block))
    _put(sequence, blocks)
    return [f"{name}.{child}" for child, _ in blocks[old:]]


def _initialise(graph: ChannelGraph, path: str, init: str, seed: int | None) -> None:
    block = graph.model.get_submodule(path)
    for name, module in block.named_modules(prefix=path):
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            weight = module.weight
            deviation = math.sqrt(2 / math.prod(weight.shape[1:]))
            draw = torch.randn(weight.shape, generator=tensor_generator(seed, f"{name}.weight"), dtype=weight.dtype)
            weight.copy_(draw * deviation)
            if module.bias is not None:
                module.bias.zero_()
    if init == "zero_out":
        for parameter in _last(graph, path).parameters(recurse=False):
            parameter.zero_()


def _last(graph: ChannelGraph, path: str) -> nn.Module:
    """The norm that a block runs last, or, without one that has a scale, its last layer with weights."""
    order = dict.fromkeys(term.module for term in graph.terms if term.module.startswith(f"{path}."))
    layers = [graph.model.get_submodule(name) for name in order]
    norms = [m for m in layers if m._parameters.get("weight") is not None and not isinstance(m, (nn.Conv2d, nn.Linear))]
    return (norms or [layer for layer in layers if isinstance(layer, (nn.Conv2d, nn.Linear))])[-1]


def _migrate(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Drop what the model no longer has, and put what is new beside its likes.

    The groups stay in the order of the model, in which a continued run would fill them.
    """
    parameters = list(model.parameters())
    present = set(parameters)
    for group in optimizer.param_groups:
        group["params"] = [p for p in group["params"] if p in present]
    for gone in optimizer.state.keys() - present:
        del optimizer.state[gone]
    known = {p: group["params"] for group in optimizer.param_groups for p in group["params"]}
    for number, parameter in enumerate(parameters):
        if parameter not in known:
            other, shift = _likest(parameters, number, known)
            members = known[parameter] = known[other]
            members.insert(next(i for i, member in enumerate(members) if member is other) + shift, parameter)


def _likest(
    parameters: Sequence[nn.Parameter], number: int, known: Mapping[nn.Parameter, object]
) -> tuple[nn.Parameter, int]:
    """The known parameter beside which a new one goes, and 1 or 0: after it or before it.

    The nearest before it, else the nearest after it, of as many dimensions; else a matrix beside a matrix.
    """
    new = parameters[number]
    beside = [(other, 1) for other in reversed(parameters[:number])] + [(p, 0) for p in parameters[number + 1 :]]
    return min(
        (candidate for candidate in beside if candidate[0] in known),
        key=lambda candidate: (candidate[0].dim() != new.dim(), (candidate[0].dim() > 1) != (new.dim() > 1)),
    )
