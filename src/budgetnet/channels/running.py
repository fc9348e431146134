"""Run a model on the meta device and carry channel labels beside every tensor.

`Run` sees every function that the model calls (a TorchFunctionMode) and hands it to its rule in operations.py.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from budgetnet.channels.calls import Call, Cost, Event, Place, collect, leaves, name_of, one_device
from budgetnet.channels.findings import Findings
from budgetnet.channels.graph import GraphError
from budgetnet.channels.prices import PRICED, Price, metered, price
from budgetnet.internals import batched_by_vmap

Rule = Callable[["Run", Call], Any]


class Run(Findings, TorchFunctionMode):
    """One trace; used for several passes of one model (eval, training), whose findings are joined."""

    def __init__(self, model: nn.Module, rules: Mapping[str, Rule | None], frozen: frozenset[str]) -> None:
        Findings.__init__(self, model, frozen)
        TorchFunctionMode.__init__(self)
        self.rules = rules
        self.paused = False
        self.failed_at = -1
        self.images = 1

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = name_of(func)
        rule = self.rules.get(name, None if name.startswith("get ") else unknown)
        if rule is None:
            return func(*args, **kwargs)
        tensors: list[Tensor] = []
        collect(args, tensors)
        if kwargs:
            collect(kwargs.values(), tensors)
        if any(map(self._mapped, tensors)):
            raise GraphError(
                f"{self.place(name)} is inside torch.vmap, where it is not seen which channels meet; call vmap in a "
                "module of its own, and trace with frozen=('its path',), on the command line 'backbone.frozen=[...]'"
            )
        if len(tensors) > 1:
            args, kwargs = one_device(tensors, args, kwargs)
        call = Call(name, func, args, kwargs, tensors)
        if self.paused:
            out = self._paid(call)
            for tensor in leaves(out):
                self.carry(tensor, (), image=self.of_image(*tensors))
            return out
        for tensor in tensors:
            if isinstance(tensor, nn.Parameter) and id(tensor) not in self.names:
                raise GraphError(
                    f"{self.place(name)} reads a parameter that {type(self.model).__name__} has not registered: keep "
                    "its layer in an attribute or a ModuleList, so that it is copied and trained along"
                )
            tensor._uses = getattr(tensor, "_uses", 0) + 1  # type: ignore[attr-defined]
        return self.follow(rule, call)

    @staticmethod
    def _mapped(tensor: Tensor) -> bool:
        """Whether torch.vmap goes over something that is computed from the image or has channels."""
        whole = batched_by_vmap(tensor)
        carried = None if whole is None else getattr(whole, "_carried", None)
        return carried is not None and (carried.image or bool(carried.planes))

    def follow(self, rule: Rule, call: Call) -> Any:
        """Run one operation by its rule, and note what it gave."""
        if call.name in self.frozen and (place := self.place(call.name)).own:
            self.found_frozen.add(call.name)
            out = self.opaque(call, place, "is frozen")
        else:
            out = rule(self, call)
        self.note(call, out)
        return out

    def note(self, call: Call, out: Any) -> None:
        planes = tuple(known.planes for t in call.tensors if (known := getattr(t, "_carried", None)) is not None)
        given = tuple((tuple(t.shape), self.known(t).planes) for t in leaves(out))
        self.events.append(Event(call.name, self.line(), self.current(), planes, given))
        for tensor in leaves(out):
            activation = self.known(tensor).image and call.name in PRICED  # a weight may depend on the image, too
            if not activation and (factors := self.factors_of(call)):
                tensor._factors = factors  # type: ignore[attr-defined]

    def _pay(self, cost: Price, tensors: Sequence[Tensor]) -> None:
        cost = self.per_image(cost, *tensors)
        for matrix, amount in ((True, cost.macs), (False, cost.other)):
            if amount and self.counting:
                self.costs.append(Cost(self.current(), matrix, amount, ()))

    def per_image(self, cost: Price, *tensors: Tensor) -> Price:
        """Of what is computed from these, one image's share; what is computed of weights alone is computed once."""
        if not self.of_image(*tensors):
            return cost
        return Price(*(amount // self.images if amount % self.images == 0 else amount for amount in cost))

    def fails_as_before(self) -> bool:
        """Whether a pass that has failed may be left where it failed."""
        self.failed_at = len(self.events)
        return True

    def opaque(self, call: Call, place: Place, why: str) -> Any:
        """Run what is not looked into: what it reads stays as it is, and it costs what it costs."""
        for tensor in call.tensors:
            self.keep(tensor, place, why)
        out = self._paid(call)
        for tensor in leaves(out):
            self.carry(tensor, (), image=self.of_image(*call.tensors))
        return out

    def _paid(self, call: Call) -> Any:
        """Run an operation as it is, and count what it costs."""
        if call.name in PRICED and call.name != "einsum":  # with an ellipsis or several operands, letters do not tell
            out = call.run()
            cost = price(call.name, call.argument, out)
        else:
            out, cost = metered(call.function, call.args, call.kwargs)
        self._pay(cost, call.tensors)
        return out

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Know which module is being run, and do not look into frozen ones."""
        paths, replaced = {id(module): path for path, module in self.modules.items()}, []
        for path in self.frozen & self.modules.keys():
            module = self.modules[path]
            replaced.append(module)
            module.__dict__["forward"] = self._frozen_forward(path, module, module.forward)

        def enter(module: nn.Module, *_: object) -> None:
            self.stack.append((paths.get(id(module), ""), module))

        def leave(*_: object) -> None:
            self.stack.pop()

        handles = (register_module_forward_pre_hook(enter), register_module_forward_hook(leave, always_call=True))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
            self.stack.clear()
            for module in replaced:
                module.__dict__.pop("forward", None)

    def _frozen_forward(self, path: str, module: nn.Module, forward: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            if self.paused:
                return forward(*args, **kwargs)
            self.found_frozen.add(path)
            inputs: list[Tensor] = []
            collect((args, kwargs), inputs)
            place = Place("forward", path, "", 0, True)
            for tensor in inputs:
                self.keep(tensor, place, "is frozen")
            self.paused, known = True, len(self.costs)
            try:
                out = forward(*args, **kwargs)
            except Exception:  # what looks at its data: on zeros
                del self.costs[known:]
                out, cost = metered(_on_zeros, (module, args, kwargs), {})
                self._pay(cost, inputs)
            finally:
                self.paused = False
            for tensor in leaves(out):
                self.carry(tensor, ())
            self.note(Call(path, forward, args, kwargs, inputs), out)
            return out

        return run


def _on_zeros(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What a module gives for zeros on the CPU, with weights of zeros, as tensors without values."""

    def zeros(value: Any) -> Any:
        return torch.zeros(value.shape, dtype=value.dtype) if isinstance(value, Tensor) and value.is_meta else value

    module.__dict__.pop("forward", None)
    tensors = [*module.parameters(), *module.buffers()]
    memo = {id(t): nn.Parameter(zeros(t), False) if isinstance(t, nn.Parameter) else zeros(t) for t in tensors}
    twin = copy.deepcopy(module, memo)
    out = twin(*tree_map(zeros, args), **tree_map(zeros, kwargs))
    return tree_map(lambda value: value.to("meta") if isinstance(value, Tensor) else value, out)


def unknown(run: Run, call: Call) -> Any:
    """No rule: an error that will name it, unless it has nothing to do with channels."""
    planes = any(run.known(t).planes and _free(run, t) for t in call.tensors)
    place = run.place(call.name)
    if planes and leaves(out := call.run()):
        run.refused.append((place, "is not followed"))
        for tensor in call.tensors:
            run.keep(tensor, place, "is not followed")
        for tensor in leaves(out):
            run.carry(tensor, ())
        return out
    if planes:
        return out
    return run.opaque(call, place, "is not followed") if call.tensors else call.run()


def _free(run: Run, tensor: Tensor) -> bool:
    """Whether some of its channels may still change."""
    return any(bool((run.labels.roots(plane.labels) > 0).any()) for plane in run.known(tensor).planes)
