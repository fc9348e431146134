"""What is measured of one network: trace, price, proof, growth there and back."""

from __future__ import annotations

import copy
import logging
import math
import time
import traceback
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from budgetnet import ChannelGraph, CostModel, UsageError, resize
from experiments.zoo.networks import Network

COLUMNS = (
    "family", "network", "pixels", "state", "trace_seconds", "groups", "free", "params", "params_true", "flops",
    "flops_fvcore", "grown", "proof", "proof_seconds", "torch_pruning", "message",
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


def outputs(model: nn.Module, images: Tensor) -> Tensor:
    """All that a network returns, in one."""
    with torch.no_grad():
        return torch.cat([leaf.flatten() for leaf in tree_leaves(model(images)) if isinstance(leaf, Tensor)])


def _grown(model: nn.Module, network: Network, priced: dict[str, int], wider: dict[str, int]) -> str:
    """Every group one step wider, with zero-out, and back: the function, the price and the tensors."""
    twin = copy.deepcopy(model).double().eval()
    generator = torch.Generator().manual_seed(0)
    images = torch.randn((2, *network.shape[1:]), generator=generator, dtype=torch.float64)
    before, state = outputs(twin, images), copy.deepcopy(twin.state_dict())
    narrow, mixing = ChannelGraph.of(twin).widths, ChannelGraph.of(twin).mixing
    resize(twin, wider, init="zero_out", seed=0)
    after = outputs(twin, images)
    said = []
    if priced["params"] != _params(twin):
        said.append(f"params priced {priced['params']}, are {_params(twin)}")
    flops = fvcore_flops(twin.float(), network.shape)
    if priced["flops"] != flops:
        said.append(f"flops priced {priced['flops']}, fvcore {flops}")
    twin.double()
    difference = float((after - before).abs().max()) if after.shape == before.shape else math.inf
    if not difference <= 1e-9 * max(1.0, float(before.abs().max())):
        said.append("mixing" if mixing else f"function changed by {difference:.0e}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        resize(twin, narrow)
    changed = [n for n, v in twin.state_dict().items() if v.shape != state[n].shape]
    if changed:
        said.append(f"narrowed back, {changed[0]} has another shape")
    return "; ".join(said) or "function kept"


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
    outputs(model, image)
    return "runs"
