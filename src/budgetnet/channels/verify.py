"""Prove a channel graph on the model itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from budgetnet.channels.calls import Place
from budgetnet.channels.graph import Graph, GraphError, WidthGroup
from budgetnet.channels.initialise import fill_silently, leaks
from budgetnet.channels.resize import operate, source_of
from budgetnet.channels.running import Run
from budgetnet.channels.shadow import copy_of
from budgetnet.channels.width_change import WidthChange

TOLERANCES = {torch.float64: 1e-10, torch.float32: 1e-4}
"""How far the outputs may move. Single precision is for models that do not run in double precision."""
STEPS = (1, 8)
"""By how many channels a block every group is grown."""


@torch.no_grad()
def verify(graph: Graph) -> dict[str, str]:
    """Grow all groups together by 1 and by 8 channels a block, and narrow them back, on a copy in eval mode.

    With zero-out initialisation the outputs must stay within 1e-10 in float64, and after narrowing back every tensor
    must be bit-identical. Where the function cannot be kept the forward pass must still run, and the returned text says
    why: a norm across channels, or a shortcut that the group used to crop. Returns group -> what was proven. The copy
    gets random shifts, scales and statistics first, so that nothing agrees by being zero. Raises GraphError that names
    the group, found by halves, and the first operation that gives something else.
    """
    proof = _Proof(graph)
    proven = dict.fromkeys(graph.widths, "function kept")
    reopened: set[str] = set()
    for more in STEPS:
        reopened |= proof.reopened(more)
    for name in graph.members:
        if name in graph.mixing:
            proven[name] = "shapes only: a norm across channels cannot keep the function"
        elif name in reopened:
            proven[name] = "shapes only: growing it reopens a shortcut that it crops"
    kept = [group for group in graph.groups if proven[group.name] == "function kept"]
    others = [group for group in graph.groups if proven[group.name] != "function kept"]
    for groups, function in ((kept, True), (others, False)):
        if groups and (wrong := proof.fails(groups, function)):
            proof.blame(groups, function, wrong)
    return proven


class _Proof:
    """A copy of the model that is grown and narrowed again and again."""

    def __init__(self, graph: Graph) -> None:
        inputs = torch.randn((2, *graph.input_shape[1:]), generator=torch.Generator().manual_seed(0))
        for dtype, tolerance in TOLERANCES.items():
            self.model, self.inputs, self.tolerance = (
                _twin(graph.model).to("cpu", dtype).eval(),
                inputs.to(dtype),
                tolerance,
            )
            self.graph = Graph.of(self.model)
            _perturb(self.model)
            self.state = {name: value.clone() for name, value in self.model.state_dict().items()}
            try:
                self.before = self._outputs()
                return
            except Exception as error:  # whatever the model's own code raises, such as for float64
                line = (str(error).splitlines() or [type(error).__name__])[0]
        raise GraphError(f"a copy of {type(graph.model).__name__} cannot be run: {line}")

    def _outputs(self) -> Tensor:
        """All the tensors that the model returns, in one."""
        leaves = [leaf for leaf in tree_leaves(self.model(self.inputs)) if isinstance(leaf, Tensor)]
        return torch.cat([leaf.flatten().double() for leaf in leaves])

    def reopened(self, more: int) -> set[str]:
        """Groups that, grown alone, reopen a shortcut."""
        found = set()
        if self.graph.joins:
            for group in self.graph.groups:
                block = torch.arange(group.width).reshape(group.blocks, -1)
                source = torch.cat([block, block.new_full((group.blocks, more), -1)], dim=1).flatten()
                change = WidthChange(self.graph, self.graph.widths, {group.name: source}, seed=0)
                found |= {group.name} & leaks(change)[1]
        return found

    def fails(self, groups: Sequence[WidthGroup], function: bool) -> str:
        """What is wrong when these are grown together, step by step, and narrowed back; "" where nothing is."""
        for more in STEPS:
            try:
                self._resize(groups, more)
                after = self._outputs()
            except Exception as error:  # whatever the model's own code raises
                self._restore(groups)
                return f"grown by {more} fails: {(str(error).splitlines() or [type(error).__name__])[0]}"
            if after.shape != self.before.shape:
                self._restore(groups)
                return f"grown by {more} changes the shape of what the network gives"
            difference = (after - self.before).abs().max().item() if function else 0.0
            if not difference <= self.tolerance * max(1, self.before.abs().max().item()):
                self._restore(groups)
                return f"grown by {more} changes the function by {difference:.1e}"
        self._resize(groups, 0)
        state = self.model.state_dict()
        changed = [name for name, value in state.items() if not torch.equal(value, self.state[name])]
        if changed:
            self.model.load_state_dict(self.state)
            return f"grown and narrowed back has changed {', '.join(changed)}"
        return ""

    def _resize(self, groups: Sequence[WidthGroup], more: int) -> None:
        """Give these groups so many channels a block more than they had."""
        graph, widths = self.graph, self.graph.widths
        sources = {g.name: source_of(graph, g.name, g.width + more * g.blocks) for g in groups}
        change = WidthChange(graph, widths, sources, seed=0)
        operate(change, lambda: fill_silently(change))

    def _restore(self, groups: Sequence[WidthGroup]) -> None:
        self._resize(groups, 0)
        self.model.load_state_dict(self.state)

    def blame(self, groups: Sequence[WidthGroup], function: bool, wrong: str) -> None:
        """Raises GraphError for a group, or the fewest found by halving, that is wrong."""
        if not torch.equal(self._outputs(), self.before):
            raise GraphError(
                f"{type(self.model).__name__} gives something else each time in eval mode, so nothing can be proven: "
                "F.dropout and the like take training=self.training"
            )
        groups = list(groups)
        while len(groups) > 1:
            middle = len(groups) // 2
            for half in (groups[:middle], groups[middle:]):
                if said := self.fails(half, function):
                    groups, wrong = half, said
                    break
            else:
                break
        named = repr(groups[0]) if len(groups) == 1 else f"{', '.join(g.name for g in groups)} together"
        names = [next(iter(g.producers), g.name.rstrip("'")) for g in groups]
        raise GraphError(
            f"{named} {wrong}{self._operation(groups)}; to keep {'it' if len(groups) == 1 else 'them'} fixed, trace "
            f"with frozen=({', '.join(map(repr, names))},), on the command line 'backbone.frozen=[{','.join(names)}]'"
        )

    def _operation(self, groups: Sequence[WidthGroup]) -> str:
        """The first operation that gives something else than before, or that fails."""
        with _Watch(None) as first:
            self.model(self.inputs)
        watch = _Watch(first.seen)
        try:
            self._resize(groups, max(STEPS))
            with watch:
                self.model(self.inputs)
        except Exception:
            return f", in {watch.last}" if watch.last else ""
        finally:
            self._restore(groups)
        return f", first in {watch.first}" if watch.first else ""


def _twin(model: nn.Module) -> nn.Module:
    """A deep copy, also of a model that keeps computed weights (pruning masks, weight_norm)."""
    twin = copy_of(model)
    if "_channel_graph" not in twin.__dict__:  # a torch.fx.GraphModule, which copies some attributes only
        twin.__dict__["_channel_graph"] = replace(Graph.of(model), model=twin)
    return twin


class _Watch(TorchFunctionMode):
    """Notes what every operation gives, or compares it with what it gave before."""

    def __init__(self, before: Sequence[tuple[str, Tensor]] | None) -> None:
        super().__init__()
        self.before, self.seen, self.first, self.last = before, list[tuple[str, Tensor]](), "", ""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        name = getattr(func, "__name__", "")
        if name != "__get__":
            self.last = _where(name)
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor) and name != "__get__" and out.is_floating_point():
            number = len(self.seen)
            if self.before is None:
                self.seen.append((name, out.clone()))
            elif number < len(self.before) and not self.first:
                self.seen.append((name, out))
                self._compare(name, self.before[number][1], out)
        return out

    def _compare(self, name: str, old: Tensor, new: Tensor) -> None:
        """Over the channels that were there, where those are the first."""
        if old.dim() != new.dim():
            return
        if any(n < o for o, n in zip(old.shape, new.shape)):
            self.first = _where(name)
            return
        part = new[tuple(slice(size) for size in old.shape)]
        if not torch.allclose(part, old, rtol=1e-9, atol=1e-9, equal_nan=True):
            self.first = _where(name)


def _where(name: str) -> str:
    file, line = Run.line()
    return str(Place(name.strip("_"), "", file, line, True)).replace(" in the network's forward", "")


def _perturb(model: nn.Module) -> None:
    """Random shifts, scales and statistics. What is positive stays so: it may be a variance.

    Scales are below 1 and variances above: in hundreds of residual blocks values, and what is rounded of them, would
    grow without bounds.
    """
    generator = torch.Generator().manual_seed(1)
    for name, tensor in model.state_dict().items():
        if tensor.dim() == 1 and tensor.is_floating_point():
            positive = name.endswith(("weight", "running_var")) or bool((tensor > 0).all())
            low, high = (0.5, 1.0) if positive else (-0.5, 0.5)
            if name.endswith("running_var"):
                low, high = 1.0, 2.0
            tensor.copy_(torch.empty_like(tensor).uniform_(low, high, generator=generator))
