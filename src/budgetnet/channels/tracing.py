"""Trace a model into its channel graph: run it symbolically, once, over a closed table of operations.

Every tensor along the way carries the layout of its channel axis (dimension 1). An operation outside the table
(operations.py) is an error that names it; it is never guessed.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import fx, nn

from budgetnet.channels.builder import Builder, Draft, draft_size, function_name
from budgetnet.channels.graph import ChannelGraph, GraphError
from budgetnet.channels.operations import FUNCTIONS, INTEGERS, MODULES


class _Tracer(fx.Tracer):
    """Stops at torch's own layers and at frozen modules; looks into everything else."""

    def __init__(self, frozen: frozenset[str]) -> None:
        super().__init__()
        self._frozen = frozen

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return super().is_leaf_module(m, module_qualified_name) or module_qualified_name in self._frozen


def build_graph(model: nn.Module, input_shape: tuple[int, ...], frozen: frozenset[str]) -> ChannelGraph:
    """Trace `model` at `input_shape`; see ChannelGraph.trace."""
    if isinstance(model, nn.parallel.DistributedDataParallel):
        raise GraphError("trace the module inside DistributedDataParallel (model.module), not the wrapper")
    _refuse_shared_parameters(model)
    shadow = copy.deepcopy(model).to("meta")
    graph, training = _symbolic(shadow.eval(), frozen), _symbolic(shadow.train(), frozen)
    if [(node.op, node.target) for node in graph.nodes] != [(node.op, node.target) for node in training.nodes]:
        raise GraphError(
            f"{type(model).__name__} runs other operations in training than in eval mode, which is not followed"
        )
    unknown = frozen - {name for name, _ in model.named_modules()} - {node.name for node in graph.nodes}
    if unknown:
        raise GraphError(f"frozen={sorted(unknown)}: neither a module path nor an operation of {type(model).__name__}")
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    builder = Builder(model, input_shape)
    with torch.no_grad():  # two images: a dimension of 1 could be taken for the batch
        _Run(fx.GraphModule(shadow.eval(), graph), builder, frozen).run(
            torch.empty((2, *input_shape[1:]), device="meta", dtype=dtype)
        )
    return builder.finish()


def _symbolic(model: nn.Module, frozen: frozenset[str]) -> fx.Graph:
    try:
        return _Tracer(frozen).trace(model)
    except Exception as error:  # whatever the model's own code raises when it meets a symbol in place of a tensor
        raise GraphError(
            f"{type(model).__name__} cannot be traced: {_line(error)}; move what depends on the data or on exact sizes "
            "into a submodule and name that in frozen=(...)"
        ) from error


def _refuse_shared_parameters(model: nn.Module) -> None:
    owners: dict[int, str] = {}
    for path, module in model.named_modules():
        for name, parameter in module._parameters.items():
            other = owners.setdefault(id(parameter), f"{path}.{name}")
            if parameter is not None and other != f"{path}.{name}":
                raise GraphError(f"{other} and {path}.{name} are one parameter in two layers, which is not followed")


class _Run(fx.Interpreter):
    """Runs the traced model on the meta device and tells the builder about every node."""

    def __init__(self, module: fx.GraphModule, builder: Builder, frozen: frozenset[str]) -> None:
        super().__init__(module)
        self.extra_traceback = False  # errors of the table are one line
        self.builder, self.frozen = builder, frozen

    def call_module(self, target: fx.node.Target, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """As it is, but for a batch norm, which keeps the shape: to ask it is most of the time of a trace."""
        module, x = self.fetch_attr(str(target)), args[0] if args else None
        if type(module) is nn.BatchNorm2d and isinstance(x, torch.Tensor):
            fits = x.dim() == 4 and x.shape[1] == module.num_features
            return torch.empty_like(x) if fits else super().call_module(target, args, kwargs)
        return super().call_module(target, args, kwargs)

    def run_node(self, n: fx.Node) -> Any:
        b = self.builder
        b.node = n
        try:
            value = super().run_node(n)
        except (RuntimeError, TypeError, ValueError, IndexError) as error:
            raise GraphError(
                f"{type(b.model).__name__} does not take inputs of shape {b.input_shape[1:]}: {n.name} fails "
                f"({_line(error).rstrip('.')})"
            ) from error
        if n.op == "output":
            b.freeze_inputs()
            return value
        b.values[n] = value
        if self._is_frozen(n) or (not b.sources() and self._reads_frozen(n)):
            b.freeze_inputs()
            if isinstance(value, torch.Tensor) and value.dim() >= 2:
                b.layouts[n] = [b.new(value.shape[1], frozen=True)]
            if n.op == "call_module":
                self._price_frozen(str(n.target), b)
            return value
        layout = self._follow(n, value)
        if layout is not None:
            if draft_size(layout) != value.shape[1]:
                raise b.error(f"gives {value.shape[1]} channels where {draft_size(layout)} were followed")
            b.layouts[n] = layout
        return value

    def _price_frozen(self, path: str, b: Builder) -> None:
        """What a frozen module costs, counted once on zeros: constants beside the closed forms."""
        from fvcore.nn import FlopCountAnalysis
        from torch.utils.flop_counter import FlopCounterMode

        module = copy.deepcopy(b.model.get_submodule(path)).to("cpu").eval()
        values = (b.values[source] for source in b.node.all_input_nodes)
        inputs = tuple(torch.zeros(1, *v.shape[1:], dtype=v.dtype) for v in values if isinstance(v, torch.Tensor))
        with FlopCounterMode(display=False) as counter:
            module(*inputs)
        macs = counter.get_total_flops() // 2
        analysis = FlopCountAnalysis(module, inputs).unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        one = [b.new(1, frozen=True)]
        b.term(path, True, macs, one)
        b.term(path, False, int(analysis.total()) - macs, one)

    def _follow(self, node: fx.Node, value: Any) -> Draft | None:
        b = self.builder
        if node.op == "placeholder":
            return [b.new(value.shape[1], frozen=True)]
        if node.op == "call_module":
            module, path = b.model.get_submodule(str(node.target)), str(node.target)
            if type(module) not in MODULES:
                raise b.error(f"is of type {type(module).__name__}, which is not in the table of operations")
            return MODULES[type(module)](b, module, path, value)
        if node.op == "get_attr":
            return None
        name = function_name(node.target)
        if isinstance(value, torch.Tensor):
            loose = [a for a in node.all_input_nodes if isinstance(b.values[a], torch.Tensor) and a not in b.layouts]
            if any(b.values[a].dim() > 0 for a in loose):
                raise b.error(f"uses {loose[0].target}, a parameter or buffer outside any layer of the table")
            if name in FUNCTIONS and b.sources() and value.dim() >= 2:
                return FUNCTIONS[name](b, value)
            raise b.error("is not in the table of operations")
        if name not in INTEGERS:
            raise b.error("is not in the table of operations")
        return None

    def _is_frozen(self, node: fx.Node) -> bool:
        return node.name in self.frozen or (node.op == "call_module" and str(node.target) in self.frozen)

    def _reads_frozen(self, node: fx.Node) -> bool:
        """Whether a value comes out of a frozen module that returns several."""
        return any(self._is_frozen(source) for source in node.all_input_nodes)


def _line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
