"""Firefly: candidates for new channels are trained and scored before the best of them are added to the network."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from budgetnet.channels import ChannelGraph, GraphError, resize
from budgetnet.channels.graph import layout_size, positions_of
from budgetnet.channels.initialise import leaks
from budgetnet.channels.shadow import copy_of
from budgetnet.channels.width_change import WidthChange
from budgetnet.methods.growth.gradients import Loss
from budgetnet.methods.growth.slices import ChannelSlice, Side, norms, times

STEPS = 10
"""Number of gradient steps in which the candidates are trained."""
RADIUS = 0.1
"""Size of the change that a candidate makes, relative to the norm of what it changes: a filter or outgoing weights."""

Batch = tuple[Tensor, Tensor]
Gates = Mapping[str, Tensor]
"""The gates of each group, (candidates,): 0 leaves a candidate out, 1 adds it to the network."""


def firefly_candidates(
    net: nn.Module,
    new_channels: Mapping[str, int],
    batch: Batch,
    seed: int = 0,
    loss: Loss = functional.cross_entropy,
    steps: int = STEPS,
    radius: float = RADIUS,
) -> Candidates:
    """Propose, train and score new channels of the traced `net` on `batch` (inputs, targets). `net` does not change.

    Wu, Liu, Stone, Liu, "Firefly Neural Architecture Descent", NeurIPS 2020.

    new_channels: for each group that may grow, the number of new channels to propose besides a split of each channel.
    loss: maps (outputs, targets) to a scalar.
    steps: all candidates are trained together in so many gradient steps on the one batch.
    radius: the relative size of each candidate's change, which training does not alter.

    The result is a function of the arguments. Raises GraphError where there is an `obstacle`.
    """
    candidates = Candidates(net, new_channels, seed, radius, loss)
    candidates.train(batch, steps)
    return candidates


class Candidates:
    """A copy of a network that contains all candidates, each behind a gate.

    The first candidates of a group are splits of every channel, w ± gate · δ, with halved outgoing weights. The others
    are new channels, whose small outgoing weights are multiplied by the gate. A group has no splits if a copy of a
    channel would change the function: a parameter-free shortcut carries the channels to other ones, or a norm mixes
    them. The gate of a new channel that a shortcut carries on is at the scale of the norm behind its filters, or at
    the filters themselves.

    splits: the number of splits among the candidates of each group.
    scores: for each candidate of a group, the rate at which its gate lowers the loss, -∂L/∂gate, with all gates at 1.

    Raises GraphError where there is an `obstacle`.
    """

    def __init__(self, net: nn.Module, new_channels: Mapping[str, int], seed: int, radius: float, loss: Loss) -> None:
        self.net, self.seed, self.criterion = copy_of(net).eval(), seed, loss
        self.graph = ChannelGraph.of(self.net)
        self.before = self.graph.widths
        self.scores: dict[str, list[float]] = {}
        if why := obstacle(self.graph, new_channels):
            raise GraphError(f"firefly does not reach these channels, as {why}; use 'he'")
        split = splittable(self.graph, new_channels)
        self.splits = {name: self.before[name] if name in split else 0 for name in new_channels}
        sources = {
            name: _appended(self.before[name], self.splits[name] + count) for name, count in new_channels.items()
        }
        change = WidthChange(self.graph, self.before, sources, seed)
        leaking, _ = leaks(change)
        filter_norms, column_norms = self._norms(new_channels)

        resize(
            self.net, {n: self.before[n] + self.splits[n] + new_channels[n] for n in new_channels}, init="he", seed=seed
        )
        self.base = _detached(self.net)
        for name in new_channels:
            Side.taken(self._filters(name, self._copies(name)), self.base)  # `_copy` fills them below
        self.delta: dict[str, Side] = {}
        """δ of the splits."""
        self.incoming: dict[str, Side] = {}
        """The filters of new channels."""
        self.outgoing: dict[str, Side] = {}
        """The weights of new channels that their gates multiply."""
        for name, count in new_channels.items():
            self._add_new(name, count, leaking, radius, column_norms[name])
        for name, count in self.splits.items():
            self._copy(name, range(count))
            self._add_splits(name, change.generator(f"firefly/{name}"), radius * filter_norms[name][:count])
        for name in self.splits:  # after all copies have been made
            self._halve_columns(name)

    def _norms(self, names: Iterable[str]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The norms of filters and of outgoing weights, (width,) by group, before the network is widened."""
        tensors = _detached(self.net)
        filters, columns = {}, {}
        for name in names:
            channels = range(self.before[name])
            filters[name] = norms([part.read(tensors) for part in self._filters(name, channels)])
            columns[name] = norms([part.read(tensors) for part in self._columns(name, channels)])
        return filters, columns

    def _add_new(self, name: str, count: int, leaking: Collection[str], radius: float, column_norms: Tensor) -> None:
        """Move the values of the `count` new channels of a group from the network into `outgoing` and `incoming`."""
        new = range(self.graph.widths[name] - count, self.graph.widths[name])
        self.outgoing[name] = Side.taken(self._exits(name, new, leaking), self.base)
        if name in leaking:
            self.outgoing[name].scale(radius)
        else:
            self.outgoing[name].lengthen(radius * column_norms.mean().expand(count))
        self.incoming[name] = Side.taken(self._filters(name, new), self.base)
        self.incoming[name].confine(self._old_inputs(self.incoming[name]))

    def _add_splits(self, name: str, generator: torch.Generator | None, lengths: Tensor) -> None:
        """Draw the δ of each split channel of a group, with these norms, (splits,)."""
        filters = self._filters(name, range(len(lengths)))
        noise = [
            torch.randn(part.read(self.base).shape, generator=generator).to(self.base[part.tensor]) for part in filters
        ]
        self.delta[name] = Side(filters, noise)
        self.delta[name].confine(self._old_inputs(self.delta[name]))
        self.delta[name].lengthen(lengths)

    def _halve_columns(self, name: str) -> None:
        """Halve the outgoing weights of the split channels and of their copies."""
        for channels in (range(self.splits[name]), self._copies(name)):
            for part in self._columns(name, channels):
                part.add(self.base, part.read(self.base) / -2)

    # -- training ---------------------------------------------------------------------------------------------------

    def gates(self) -> dict[str, Tensor]:
        """The gates of all candidates, (candidates,) by group, fully open."""
        some = next(self.net.parameters())
        return {name: some.new_ones(self.splits[name] + self.outgoing[name].count) for name in self.splits}

    def tensors(self, gates: Gates) -> dict[str, Tensor]:
        """Parameters and buffers, by name, of the network with the candidates at these gates."""
        tensors = dict(self.base)
        for name, gate in gates.items():
            new = gate[self.splits[name] :]
            self.incoming[name].add(tensors, torch.ones_like(new))
            self.outgoing[name].add(tensors, new)
        for name, gate in gates.items():
            splits, side = gate[: self.splits[name]], self.delta[name]
            copies = Side(self._filters(name, self._copies(name)), side.values)
            for part, copied in zip(side.parts, copies.parts, strict=True):
                copied.put(tensors, part.read(tensors))  # a copy reads the new channels of other groups too
            side.add(tensors, splits)
            copies.add(tensors, -splits)
        return tensors

    def loss(self, gates: Gates, batch: Batch) -> Tensor:
        """The loss of the network with the candidates at these gates, in eval mode."""
        return self.criterion(functional_call(self.net, self.tensors(gates), (batch[0],)), batch[1])

    def train(self, batch: Batch, steps: int) -> None:
        """Take `steps` gradient steps with all candidates at fixed norms, and then score them."""
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

    # -- selection --------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def start(self, widths: Mapping[str, int]) -> dict[str, Tensor]:
        """The tensors with an axis of these groups, by name and on the CPU, after the groups have grown to `widths`.

        Each group gets the candidates with the best scores, and channels by He's initialisation if there are not
        enough.
        """
        gates = {name: torch.zeros_like(gate) for name, gate in self.gates().items()}
        selected = {name: list(range(self.before[name])) for name in gates}
        for name, width in widths.items():
            best = sorted(range(len(gates[name])), key=lambda i: -self.scores[name][i])[: width - self.before[name]]
            gates[name][best] = 1
            selected[name] += [self.before[name] + index for index in sorted(best)]
        tensors = self.tensors(gates)
        for name, count in self.splits.items():  # undo the halving for channels whose split is not selected
            whole = 1 - gates[name][:count]
            for part, copied in zip(
                self._columns(name, range(count)), self._columns(name, self._copies(name)), strict=True
            ):
                part.add(tensors, times([copied.read(tensors)], whole)[0])
        grown = copy_of(self.net)
        load(grown, tensors)
        narrower = {name: channels for name, channels in selected.items() if len(channels) < self.graph.widths[name]}
        wider = {name: width for name, width in widths.items() if width > len(selected[name])}
        for plan in (narrower, wider):
            if plan:
                resize(grown, plan, init="he", seed=self.seed)
        found = _detached(grown)
        return {
            tensor: found[tensor].cpu()
            for tensor, dims in self.graph.axes.items()
            if any(segment.group in widths for layout in dims.values() for segment in layout)
        }

    # -- slices of the network --------------------------------------------------------------------------------------

    def _copies(self, name: str) -> range:
        """The channels of a group that are copies of split channels."""
        return range(self.before[name], self.before[name] + self.splits[name])

    def _slice(self, tensor: str, dim: int, name: str, channels: range) -> ChannelSlice:
        positions = positions_of(self.graph.axes[tensor][dim], name, self.graph.widths)
        return ChannelSlice(tensor, dim, positions[list(channels)])

    def _filters(self, name: str, channels: range) -> list[ChannelSlice]:
        """The weights that produce these channels."""
        return [self._slice(f"{path}.weight", 0, name, channels) for path in self.graph.group(name).producers]

    def _columns(self, name: str, channels: range) -> list[ChannelSlice]:
        """The weights that read these channels."""
        tensors = [tensor for tensor, layout in self.graph.reading.items() if any(s.group == name for s in layout)]
        return [self._slice(tensor, self.graph.reads[tensor], name, channels) for tensor in tensors]

    def _exits(self, name: str, channels: range, leaking: Collection[str]) -> list[ChannelSlice]:
        """The weights that the gates of these channels multiply: outgoing weights, or norm scales of leaking groups."""
        if name not in leaking:
            return self._columns(name, channels)
        scales = []
        for path in self.graph.group(name).producers:
            scale = f"{self.graph.norm_after.get(path, path)}.weight"
            scales.append(scale if scale in self.base else f"{path}.weight")
        return [self._slice(tensor, 0, name, channels) for tensor in scales]

    def _copy(self, name: str, channels: range) -> None:
        """Fill the copies with the values of these channels, along every axis of every tensor."""
        for tensor, dims in self.graph.axes.items():
            for dim, layout in dims.items():
                if channels and any(segment.group == name for segment in layout):
                    original = self._slice(tensor, dim, name, channels).read(self.base)
                    self._slice(tensor, dim, name, self._copies(name)).put(self.base, original)

    def _old_inputs(self, side: Side) -> list[Tensor]:
        """For each slice a mask that is 1 at inputs from the original network and 0 at those from candidates.

        It is shaped so that it multiplies the filters of the slice.
        """
        masks = []
        for part in side.parts:
            dims, weight = self.graph.axes[part.tensor], self.base[part.tensor]
            mask = weight.new_ones(weight.shape[1])
            for name, before in self.before.items():
                if any(segment.group == name for segment in dims.get(1, ())):
                    mask[positions_of(dims[1], name, self.graph.widths)[before:]] = 0
            masks.append(mask.reshape(-1, *[1] * (weight.dim() - 2)))
        return masks


