"""Candidates for new channels, trained and scored before any of them is kept: Firefly."""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from budgetnet.channels import ChannelGraph, GraphError, resize
from budgetnet.channels.graph import layout_size, positions_of
from budgetnet.channels.initialise import leaks
from budgetnet.channels.surgery import Surgery
from budgetnet.methods.growth.gradients import Loss
from budgetnet.methods.growth.slices import ChannelSlice, Side, norms, times

STEPS = 10
"""Gradient steps that the candidates take."""
RADIUS = 0.1
"""How far a candidate is from the network, in norms of what it changes: a filter that splits, outgoing weights."""

Batch = tuple[Tensor, Tensor]
Gates = Mapping[str, Tensor]
"""Group -> (candidates,): 0 leaves a candidate out, 1 lets it in."""


def firefly_candidates(
    net: nn.Module,
    fresh: Mapping[str, int],
    batch: Batch,
    seed: int = 0,
    loss: Loss = functional.cross_entropy,
    steps: int = STEPS,
    radius: float = RADIUS,
) -> Candidates:
    """Propose, train and score new channels of the traced `net` on `batch` (inputs, targets); it stays as it is.

    Wu, Liu, Stone, Liu, "Firefly Neural Architecture Descent", NeurIPS 2020. fresh: of each group that may grow, how
    many brand-new channels are proposed besides a split of each of its channels. loss: of (outputs, targets), a scalar.
    All candidates together take `steps` gradient steps on the one batch; each stays `radius` away. A function of its
    arguments. Raises GraphError for a group that is made of blocks (a grouped convolution or a GroupNorm reads it).
    """
    candidates = Candidates(net, fresh, seed, radius, loss)
    candidates.train(batch, steps)
    return candidates


