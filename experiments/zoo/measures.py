"""What is measured of one network: trace, price, proof, growth there and back."""

from __future__ import annotations

import copy
import logging
import time
import traceback
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from budgetnet import ChannelGraph, CostModel, UsageError, resize
from experiments.zoo.networks import Network

COLUMNS = (
    "family", "network", "pixels", "state", "trace_seconds", "groups", "free", "params", "params_true", "flops",
    "flops_fvcore", "macs", "macs_torch", "grown", "proof", "proof_seconds", "torch_pruning", "message",
)  # fmt: skip


def measure(network: Network, proof: bool = True, pruning: bool = False) -> dict[str, object]:
    """A row of results.csv. state: "traced", "refused" (in one line) or "traceback"."""
    row: dict[str, object] = dict.fromkeys(COLUMNS, "")
    row.update(family=network.family, network=network.name, pixels=network.pixels)
    model = network.build()
    if pruning:
        row["torch_pruning"] = _said(lambda: _pruned(copy.deepcopy(model), network))
    ChannelGraph.trace(nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 3, 1)), torch.empty(1, 3, 8, 8))  # imports
    begin = time.process_time()
    try:
        graph = ChannelGraph.trace(model, torch.empty(network.shape))
    except UsageError as error:
        return {**row, "state": "refused", "message": str(error)}
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        return {**row, "state": "traceback", "message": f"{type(error).__name__} {error} {where.name}:{where.lineno}"}
    row.update(state="traced", trace_seconds=round(time.process_time() - begin, 2), groups=len(graph.members))
    row["message"] = "; ".join(graph.fixed)
    cost = CostModel(graph)
    row.update(params=cost.params(), params_true=_params(model), flops=cost.flops(), free=round(graph.free_share, 3))
    row["flops_fvcore"] = _said(lambda: fvcore_flops(model, network.shape))
    row.update(macs=cost.macs(), macs_torch=_said(lambda: torch_macs(copy.deepcopy(model).eval(), network.shape)))
    if proof:
        wider = {group.name: group.width + group.blocks for group in graph.groups}
        row["grown"] = _said(lambda: _grown(model, network, cost.costs(wider), wider))
        begin = time.process_time()
        row["proof"] = _said(lambda: _proven(graph))
        row["proof_seconds"] = round(time.process_time() - begin, 1)
    return row


def _said(what: Callable[[], object]) -> object:
    try:
        return what()
    except Exception as error:
        return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


def _params(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def fvcore_flops(model: nn.Module, shape: tuple[int, ...]) -> int:
    """What fvcore counts for one image in eval mode."""
    from fvcore.nn import FlopCountAnalysis

    logging.getLogger("fvcore").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        analysis = FlopCountAnalysis(copy.deepcopy(model).eval(), torch.zeros(shape))
        return int(analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).total())


def torch_macs(model: nn.Module, shape: tuple[int, ...]) -> int:
    """Multiply-accumulates of convolutions and products of one image, as torch's own counter sees them."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(shape, dtype=next(model.parameters()).dtype))
    return int(counter.get_total_flops()) // 2


def _grown(model: nn.Module, network: Network, priced: dict[str, int], wider: dict[str, int]) -> str:
    """Every group one step wider: what it costs is what was said before, and it runs."""
    twin = copy.deepcopy(model).eval()
    resize(twin, wider, init="zero_out", seed=0)
    found = {"params": _params(twin), "macs": torch_macs(twin, network.shape)}
    wrong = [f"{kind} priced {priced[kind]}, are {cost}" for kind, cost in found.items() if priced[kind] != cost]
    return "; ".join(wrong) or "as priced"


def _proven(graph: ChannelGraph) -> str:
    found = graph.verify()
    kept = sum(text == "function kept" for text in found.values())
    return f"{kept} of {len(found)} keep the function"


def _pruned(model: nn.Module, network: Network) -> str:
    """Torch-Pruning: one channel of its first convolution that another layer reads goes, and the network still runs."""
    import torch_pruning

    model.eval()
    image = torch.randn(network.shape)
    graph = torch_pruning.DependencyGraph().build_dependency(model, example_inputs=image)
    layers: list[Any] = [m for m in model.modules() if isinstance(m, nn.Conv2d) and m.groups == 1]
    layer = layers[len(layers) // 2]
    graph.get_pruning_group(layer, torch_pruning.prune_conv_out_channels, idxs=[0]).prune()
    model(image)
    return "runs"