def obstacle(graph: ChannelGraph, names: Collection[str]) -> str | None:
    """Why there are no candidates for these groups, or None.

    A grouped convolution or a GroupNorm reads a group in blocks, or no weight reads it.
    """
    read = {segment.group for layout in graph.reading.values() for segment in layout}
    for name in names:
        if (blocks := graph.group(name).blocks) > 1:
            return f"the channels of {name!r} are in {blocks} blocks"
        if name not in read:
            return f"no layer reads the channels of {name!r}"
    return None


def splittable(graph: ChannelGraph, growing: Collection[str]) -> set[str]:
    """The growing groups whose channels can be split: a copy of a channel with halved outgoing weights changes nothing.

    A norm that mixes channels prevents this. A parameter-free shortcut adds channels of equal index, so that the two
    groups it joins must have equal widths, and either both are split or neither is.
    """
    widths = graph.widths
    split = set(growing) - graph.mixing
    ties = []
    for source, target in graph.joins:
        ends = {segment.group for segment in (*source, *target)}
        ties.append(ends)
        if len(source) != 1 or len(target) != 1 or layout_size(source, widths) != layout_size(target, widths):
            split -= ends
    for _ in ties:  # a group that cannot be split may rule out others through a chain of ties
        for ends in ties:
            if not ends <= split:
                split -= ends
    return split


def load(net: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Copy these values into the parameters and buffers of the same names."""
    live = _detached(net, copied=False)
    for name, value in tensors.items():
        live[name].copy_(value)


def _detached(net: nn.Module, copied: bool = True) -> dict[str, Tensor]:
    """Parameters and buffers by name."""
    found = {name: value.detach() for name, value in [*net.named_parameters(), *net.named_buffers()]}
    return {name: value.clone() for name, value in found.items()} if copied else found


def _appended(width: int, more: int) -> Tensor:
    """The indices of `width` channels and then -1 for `more` new ones, as `WidthChange` takes them."""
    return torch.cat([torch.arange(width), torch.full((more,), -1)])
