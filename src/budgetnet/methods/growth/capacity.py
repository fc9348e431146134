"""How saturated a layer is, and the threshold λ for which the measurement separates layers within a round."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor, nn

from budgetnet.channels import ChannelGraph
from budgetnet.optim import LBI


def sparse_sets(graph: ChannelGraph, grow_linear: bool = False) -> dict[nn.Parameter, str]:
    """The weights in which LBI selects, those of every producer of a width group, and their unit: "filter" or "entry".

    Convolutions are selected by output filter. Hidden linear layers are selected by entry, as in the paper. If they
    grow too (`grow_linear`), they are selected by output unit, because growth adds whole units. The classifier
    produces no width group.
    """
    kinds: dict[nn.Parameter, str] = {}
    for group in graph.groups:
        for path in group.producers:
            layer = graph.model.get_submodule(path)
            by_filter = isinstance(layer, nn.modules.conv._ConvNd) or grow_linear
            kinds[graph.model.get_parameter(f"{path}.weight")] = "filter" if by_filter else "entry"
    return kinds


def initial_norms(kinds: Mapping[nn.Parameter, str]) -> dict[str, float]:
    """The current mean norm over the network of each kind of unit: the L2 norm of filters, |w| of entries."""
    norms: dict[str, float] = {}
    for kind in ("filter", "entry"):
        weights = [w.detach() for w, k in kinds.items() if k == kind]
        if weights:
            units = [w.flatten(1).norm(dim=1) if kind == "filter" else w.abs().flatten() for w in weights]
            norms[kind] = torch.cat(units).mean().item()
    return norms


def selection_threshold(selection_norm: float, initial_norm: float, lr: float, nu: float, steps: int) -> float:
    """λ for which a filter is selected within `steps` steps if its time average exceeds a norm.

    The norm is `selection_norm * initial_norm`. Before a filter o is selected, Z_o = (lr/ν) Σ_t W_o(t), so that it
    enters the support exactly if ‖mean_t W_o(t)‖ > ν λ / (lr · steps).
    """
    return selection_norm * initial_norm * lr * steps / nu


def saturation(graph: ChannelGraph, optimizer: LBI, reduction: str = "max") -> dict[str, float]:
    """s = |support| / |filters| of every width group (equation 9), in 0..1, with one host synchronisation.

    reduction: "max" or "mean" over the layers that produce a group.
    """
    return selected_fractions(supports(graph, graph.widths, optimizer), reduction)


def selected_fractions(selected: Mapping[str, Sequence[Tensor]], reduction: str = "max") -> dict[str, float]:
    """The fraction of each group that is selected, in 0..1, with one host synchronisation.

    selected: for each group and each layer that produces it, which filters are selected, bool (filters,).
    reduction: "max" or "mean" over the layers of a group.
    """
    names = [name for name, layers in selected.items() for _ in layers]
    fractions = [which.to(torch.float32).mean() for layers in selected.values() for which in layers]
    values: dict[str, list[float]] = {}
    for name, value in zip(names, torch.stack(fractions).tolist() if fractions else [], strict=True):
        values.setdefault(name, []).append(value)
    return {name: max(found) if reduction == "max" else sum(found) / len(found) for name, found in values.items()}


# -- selected filters, bool (filters,), by group and layer -------------------------------------------------------------


def supports(graph: ChannelGraph, groups: Collection[str], optimizer: LBI) -> dict[str, list[Tensor]]:
    """Which filters are in the support (Γ_o ≠ 0), bool (filters,) for each layer of a group."""
    return {name: [optimizer.support(weight) for weight in _weights(graph, name)] for name in groups}


def best_scored(scores: Mapping[str, Sequence[Tensor]], quantile: float) -> dict[str, list[Tensor]]:
    """Which filters are in the best-scored fraction `quantile` of all filters, bool (filters,) for each layer.

    scores: (filters,) for each layer that produces a group. Layers compete with each other, so that the fraction of
    all filters is `quantile` whatever the scale of the scores, or less if scores are equal.
    """
    everything = torch.cat([score for layers in scores.values() for score in layers])
    threshold = torch.quantile(everything, 1 - quantile)
    return {name: [score > threshold for score in layers] for name, layers in scores.items()}


def path_norms(graph: ChannelGraph, groups: Collection[str], optimizer: LBI) -> dict[str, list[Tensor]]:
    """‖Z_o‖ of every filter, (filters,) for each layer of a group. A falling λ selects filters in order of ‖Z_o‖."""
    return {name: [optimizer.path_norms(weight) for weight in _weights(graph, name)] for name in groups}


def _weights(graph: ChannelGraph, group: str) -> list[Tensor]:
    return [graph.model.get_parameter(f"{path}.weight") for path in graph.group(group).producers]
