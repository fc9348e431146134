from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from nets import Odd
from torch import nn

from budgetnet import ChannelGraph, backbones, resize
from budgetnet.channels import GraphError
from budgetnet.costs import CostModel
from budgetnet.methods.pruning import CoupledChannels, allocate, channels_to_keep, coupled_channels, criteria

SHAPES = {"lenet5": (1, 28, 28)}


def traced(name: str, seed_width: int | None = None) -> ChannelGraph:
    torch.manual_seed(0)
    net = backbones.build(name, seed_width=seed_width)
    return ChannelGraph.trace(net, torch.empty(1, *SHAPES.get(name, (3, 32, 32))))


def random_scores(graph: ChannelGraph) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {group.name: torch.rand(group.width, generator=generator) for group in graph.groups}


def joined_widths() -> ChannelGraph:
    """A CIFAR ResNet whose stages are joined at unequal widths, as growth leaves it."""
    widths = {name: 3 + number % 5 for number, name in enumerate(backbones.full_widths("resnet20"))}
    return ChannelGraph.trace(backbones.build("resnet20", widths=widths), torch.empty(1, 3, 32, 32))


GRAPHS = {
    **{name: lambda name=name: traced(name, 4) for name in ("lenet5", "vgg16", "resnet20", "resnet18", "resnet50")},
    "unequal": joined_widths,
    "odd": lambda: ChannelGraph.trace(Odd(), torch.empty(1, 3, 8, 8)),
}


@pytest.mark.parametrize("name", GRAPHS)
def test_sets_partition_all_filters(name: str) -> None:
    graph = GRAPHS[name]()
    members = [
        (group, i) for each in coupled_channels(graph) for group in each.groups for i in range(each.start, each.stop)
    ]
    filters = [(g.name, i) for g in graph.groups if g.kind == "convolution" for i in range(g.width)]
    assert len(members) == len(set(members))
    assert set(members) == set(filters)