class Candidates:
    """A copy of a network with all candidates in it, each behind a gate.

    The candidates of a group: first a split of every channel in turn, w ± gate · δ, whose outgoing weights are halved;
    then the brand-new ones, whose small outgoing weights the gate multiplies. Where a copy would change the function (a
    parameter-free shortcut carries the channels on to others, a norm mixes them) there are brand-new ones alone; what a
    shortcut carries on has its gate at the scale of the norm behind the filters, or at the filters.

    splits: group -> how many of its candidates are splits. scores: group -> of each candidate how fast the loss falls
    in its gate, -∂L/∂gate, where all gates are 1.
    """

    def __init__(self, net: nn.Module, fresh: Mapping[str, int], seed: int, radius: float, loss: Loss) -> None:
        self.net, self.seed, self.criterion = copy.deepcopy(net).eval(), seed, loss
        self.graph = ChannelGraph.of(self.net)
        self.before = self.graph.widths
        self.scores: dict[str, list[float]] = {}
        for name in fresh:
            if (blocks := self.graph.group(name).blocks) > 1:
                raise GraphError(f"firefly does not reach {name!r}, whose channels are in {blocks} blocks; use 'he'")
        split = splittable(self.graph, fresh)
        self.splits = {name: self.before[name] if name in split else 0 for name in fresh}
        sources = {name: _appended(self.before[name], self.splits[name] + count) for name, count in fresh.items()}
        surgery = Surgery(self.graph, self.before, sources, seed)
        leaking, _ = leaks(surgery)
        old = {name: range(width) for name, width in self.before.items()}
        now = _detached(self.net)
        filters = {name: norms([part.read(now) for part in self._filters(name, old[name])]) for name in fresh}
        columns = {name: norms([part.read(now) for part in self._columns(name, old[name])]) for name in fresh}

        resize(self.net, {n: self.before[n] + self.splits[n] + fresh[n] for n in fresh}, init="he", seed=seed)
        self.base = _detached(self.net)
        for name in fresh:
            Side.taken(self._filters(name, self._copies(name)), self.base)  # they become copies of others below
        self.delta: dict[str, Side] = {}  # of a split, δ
        self.incoming: dict[str, Side] = {}  # of a brand-new channel, its filters
        self.outgoing: dict[str, Side] = {}  # of a brand-new channel, what its gate multiplies
        for name, count in fresh.items():
            new = range(self.graph.widths[name] - count, self.graph.widths[name])
            self.outgoing[name] = Side.taken(self._exits(name, new, leaking), self.base)
            if name in leaking:
                self.outgoing[name].scale(radius)
            else:
                self.outgoing[name].lengthen(radius * columns[name].mean().expand(count))
            self.incoming[name] = Side.taken(self._filters(name, new), self.base)
            self.incoming[name].confine(self._old_inputs(self.incoming[name]))
        for name, count in self.splits.items():
            self._copy(name, range(count))
            draw = surgery.generator(f"firefly/{name}")
            parts = self._filters(name, range(count))
            noise = [
                torch.randn(part.read(self.base).shape, generator=draw).to(self.base[part.tensor]) for part in parts
            ]
            self.delta[name] = Side(parts, noise)
            self.delta[name].confine(self._old_inputs(self.delta[name]))
            self.delta[name].lengthen(radius * filters[name][:count])
        for name, count in self.splits.items():  # once all rows are copied
            for channels in (range(count), self._copies(name)):
                for part in self._columns(name, channels):
                    part.add(self.base, part.read(self.base) / -2)

    # -- training ---------------------------------------------------------------------------------------------------

    def gates(self) -> dict[str, Tensor]:
        """All of them open."""
        some = next(self.net.parameters())
        return {name: some.new_ones(self.splits[name] + self.outgoing[name].count) for name in self.splits}

    def tensors(self, gates: Gates) -> dict[str, Tensor]:
        """Parameters and buffers of the network with the candidates at these gates."""
        tensors = dict(self.base)
        for name, gate in gates.items():
            fresh = gate[self.splits[name] :]
            self.incoming[name].add(tensors, torch.ones_like(fresh))
            self.outgoing[name].add(tensors, fresh)
        for name, gate in gates.items():
            splits, side = gate[: self.splits[name]], self.delta[name]
            copies = Side(self._filters(name, self._copies(name)), side.values)
            for part, copied in zip(side.parts, copies.parts, strict=True):
                copied.put(tensors, part.read(tensors))  # a copy reads the brand-new channels too
            side.add(tensors, splits)
            copies.add(tensors, -splits)
        return tensors

    def loss(self, gates: Gates, batch: Batch) -> Tensor:
        """The loss of the network with the candidates at these gates, in eval mode."""
        return self.criterion(functional_call(self.net, self.tensors(gates), (batch[0],)), batch[1])

    def train(self, batch: Batch, steps: int) -> None:
        """Take gradient steps with all candidates, their lengths kept, then score them."""
        gates = self.gates()
        sides = [*self.delta.values(), *self.incoming.values(), *self.outgoing.values()]
        for _ in range(steps):
            values = [value.requires_grad_() for side in sides for value in side.values]
            gradients = iter(torch.autograd.grad(self.loss(gates, batch), values, materialize_grads=True))
            for side in sides:
                side.descend([next(gradients) for _ in side.values])
        for gate in gates.values():
            gate.requires_grad_()
        slopes = torch.autograd.grad(self.loss(gates, batch), list(gates.values()), materialize_grads=True)
        self.scores = {name: (-slope).tolist() for name, slope in zip(gates, slopes, strict=True)}

    # -- what is kept -----------------------------------------------------------------------------------------------

    @torch.no_grad()
    def start(self, widths: Mapping[str, int]) -> dict[str, Tensor]:
        """Tensors, by name and on the CPU, that differ from the network's once the groups named have these widths.

        Of each group the candidates with the best scores come in; He's draws are what it gets beyond all of them.
        """
        gates = {name: torch.zeros_like(gate) for name, gate in self.gates().items()}
        kept = {name: list(range(self.before[name])) for name in gates}
        for name, width in widths.items():
            best = sorted(range(len(gates[name])), key=lambda i: -self.scores[name][i])[: width - self.before[name]]
            gates[name][best] = 1
            kept[name] += [self.before[name] + index for index in sorted(best)]
        tensors = self.tensors(gates)
        for name, count in self.splits.items():  # a channel that is not split after all is read as before
            whole = 1 - gates[name][:count]
            for part, copied in zip(
                self._columns(name, range(count)), self._columns(name, self._copies(name)), strict=True
            ):
                part.add(tensors, times([copied.read(tensors)], whole)[0])
        grown = copy.deepcopy(self.net)
        load(grown, tensors)
        left_out = {name: channels for name, channels in kept.items() if len(channels) < self.graph.widths[name]}
        beyond = {name: width for name, width in widths.items() if width > len(kept[name])}
        for plan in (left_out, beyond):
            if plan:
                resize(grown, plan, init="he", seed=self.seed)
        found = _detached(grown)
        return {
            tensor: found[tensor].cpu()
            for tensor, dims in self.graph.axes.items()
            if any(segment.group in widths for layout in dims.values() for segment in layout)
        }

    # -- where things are -------------------------------------------------------------------------------------------

    def _copies(self, name: str) -> range:
        """The channels that are copies."""
        return range(self.before[name], self.before[name] + self.splits[name])

    def _part(self, tensor: str, dim: int, name: str, channels: range) -> ChannelSlice:
        positions = positions_of(self.graph.axes[tensor][dim], name, self.graph.widths)
        return ChannelSlice(tensor, dim, positions[list(channels)])

    def _filters(self, name: str, channels: range) -> list[ChannelSlice]:
        """The weights that make these channels."""
        return [self._part(f"{path}.weight", 0, name, channels) for path in self.graph.group(name).producers]

    def _columns(self, name: str, channels: range) -> list[ChannelSlice]:
        """The weights that read these channels."""
        reading = [t for t, dims in self.graph.axes.items() if any(s.group == name for s in dims.get(1, ()))]
        return [self._part(tensor, 1, name, channels) for tensor in reading]

    def _exits(self, name: str, channels: range, leaking: Collection[str]) -> list[ChannelSlice]:
        """What lets these channels out."""
        if name not in leaking:
            return self._columns(name, channels)
        scales = []
        for path in self.graph.group(name).producers:
            scale = f"{self.graph.norm_after.get(path, path)}.weight"
            scales.append(scale if scale in self.base else f"{path}.weight")
        return [self._part(tensor, 0, name, channels) for tensor in scales]

    def _copy(self, name: str, channels: range) -> None:
        """Let the copies be copies of these channels, along every axis of every tensor."""
        for tensor, dims in self.graph.axes.items():
            for dim, layout in dims.items():
                if channels and any(segment.group == name for segment in layout):
                    original = self._part(tensor, dim, name, channels).read(self.base)
                    self._part(tensor, dim, name, self._copies(name)).put(self.base, original)

    def _old_inputs(self, side: Side) -> list[Tensor]:
        """Which inputs of these filters are none of the candidates: 0 or 1, to be multiplied with a filter each."""
        masks = []
        for part in side.parts:
            dims, weight = self.graph.axes[part.tensor], self.base[part.tensor]
            mask = weight.new_ones(weight.shape[1])
            for name, before in self.before.items():
                if any(segment.group == name for segment in dims.get(1, ())):
                    mask[positions_of(dims[1], name, self.graph.widths)[before:]] = 0
            masks.append(mask.reshape(-1, *[1] * (weight.dim() - 2)))
        return masks


