"""How saturated a layer is, and the clock that makes the measurement mean something."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from budgetnet.channels import ChannelGraph
from budgetnet.optim import LBI

REDUCTIONS = ("max", "mean")


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
    """s = |support| / |filters| of every width group (equation 9), in 0..1, with one host synchronisation.

    Where several layers produce one width, `reduction` ("max" or "mean") joins them.
    """
    names: list[str] = []
    shares: list[Tensor] = []
    for group in graph.groups:
        for path in group.producers:
            names.append(group.name)
            support = optimizer.support(graph.model.get_parameter(f"{path}.weight"))
            shares.append(support.to(torch.float32).mean())
    values: dict[str, list[float]] = {}
    for name, value in zip(names, torch.stack(shares).tolist() if shares else [], strict=True):
        values.setdefault(name, []).append(value)
    return {name: _reduce(found, reduction) for name, found in values.items()}


def _reduce(values: Sequence[float], reduction: str) -> float:
    return max(values) if reduction == "max" else sum(values) / len(values)
