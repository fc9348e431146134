"""Our criteria beside those of Torch-Pruning, which many published results were made with."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch_pruning as tp
from torch import Tensor, nn

from budgetnet import ChannelGraph, backbones
from budgetnet.methods.pruning import Scores, criteria

GROUPS = {
    "vgg11": [f"conv{i}" for i in range(1, 9)],
    "resnet20": ["layer1.0.conv1", "layer2.1.conv1", "layer3.2.conv1"],  # inside a block: no shortcut carries them on
}


def magnitude(p: int) -> tp.importance.Importance:
    return tp.importance.GroupMagnitudeImportance(p=p, normalizer=None, group_reduction="first")


def trained(name: str) -> nn.Module:
    """Weights and scales in no order that a criterion could find by chance."""
    torch.manual_seed(0)
    net = backbones.build(name)
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.Conv2d):
                module.weight.mul_(torch.rand(module.weight.shape[0], 1, 1, 1) + 0.5)
            elif isinstance(module, nn.BatchNorm2d):
                module.weight.normal_()
    return net


def published(net: nn.Module, path: str, importance: tp.importance.Importance) -> Tensor:
    """(width,) scores of a convolution's filters."""
    dependencies = tp.DependencyGraph().build_dependency(net, torch.randn(1, 3, 32, 32))
    layer = net.get_submodule(path)
    assert isinstance(layer, nn.Conv2d)
    group = dependencies.get_pruning_group(layer, tp.prune_conv_out_channels, list(range(layer.out_channels)))
    return importance(group).detach().double()


def assert_same_ranking(ours: Tensor, theirs: Tensor) -> None:
    """Theirs is in single precision: what lies nearer together than that may change places."""
    steps = ours[theirs.argsort()].diff()
    assert bool((steps >= -1e-6 * ours.abs().max()).all())
    assert (
        ours.argsort()[: len(ours) // 2].sort().values.tolist()
        == theirs.argsort()[: len(ours) // 2].sort().values.tolist()
    )


@pytest.mark.parametrize("name", GROUPS)
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (criteria.l1, magnitude(1)),
        (criteria.l2, magnitude(2)),
        (criteria.norm_scale, tp.importance.BNScaleImportance()),
    ],
    ids=["l1", "l2", "norm_scale"],
)
def test_filters_are_ranked_as_torch_pruning_ranks_them(
    name: str, ours: Callable[[ChannelGraph], Scores], theirs: tp.importance.Importance
) -> None:
    net = trained(name)
    scores = ours(ChannelGraph.trace(net, torch.empty(1, 3, 32, 32)))
    for path in GROUPS[name]:
        assert_same_ranking(scores[path], published(net, path, theirs))


def test_l1_is_the_same_number() -> None:
    net = trained("resnet20")
    scores = criteria.l1(ChannelGraph.trace(net, torch.empty(1, 3, 32, 32)))
    for path in GROUPS["resnet20"]:
        assert torch.allclose(scores[path], published(net, path, magnitude(1)), rtol=1e-5)


@pytest.mark.parametrize("name", GROUPS)
def test_distances_between_filters_are_those_of_torch_pruning_where_no_weight_is_negative(name: str) -> None:
    """Torch-Pruning measures between the filters' |w|^p, and the paper between the filters themselves."""
    net = trained(name)
    importance = tp.importance.FPGMImportance(p=1, normalizer=None, group_reduction="first")
    path = GROUPS[name][1]
    graph = ChannelGraph.trace(net, torch.empty(1, 3, 32, 32))
    weight = net.get_parameter(f"{path}.weight").detach()
    flat = weight.double().flatten(1)
    by_hand = torch.stack([(flat - one).square().sum(1).sqrt().sum() for one in flat])
    assert torch.allclose(criteria.fpgm(graph)[path], by_hand, rtol=1e-7)
    weight.abs_()
    assert_same_ranking(criteria.fpgm(graph)[path], published(net, path, importance))