def splittable(graph: ChannelGraph, growing: Collection[str]) -> set[str]:
    """The growing groups in which a copy of a channel can be one: nothing else arrives there or leaves from there.

    A parameter-free shortcut adds channels of the same place: it ties two groups, which must be as wide as each other
    and both split, or neither does.
    """
    widths = graph.widths
    split = set(growing) - graph.mixing
    ties = []
    for source, target in graph.joins:
        ends = {segment.group for segment in (*source, *target)}
        ties.append(ends)
        if len(source) != 1 or len(target) != 1 or layout_size(source, widths) != layout_size(target, widths):
            split -= ends
    for _ in ties:  # as far as it may have to be passed on
        for ends in ties:
            if not ends <= split:
                split -= ends
    return split


def load(net: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Copy these values into the parameters and buffers of their names."""
    live = _detached(net, copied=False)
    for name, value in tensors.items():
        live[name].copy_(value)


def _detached(net: nn.Module, copied: bool = True) -> dict[str, Tensor]:
    """Parameters and buffers by name."""
    found = {name: value.detach() for name, value in [*net.named_parameters(), *net.named_buffers()]}
    return {name: value.clone() for name, value in found.items()} if copied else found


def _appended(width: int, more: int) -> Tensor:
    """`more` channels appended, as `Surgery` takes it."""
    return torch.cat([torch.arange(width), torch.full((more,), -1)])
