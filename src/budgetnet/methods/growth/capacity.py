"""How saturated a layer is, and the clock that makes the measurement mean something."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor, nn

from budgetnet.channels import ChannelGraph
from budgetnet.optim import LBI

REDUCTIONS = ("max", "mean")
READOUTS = ("path", "support")


def sparse_sets(graph: ChannelGraph, grow_linear: bool = False) -> dict[nn.Parameter, str]:
    """The weights that LBI selects from -> "filter" or "entry": every producer of a width group.

    Convolutions are selected by output filter. Hidden linear layers are selected by entry, as in the paper, unless
    they grow too (`grow_linear`): then by unit, since a unit is what is added. The classifier produces no group.
    """
    kinds: dict[nn.Parameter, str] = {}
    for group in graph.groups:
        for path in group.producers:
            layer = graph.model.get_submodule(path)
            by_filter = isinstance(layer, nn.Conv2d) or grow_linear
            kinds[graph.model.get_parameter(f"{path}.weight")] = "filter" if by_filter else "entry"
    return kinds


def initial_norms(kinds: Mapping[nn.Parameter, str]) -> dict[str, float]:
    """Mean norm of one unit of selection over the network now: a filter's L2 norm, an entry's absolute value."""
    norms: dict[str, float] = {}
    for kind in ("filter", "entry"):
        weights = [w.detach() for w, k in kinds.items() if k == kind]
        if weights:
            units = [w.flatten(1).norm(dim=1) if kind == "filter" else w.abs().flatten() for w in weights]
            norms[kind] = torch.cat(units).mean().item()
    return norms


def selection_threshold(selection_norm: float, initial_norm: float, lr: float, nu: float, steps: int) -> float:
    """λ for which a filter is selected within `steps` steps iff its time-averaged norm exceeds the bar.

    The bar is `selection_norm * initial_norm`. Until it is selected Z_o = (lr/ν) Σ_t W_o(t), so the filter enters the
    support iff ‖mean_t W_o(t)‖ > ν λ / (lr · steps).
    """
    return selection_norm * initial_norm * lr * steps / nu


def saturation(graph: ChannelGraph, optimizer: LBI, reduction: str = "max") -> dict[str, float]:
    """s = |support| / |filters| of every width group (equation 9), in 0..1, with one host synchronisation."""
    return selected_fractions(supports(graph, graph.widths, optimizer), reduction)


def selected_fractions(selected: Mapping[str, Sequence[Tensor]], reduction: str = "max") -> dict[str, float]:
    """What part of each group is selected, in 0..1, with one host synchronisation.

    selected: group -> which filters are, for each layer that produces it; `reduction` ("max" or "mean") joins those.
    """
    names = [name for name, layers in selected.items() for _ in layers]
    parts = [which.to(torch.float32).mean() for layers in selected.values() for which in layers]
    values: dict[str, list[float]] = {}
    for name, value in zip(names, torch.stack(parts).tolist() if parts else [], strict=True):
        values.setdefault(name, []).append(value)
    return {name: max(found) if reduction == "max" else sum(found) / len(found) for name, found in values.items()}


# -- what is selected: group -> (filters,) bools, for each layer that produces it --------------------------------------


def supports(graph: ChannelGraph, groups: Collection[str], optimizer: LBI) -> dict[str, list[Tensor]]:
    """Where Γ ≠ 0."""
    return {name: [optimizer.support(weight) for weight in _weights(graph, name)] for name in groups}


def best_scored(scores: Mapping[str, Sequence[Tensor]], quantile: float) -> dict[str, list[Tensor]]:
    """The filters that are among the best-scored part `quantile` of all filters together.

    scores: group -> (filters,) for each layer that produces it. Layers are compared with one another, so that no bar
    decides how many saturate: the mean over all filters is `quantile`, or less where scores are equal.
    """
    everything = torch.cat([score for layers in scores.values() for score in layers])
    threshold = torch.quantile(everything, 1 - quantile)
    return {name: [score > threshold for score in layers] for name, layers in scores.items()}


def path_norms(graph: ChannelGraph, groups: Collection[str], optimizer: LBI) -> dict[str, list[Tensor]]:
    """‖Z_o‖ of every filter, (filters,) for each layer of a group: the order in which a falling λ would select them."""
    return {name: [optimizer.path_norms(weight) for weight in _weights(graph, name)] for name in groups}


def _weights(graph: ChannelGraph, group: str) -> list[Tensor]:
    return [graph.model.get_parameter(f"{path}.weight") for path in graph.group(group).producers]
