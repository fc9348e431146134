"""Build a ChannelGraph: run the model symbolically, once, over a closed table of operations.

Every tensor along the way carries the layout of its channel axis (dimension 1). An operation outside the table is an
error that names it; it is never guessed.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import fx, nn
from torch.fx.node import Argument, Target

from budgetnet.channels.graph import ChannelGraph, GraphError, Layout, Segment, Term, WidthGroup

_ACTIVATIONS = ("relu", "relu6", "leaky_relu", "elu", "selu", "celu", "gelu", "silu", "mish", "tanh", "sigmoid",
                "hardtanh", "hardswish", "hardsigmoid", "softplus", "logsigmoid")  # fmt: skip
_POOLS = ("max_pool2d", "avg_pool2d", "adaptive_avg_pool2d", "adaptive_max_pool2d")
_KEEP_MODULES: tuple[type[nn.Module], ...] = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish, nn.Tanh, nn.Sigmoid,
    nn.Hardtanh, nn.Hardswish, nn.Hardsigmoid, nn.Softplus, nn.LogSigmoid,
    nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.ZeroPad2d, nn.Upsample,
    nn.Dropout, nn.Dropout2d, nn.Identity,
)  # fmt: skip
_NORMS: tuple[type[nn.Module], ...] = (nn.BatchNorm1d, nn.BatchNorm2d, nn.SyncBatchNorm, nn.GroupNorm, nn.LayerNorm)
_LEAVES = (*_KEEP_MODULES, *_NORMS, nn.Conv2d, nn.Linear, nn.Flatten)

# Functions and methods by their common name: what they do to the channel axis.
_KEEP = {*_ACTIVATIONS, *(name + "_" for name in _ACTIVATIONS), *_POOLS, "dropout", "dropout2d", "contiguous", "clone",
         "upsample", "interpolate", "neg", "max_pool2d_with_indices", "float", "to"}  # fmt: skip
_ELEMENTWISE = {"add", "iadd", "add_", "sub", "isub", "sub_", "mul", "imul", "mul_", "truediv", "div", "div_",
                "radd", "rmul"}  # fmt: skip
_INTEGERS = {"size", "getattr", "dim", "numel", "floordiv", "floor_divide", "mod", "eq"}


class _Tracer(fx.Tracer):
    """Stops at the modules of the table and at frozen modules; looks into everything else."""

    def __init__(self, frozen: frozenset[str]) -> None:
        super().__init__()
        self._frozen = frozen

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return type(m) in _LEAVES or module_qualified_name in self._frozen


class _Group:
    """A width while it is being found; tied groups point to one root (union-find)."""

    def __init__(self, size: int, producer: str | None = None, kind: str = "", frozen: bool = False) -> None:
        self.parent: _Group | None = None
        self.size = size
        self.blocks = 1
        self.frozen = frozen
        self.mixed = False
        self.kind = kind
        self.producers = [producer] if producer else []
        self.consumers: list[str] = []

    @property
    def root(self) -> _Group:
        return self if self.parent is None else self.parent.root


_Draft = list[tuple[_Group, int, int]]
"""A layout whose groups may still be tied: (group, factor, parts) segments."""


def build_graph(model: nn.Module, input_shape: tuple[int, ...], frozen: frozenset[str]) -> ChannelGraph:
    """Trace `model` at `input_shape`; see ChannelGraph.trace."""
    if isinstance(model, nn.parallel.DistributedDataParallel):
        raise GraphError("trace the module inside DistributedDataParallel (model.module), not the wrapper")
    try:
        tracer = _Tracer(frozen)
        graph = tracer.trace(model)
    except fx.proxy.TraceError as error:
        raise GraphError(
            f"{type(model).__name__} cannot be traced: {str(error).splitlines()[0]}; move the data-dependent part into "
            "a submodule and name that in frozen=(...)"
        ) from error
    unknown = frozen - {name for name, _ in model.named_modules()} - {node.name for node in graph.nodes}
    if unknown:
        raise GraphError(f"frozen={sorted(unknown)}: neither a module path nor an operation of {type(model).__name__}")
    shadow = copy.deepcopy(model).to("meta").eval()
    builder = _Builder(fx.GraphModule(shadow, graph), frozen, model)
    with torch.no_grad():
        builder.run(torch.empty((1, *input_shape[1:]), device="meta", dtype=_dtype(model)))
    return builder.finish(input_shape)


def _dtype(model: nn.Module) -> torch.dtype:
    return next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)


class _Builder(fx.Interpreter):
    """Runs the traced model on the meta device; beside each value it keeps the layout of dimension 1."""

    def __init__(self, module: fx.GraphModule, frozen: frozenset[str], model: nn.Module) -> None:
        super().__init__(module, garbage_collect_values=False)
        self.extra_traceback = False  # errors of the table are one line
        self.model = model
        self.frozen = frozen
        self.node: fx.Node  # the one being run
        self.layouts: dict[fx.Node, _Draft] = {}
        self.groups: list[_Group] = []
        self.axes: dict[str, dict[int, _Draft]] = {}
        self.attributes: dict[tuple[str, str], _Draft] = {}
        self.terms: list[tuple[str, bool, int, _Draft, _Draft | None, int]] = []
        self.joins: list[tuple[_Draft, _Draft]] = []
        self.norm_after: dict[str, str] = {}

    # -- dispatch ---------------------------------------------------------------------------------------------------

    def run_node(self, node: fx.Node) -> Any:
        self.node = node
        if node.op == "output":
            self._freeze_inputs()
            return super().run_node(node)
        try:
            value = super().run_node(node)
        except (RuntimeError, TypeError, ValueError, IndexError) as error:
            shape = tuple(next(iter(self.env.values())).shape[1:])
            raise GraphError(
                f"{type(self.model).__name__} does not take images of shape {shape}: {node.name} fails "
                f"({str(error).splitlines()[0].rstrip('.')})"
            ) from error
        if isinstance(value, torch.Tensor) and value.dim() >= 2:
            self.layouts[node] = self._layout(node, value)
        elif node.op == "get_attr" or (isinstance(value, torch.Tensor) and node.name not in self.frozen):
            raise self._error("is not in the table of operations (a tensor outside any layer)")
        elif not isinstance(value, torch.Tensor) and not self._is_integer(node):
            raise self._error("is not in the table of operations")
        return value

    def _layout(self, node: fx.Node, value: torch.Tensor) -> _Draft:
        if self._is_frozen(node):
            self._freeze_inputs()
            return [self._new(value.shape[1], frozen=True)]
        if node.op == "placeholder":
            return [self._new(value.shape[1], frozen=True)]
        if node.op == "call_module":
            module = self.model.get_submodule(str(node.target))
            return self._module(node, module, str(node.target), value)
        if node.op in ("call_function", "call_method"):
            return self._function(node, value)
        raise self._error("is not in the table of operations (a parameter used outside a layer)")

    def _module(self, node: fx.Node, module: nn.Module, path: str, value: torch.Tensor) -> _Draft:
        source = self._input(node)
        shape = self._shape(node)
        if isinstance(module, nn.Conv2d):
            return self._convolution(module, path, source, value)
        if isinstance(module, nn.Linear):
            if value.dim() != 2:
                raise self._error(f"nn.Linear is followed on (batch, features) only, not on {tuple(shape)}")
            layout = self._produce(path, module.out_features, "linear")
            self._axis(f"{path}.weight", 0, layout)
            self._axis(f"{path}.weight", 1, source)
            if module.bias is not None:
                self._axis(f"{path}.bias", 0, layout)
            self._attribute(path, "out_features", layout)
            self._attribute(path, "in_features", source)
            self._consume(path, source)
            self._term(path, True, 1, source, layout)
            return layout
        if isinstance(module, _NORMS):
            return self._norm(node, module, path, source, value)
        if isinstance(module, nn.Flatten):
            if module.start_dim != 1 or module.end_dim != -1:
                raise self._error("nn.Flatten is followed to (batch, features) only")
            return self._flatten(source, shape)
        if type(module) in _KEEP_MODULES:
            if isinstance(module, nn.AdaptiveAvgPool2d):
                self._term(path, False, math.prod(shape[2:]), source)
            if isinstance(module, nn.Upsample):
                self._upsample_term(module.mode, source, value)
            return source
        raise self._error(f"{type(module).__name__} is not in the table of operations")

    def _function(self, node: fx.Node, value: torch.Tensor) -> _Draft:
        name = _name(node.target)
        tensors = [a for a in node.all_input_nodes if a in self.layouts]
        if name == "match_channels":
            source, target = (self.layouts[a] for a in node.args[:2] if isinstance(a, fx.Node))
            self.joins.append((source, target))
            return target
        if name in _ELEMENTWISE:
            return self._elementwise(tensors, value)
        if name in ("cat", "concat", "concatenate"):
            dimension = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else 0)
            if dimension not in (1, 1 - value.dim()):
                raise self._error("is followed along the channels (dim=1) only")
            listed = node.args[0] if node.args else node.kwargs["tensors"]
            assert isinstance(listed, (list, tuple))
            return [segment for a in listed if isinstance(a, fx.Node) for segment in self.layouts[a]]
        source, shape = self.layouts[tensors[0]], self._shape(node)
        if name in _KEEP and value.shape[:2] == shape[:2]:
            if name == "adaptive_avg_pool2d":
                self._term(node.name, False, math.prod(shape[2:]), source)
            if name in ("interpolate", "upsample"):
                self._upsample_term(str(node.kwargs.get("mode", "nearest")), source, value)
            return source
        if name in ("mean", "sum", "amax") and value.shape[:2] == shape[:2]:
            return source
        if name in ("flatten", "view", "reshape"):
            return self._reshape(node, source, shape, value)
        if name in ("getitem", "unsqueeze", "squeeze") and value.shape[:2] == shape[:2]:
            return source  # spatial slicing, (N, C) <-> (N, C, 1, 1)
        if name == "pad" and value.shape[:2] == shape[:2]:
            return source
        if name == "pad":
            raise self._error("pads channels; use budgetnet.backbones.match_channels(x, like), which follows widths")
        raise self._error("is not in the table of operations")

    # -- operations -------------------------------------------------------------------------------------------------

    def _convolution(self, module: nn.Conv2d, path: str, source: _Draft, value: torch.Tensor) -> _Draft:
        weight, groups = f"{path}.weight", module.groups
        positions = math.prod(value.shape[2:]) * math.prod(module.kernel_size)
        if groups == module.in_channels and groups > 1:
            multiplier = module.out_channels // groups
            layout = [(group, factor * multiplier, parts) for group, factor, parts in source]
            self._term(path, True, positions, layout)
            self._attribute(path, "groups", source)
        else:
            layout = self._produce(path, module.out_channels, "convolution")
            if groups > 1:
                if len(source) != 1:
                    raise self._error("a grouped convolution after a concatenation is not followed")
                for group, _, _ in (*source, *layout):
                    group.root.blocks = math.lcm(group.root.blocks, groups)
            self._axis(weight, 1, [(group, factor, parts * groups) for group, factor, parts in source])
            self._consume(path, source)
            self._term(path, True, positions, source, layout, groups)
        self._axis(weight, 0, layout)
        if module.bias is not None:
            self._axis(f"{path}.bias", 0, layout)
        self._attribute(path, "in_channels", source)
        self._attribute(path, "out_channels", layout)
        return layout

    def _norm(self, node: fx.Node, module: nn.Module, path: str, source: _Draft, value: torch.Tensor) -> _Draft:
        if isinstance(module, nn.LayerNorm):
            if len(module.normalized_shape) != value.dim() - 1:
                raise self._error(
                    f"nn.LayerNorm is followed over all but the batch, not over {module.normalized_shape}"
                )
            self._attribute(path, "normalized_shape", source)
        elif isinstance(module, nn.GroupNorm):
            if len(source) != 1:
                raise self._error("nn.GroupNorm after a concatenation is not followed")
            source[0][0].root.blocks = math.lcm(source[0][0].root.blocks, module.num_groups)
            self._attribute(path, "num_channels", source)
        else:
            self._attribute(path, "num_features", source)
        mixing = isinstance(module, (nn.GroupNorm, nn.LayerNorm))
        for group, _, _ in source:
            group.root.mixed |= mixing
        for name, tensor in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
            if tensor.dim() > 0:
                self._axis(f"{path}.{name}", 0, source)
        affine = getattr(module, "weight", None) is not None
        per_element = (5 if affine else 4) if mixing else (2 if affine else 1)
        self._term(path, False, per_element * math.prod(value.shape[2:]), source)
        previous = node.all_input_nodes[0]
        if previous.op == "call_module":
            self.norm_after.setdefault(str(previous.target), path)
        return source

    def _elementwise(self, tensors: list[fx.Node], value: torch.Tensor) -> _Draft:
        full = [a for a in tensors if self._value(a).shape[1] == value.shape[1]]
        for single in tensors:  # a one-channel mask spread over all channels: its own width must stay 1
            if self._value(single).shape[1] != value.shape[1]:
                self._freeze(self.layouts[single])
        if any(self._value(a).dim() != value.dim() for a in full):
            raise self._error("joins tensors of different rank")
        for other in full[1:]:
            self._tie(self.layouts[full[0]], self.layouts[other])
        return self.layouts[full[0]]

    def _reshape(self, node: fx.Node, source: _Draft, shape: torch.Size, value: torch.Tensor) -> _Draft:
        fixed = [a for a in node.args[2:] if isinstance(a, int) and a != -1]
        if len(node.args) > 1 and isinstance(node.args[1], (tuple, list)):
            fixed = [a for a in node.args[1][1:] if isinstance(a, int) and a != -1]
        if _name(node.target) == "flatten" and value.dim() == 2:
            return self._flatten(source, shape)
        growable = any(not group.root.frozen for group, _, _ in source)
        if value.dim() == 2 and value.shape[0] == shape[0]:
            if fixed and growable:
                raise self._error(
                    f"fixes the number of features to {fixed[0]}; write x.flatten(1), which follows widths"
                )
            return self._flatten(source, shape)
        if value.shape[:2] == shape[:2] and value.dim() == 4 and math.prod(value.shape[2:]) == math.prod(shape[2:]):
            if value.shape[1] in fixed and value.shape[1] != 1 and growable:
                raise self._error(
                    f"fixes the number of channels to {value.shape[1]}; use x.size(1), which follows widths"
                )
            return source
        raise self._error(f"reshapes {tuple(shape)} to {tuple(value.shape)}, which is not followed")

    def _flatten(self, source: _Draft, shape: torch.Size) -> _Draft:
        spatial = math.prod(shape[2:])
        return [(group, factor * spatial, parts) for group, factor, parts in source]

    def _upsample_term(self, mode: str, source: _Draft, value: torch.Tensor) -> None:
        per_element = {"nearest": 1, "bilinear": 4}.get(mode)
        if per_element is None:
            raise self._error(f"mode={mode!r} has no known cost; use 'nearest' or 'bilinear'")
        self._term(self.node.name, False, per_element * math.prod(value.shape[2:]), source)

    # -- groups -----------------------------------------------------------------------------------------------------

    def _new(
        self, size: int, producer: str | None = None, kind: str = "", frozen: bool = False
    ) -> tuple[_Group, int, int]:
        group = _Group(size, producer, kind, frozen)
        self.groups.append(group)
        return (group, 1, 1)

    def _produce(self, path: str, size: int, kind: str) -> _Draft:
        known = self.axes.get(f"{path}.weight", {}).get(0)  # a layer that is used twice has one width
        return known if known is not None else [self._new(size, path, kind)]

    def _consume(self, path: str, source: _Draft) -> None:
        for group, _, _ in source:
            group.root.consumers.append(path)

    def _tie(self, left: _Draft, right: _Draft) -> None:
        sizes = [[(group.root.size * factor, factor) for group, factor, _ in side] for side in (left, right)]
        if sizes[0] != sizes[1]:
            raise self._error(
                f"joins channels that are laid out differently, {sizes[0]} and {sizes[1]} (units, factor)"
            )
        for (a, _, _), (b, _, _) in zip(left, right):
            one, other = a.root, b.root
            if one is other:
                continue
            if self.groups.index(other) < self.groups.index(one):
                one, other = other, one
            other.parent = one
            one.blocks = math.lcm(one.blocks, other.blocks)
            one.frozen |= other.frozen
            one.mixed |= other.mixed
            one.producers += other.producers
            one.consumers += other.consumers
            one.kind = "convolution" if "convolution" in (one.kind, other.kind) else one.kind or other.kind

    def _axis(self, tensor: str, dim: int, layout: _Draft) -> None:
        self._tie(self.axes.setdefault(tensor, {}).setdefault(dim, layout), layout)  # a layer may be used twice

    def _attribute(self, path: str, name: str, layout: _Draft) -> None:
        self.attributes[path, name] = layout

    def _term(
        self, path: str, matrix: bool, coefficient: int, left: _Draft, right: _Draft | None = None, divisor: int = 1
    ) -> None:
        self.terms.append((path, matrix, coefficient, left, right, divisor))

    def _freeze(self, layout: _Draft) -> None:
        for group, _, _ in layout:
            group.root.frozen = True

    def _freeze_inputs(self) -> None:
        for source in self.node.all_input_nodes:
            self._freeze(self.layouts.get(source, []))

    # -- nodes ------------------------------------------------------------------------------------------------------

    def _value(self, node: fx.Node) -> torch.Tensor:
        value: torch.Tensor = self.env[node]
        return value

    def _input(self, node: fx.Node) -> _Draft:
        return self.layouts[node.all_input_nodes[0]]

    def _shape(self, node: fx.Node) -> torch.Size:
        return self._value(next(a for a in node.all_input_nodes if a in self.layouts)).shape

    def _is_frozen(self, node: fx.Node) -> bool:
        return node.name in self.frozen or (node.op == "call_module" and str(node.target) in self.frozen)

    def _is_integer(self, node: fx.Node) -> bool:
        return _name(node.target) in _INTEGERS | _ELEMENTWISE | {"getitem"} or self._is_frozen(node)

    def _error(self, what: str) -> GraphError:
        node = self.node
        stack = node.meta.get("nn_module_stack") or {}
        path = next(reversed(stack.values()), ("", None))[0] if stack else ""
        where = f"in module {path!r}" if path else f"in {type(self.model).__name__}.forward"
        return GraphError(
            f"operation {node.name!r} ({_name(node.target)}) {where} {what}; to keep the widths around it fixed, "
            f"trace with frozen=({path or node.name!r},)"
        )

    # -- result -----------------------------------------------------------------------------------------------------

    def finish(self, input_shape: tuple[int, ...]) -> ChannelGraph:
        members = {}
        names: dict[int, str] = {}
        for group in self.groups:
            if group.root is group and group.producers and not group.frozen:
                names[id(group)] = name = group.producers[0]
                unique = tuple(dict.fromkeys(group.consumers))
                members[name] = WidthGroup(name, group.size, group.kind, tuple(group.producers), unique, group.blocks)

        def settle(draft: _Draft) -> Layout:
            return tuple(
                Segment(names[id(group.root)], factor, parts)
                if id(group.root) in names
                else Segment(None, group.root.size * factor // parts)
                for group, factor, parts in draft
            )

        return ChannelGraph(
            model=self.model,
            input_shape=input_shape,
            axes={tensor: {dim: settle(d) for dim, d in dims.items()} for tensor, dims in self.axes.items()},
            attributes={key: settle(draft) for key, draft in self.attributes.items()},
            terms=[
                Term(path, matrix, coefficient, settle(left), settle(right) if right is not None else None, divisor)
                for path, matrix, coefficient, left, right, divisor in self.terms
            ],
            joins=[(settle(source), settle(target)) for source, target in self.joins],
            norm_after=self.norm_after,
            mixing=frozenset(names[id(g)] for g in self.groups if id(g) in names and g.mixed),
            members=members,
        )


def _name(target: Target | Argument) -> str:
    """The common name of a function, method or builtin operator: F.relu, torch.relu and Tensor.relu are all 'relu'."""
    name = target if isinstance(target, str) else getattr(target, "__name__", str(target))
    return str(name).removeprefix("_")