@pytest.mark.parametrize("name", GRAPHS)
def test_resize_takes_what_is_kept_and_the_network_has_the_widths_that_were_priced(name: str) -> None:
    graph = GRAPHS[name]()
    cost, found = CostModel(graph), coupled_channels(graph)
    counts = [max(1, len(each) * 2 // 3 // each.blocks) * each.blocks for each in found]
    plan = channels_to_keep(found, random_scores(graph), counts)
    wanted = {**graph.widths, **allocate.widths(found, counts)}
    costs = cost.costs(wanted)
    resize(graph.model, plan)
    assert graph.widths == wanted
    assert CostModel(graph).costs() == costs
    assert sum(parameter.numel() for parameter in graph.model.parameters()) == costs["params"]
    graph.model(torch.randn(2, *graph.input_shape[1:]))


def test_inner_sets_are_the_first_convolutions_of_the_blocks() -> None:
    graph = traced("resnet20")
    inner = coupled_channels(graph, "inner")
    assert [each.groups for each in inner] == [(f"layer{s}.{b}.conv1",) for s in (1, 2, 3) for b in (0, 1, 2)]
    assert all((each.start, each.stop, each.blocks) == (0, graph.widths[each.groups[0]], 1) for each in inner)


def test_joined_groups_share_the_channels_that_they_all_have() -> None:
    """A ResNet-20 has 16, 32 and 64 channels in its stages; the shortcuts add the first 16 all the way through."""
    chains = [each for each in coupled_channels(traced("resnet20")) if len(each.groups) > 1]
    stages = [tuple(f"layer{s}.{b}.conv2" for b in (0, 1, 2)) for s in (1, 2, 3)]
    assert chains == [
        CoupledChannels(("conv1", *stages[0], *stages[1], *stages[2]), 0, 16),
        CoupledChannels((*stages[1], *stages[2]), 16, 32),
        CoupledChannels(stages[2], 32, 64),
    ]


def test_a_shortcut_still_adds_every_channel_to_the_one_of_the_same_origin() -> None:
    """Blocks that only pass on, and channels that carry their own number: what arrives is the list of those kept."""
    graph = traced("resnet20")
    net = graph.model.eval()
    with torch.no_grad():
        for name, module in net.named_modules():
            if isinstance(module, nn.BatchNorm2d):
                numbered = {"bn1": (0, 16), "layer2.0.bn2": (16, 32), "layer3.0.bn2": (32, 64)}
                start, stop = numbered.get(name, (0, 0))
                module.weight.zero_()
                module.bias.zero_()
                module.bias[start:stop] = torch.arange(start, stop) + 1.0
    found = coupled_channels(graph)
    plan = channels_to_keep(found, random_scores(graph), [len(each) // 2 for each in found])
    resize(net, plan)
    arriving: dict[str, torch.Tensor] = {}
    for path in ("layer1.0.conv1", "layer1.2.conv1", "layer2.1.conv1", "layer3.2.conv1", "fc"):
        net.get_submodule(path).register_forward_pre_hook(lambda _, x, path=path: arriving.update({path: x[0]}))
    net(torch.randn(1, 3, 32, 32))
    sources = ("conv1", "layer1.1.conv2", "layer2.0.conv2", "layer3.1.conv2", "layer3.2.conv2")
    for (path, x), source in zip(arriving.items(), sources, strict=True):
        numbers = x.reshape(x.shape[1], -1)[:, 0].round().int() - 1
        assert numbers.tolist() == plan[source], path


@pytest.mark.parametrize("aligned", [True, False])
def test_removing_silent_channels_keeps_the_function_if_and_only_if_the_joined_stay_aligned(aligned: bool) -> None:
    graph = traced("resnet20")
    net = graph.model.double().eval()
    found, scores = coupled_channels(graph), random_scores(graph)
    plan = channels_to_keep(found, scores, [len(each) // 2 for each in found])
    with torch.no_grad():
        for group in graph.groups:
            silent = [i for i in range(group.width) if i not in plan[group.name]]
            norm = net.get_submodule(graph.norm_after[group.name])
            norm.weight[silent], norm.bias[silent] = 0, 0
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    before = net(images)
    if not aligned:  # one group keeps another channel than those that it is added to
        silent = next(i for i in range(16) if i not in plan["layer1.1.conv2"])
        plan["layer1.1.conv2"] = sorted([silent, *plan["layer1.1.conv2"][1:]])
    resize(net, plan)
    assert torch.allclose(net(images), before, atol=1e-9) == aligned


def test_a_joined_channel_has_the_mean_score_of_its_groups() -> None:
    scores = {"a": torch.tensor([1.0, 5.0, 2.0]), "b": torch.tensor([2.0, 0.0, 9.0, 7.0])}
    assert CoupledChannels(("a", "b"), 0, 3).scores(scores).tolist() == [1.5, 2.5, 5.5]
    assert CoupledChannels(("a", "b"), 0, 3).best(scores, 2) == [1, 2]
    assert CoupledChannels(("b",), 3, 4).best(scores, 1) == [3]


def test_of_equal_channels_the_first_stay() -> None:
    assert CoupledChannels(("a",), 0, 5).best({"a": torch.zeros(5)}, 3) == [0, 1, 2]


def test_blocks_lose_equally_many() -> None:
    graph = ChannelGraph.trace(Odd(), torch.empty(1, 3, 8, 8))
    found = {each.groups[0]: each for each in coupled_channels(graph)}
    assert (found["mix"].blocks, found["grouped"].blocks, found["left"].blocks) == (3, 3, 1)
    scores = {"mix": torch.arange(12.0)}  # the last block has the highest, and keeps no more than the others
    assert found["mix"].best(scores, 6) == [2, 3, 6, 7, 10, 11]


class Shortcut(nn.Module):
    """A block around `inside`, whose result is added to what `source` gives."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.first, self.second = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 4, 3, padding=1)
        self.block = nn.Conv2d(8 if kind == "concatenated" else 4, 6 if kind == "blocks" else 8, 3, padding=1)
        self.norm = nn.GroupNorm(2, 6 if kind == "blocks" else 8)
        self.last = nn.Conv2d(self.norm.num_channels, 4, 1)
        self.classifier = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first = F.relu(self.first(x))
        carried = torch.cat([first, F.relu(self.second(x))], dim=1) if self.kind == "concatenated" else first
        out = self.block(carried)
        out = self.norm(out) if self.kind in ("blocks", "equal blocks") else out
        out = out + backbones.match_channels(x if self.kind == "image" else carried, out)
        return self.classifier(F.relu(self.last(F.relu(out))).mean((2, 3)))


@pytest.mark.parametrize(
    ("kind", "prunable"),
    [
        ("plain", {"first", "block", "last"}),
        ("image", {"first", "last"}),
        ("concatenated", {"last"}),
        ("blocks", {"last"}),
    ],
)
def test_channels_that_a_shortcut_adds_to_others_than_their_equals_stay(kind: str, prunable: set[str]) -> None:
    net = Shortcut(kind)
    if kind != "concatenated":
        del net.second
    graph = ChannelGraph.trace(net, torch.empty(1, 3, 8, 8))
    found = coupled_channels(graph)
    assert {name for each in found for name in each.groups} == prunable
    before = copy.deepcopy(graph.widths)
    resize(net, channels_to_keep(found, random_scores(graph), [len(each) // 2 for each in found]))
    assert {name for name, width in graph.widths.items() if width != before[name]} == prunable
    net(torch.randn(1, 3, 8, 8))


def test_joined_groups_in_blocks_of_one_width_lose_equally_many_in_each() -> None:
    class Blocks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.block, self.norm = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.GroupNorm(2, 8)
            self.classifier = nn.Linear(8, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.first(x)
            out = self.norm(self.block(x))
            return self.classifier((out + backbones.match_channels(x, out)).mean((2, 3)))

    graph = ChannelGraph.trace(Blocks(), torch.empty(1, 3, 4, 4))
    (each,) = coupled_channels(graph)
    assert each == CoupledChannels(("first", "block"), 0, 8, blocks=2)
    plan = channels_to_keep([each], {name: torch.arange(8.0) for name in each.groups}, [4])
    assert plan == {"first": [2, 3, 6, 7], "block": [2, 3, 6, 7]}
    resize(graph.model, plan)


def test_a_list_that_the_sets_would_not_give_is_refused() -> None:
    graph = ChannelGraph.trace(Odd(), torch.empty(1, 3, 8, 8))
    with pytest.raises(GraphError, match="equally many in each of its 3 blocks"):
        resize(graph.model, {"mix": [0, 1, 2, 3, 4, 5]})


def test_scores_of_several_producers_add_up_and_depthwise_layers_have_none() -> None:
    graph = ChannelGraph.trace(Odd(), torch.empty(1, 3, 8, 8))
    scores = criteria.l1(graph)
    assert {name: len(score) for name, score in scores.items()} == {
        group.name: group.width for group in graph.groups if group.kind == "convolution"
    }
    layers = [graph.model.get_parameter(f"{path}.weight") for path in ("stem", "attention.expand", "pointwise")]
    by_hand = sum(weight.detach().double().abs().flatten(1).sum(1) for weight in layers)
    assert torch.allclose(scores["stem"], by_hand)


def test_a_filter_near_the_median_of_the_others_matters_least() -> None:
    graph = traced("lenet5")
    with torch.no_grad():
        weight = graph.model.get_parameter("conv1.weight")
        weight[3] = weight[[i for i in range(len(weight)) if i != 3]].mean(0)
    assert int(criteria.fpgm(graph)["conv1"].argmin()) == 3


def test_a_convolution_without_a_norm_has_no_scale_to_be_pruned_by() -> None:
    with pytest.raises(ValueError, match=r"conv1 has none behind it; use another method") as refusal:
        criteria.norm_scale(traced("lenet5"))
    assert "\n" not in str(refusal.value)
