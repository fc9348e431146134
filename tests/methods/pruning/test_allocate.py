from __future__ import annotations

import pytest
import torch
from nets import Odd

from budgetnet import ChannelGraph, backbones, resize
from budgetnet.costs import CostModel
from budgetnet.methods.pruning import CoupledChannels, channels_to_keep, coupled_channels, criteria
from budgetnet.methods.pruning.allocate import Fits, by_error, fits, ranked, uniform, widths


@pytest.fixture(scope="module", params=["resnet20", "vgg16"])
def graph(request: pytest.FixtureRequest) -> ChannelGraph:
    torch.manual_seed(0)
    return ChannelGraph.trace(backbones.build(request.param), torch.empty(1, 3, 32, 32))


ALLOCATIONS = {"uniform": uniform, "ranked": ranked, "by_error": by_error}


@pytest.mark.parametrize("allocation", ALLOCATIONS)
@pytest.mark.parametrize("share", [0.5, 0.2])
@pytest.mark.parametrize("kind", ["flops", "params"])
def test_a_budget_is_met_and_used(graph: ChannelGraph, allocation: str, share: float, kind: str) -> None:
    cost, found, scores = CostModel(graph), coupled_channels(graph), criteria.l1(graph)
    limit = int(share * cost.costs()[kind])
    counts = ALLOCATIONS[allocation](found, scores, fits(cost, {kind: limit}))
    used = cost.costs({**graph.widths, **widths(found, counts)})[kind]
    assert 0.99 * limit <= used <= limit
    assert all(1 <= count <= len(each) for each, count in zip(found, counts, strict=True))
    plan = channels_to_keep(found, scores, counts)
    assert {name: len(channels) for name, channels in plan.items()} == widths(found, counts)


def test_several_limits_are_all_met_and_one_is_used(graph: ChannelGraph) -> None:
    cost, found = CostModel(graph), coupled_channels(graph)
    full = cost.costs()
    limits = {"flops": full["flops"] // 2, "params": full["params"] // 3}
    for allocation in ALLOCATIONS.values():
        counts = allocation(found, criteria.l2(graph), fits(cost, limits))
        used = cost.costs({**graph.widths, **widths(found, counts)})
        shares = [used[kind] / most for kind, most in limits.items()]
        assert max(shares) <= 1
        assert max(shares) >= 0.99


@pytest.mark.parametrize("allocation", ALLOCATIONS)
def test_no_channel_that_would_fit_is_left_out(graph: ChannelGraph, allocation: str) -> None:
    cost, found = CostModel(graph), coupled_channels(graph)
    within = fits(cost, {"flops": cost.flops() // 3})
    counts = ALLOCATIONS[allocation](found, criteria.l1(graph), within)
    for number, each in enumerate(found):
        if counts[number] < len(each):
            assert not within(widths(found, [c + (i == number) for i, c in enumerate(counts)]))


@pytest.mark.parametrize("allocation", ALLOCATIONS)
def test_a_budget_of_everything_removes_nothing(graph: ChannelGraph, allocation: str) -> None:
    cost, found = CostModel(graph), coupled_channels(graph)
    within = fits(cost, {"flops": cost.flops(), "params": cost.params()})
    assert ALLOCATIONS[allocation](found, criteria.l1(graph), within) == [len(each) for each in found]


@pytest.mark.parametrize("allocation", ALLOCATIONS)
def test_the_least_there_is_stays_when_nothing_fits(graph: ChannelGraph, allocation: str) -> None:
    found = coupled_channels(graph)
    counts = ALLOCATIONS[allocation](found, criteria.l1(graph), fits(CostModel(graph), {"flops": 1}))
    assert counts == [1] * len(found)


def sum_to(most: int) -> Fits:
    return lambda found: sum(found.values()) <= most


COUPLED = [CoupledChannels(("a",), 0, 10), CoupledChannels(("b",), 0, 20)]


def test_uniform_keeps_the_same_share_of_every_set() -> None:
    scores = {"a": torch.ones(10), "b": torch.full((20,), 9.0)}
    assert uniform(COUPLED, scores, sum_to(15)) == [5, 10]
    assert sum(uniform(COUPLED, scores, sum_to(16))) == 16


def test_ranked_keeps_the_best_of_the_whole_network() -> None:
    scores = {"a": torch.arange(10.0), "b": torch.arange(20.0) / 2 + 4.75}  # the 12 best: 9 … 9 of b, and 3 of a
    counts = ranked(COUPLED, scores, sum_to(12))
    best = torch.cat([scores["a"], scores["b"]]).sort(descending=True).values[:12]
    assert counts == [int(torch.isin(scores[name], best).sum()) for name in ("a", "b")]


def test_ranked_keeps_one_of_a_set_that_has_none_among_the_best() -> None:
    assert ranked(COUPLED, {"a": torch.zeros(10), "b": torch.ones(20)}, sum_to(21)) == [1, 20]


def test_by_error_takes_most_where_the_scores_are_in_few_channels() -> None:
    """a: one channel has 99 % of the sum; b: all are equal. A common error of 1/2 leaves 1 of a and half of b."""
    concentrated = torch.full((10,), 0.01 / 9)
    concentrated[4] = 0.99
    assert by_error(COUPLED, {"a": concentrated, "b": torch.ones(20)}, sum_to(11)) == [1, 10]


def test_by_error_loses_an_equal_part_of_the_scores_in_every_set() -> None:
    torch.manual_seed(0)
    many = [CoupledChannels(("a",), 0, 400), CoupledChannels(("b",), 0, 800)]
    scores = {"a": torch.rand(400) ** 4, "b": torch.rand(800)}
    counts = by_error(many, scores, sum_to(500))
    lost = [
        float(scores[name].sort().values[: len(each) - count].sum() / scores[name].sum())
        for name, each, count in zip(("a", "b"), many, counts)
    ]
    assert lost[0] == pytest.approx(lost[1], abs=0.01)
    assert sum(counts) == 500


@pytest.mark.parametrize("allocation", ALLOCATIONS)
def test_counts_are_multiples_of_the_blocks(allocation: str) -> None:
    graph = ChannelGraph.trace(Odd(), torch.empty(1, 3, 8, 8))
    cost, found, scores = CostModel(graph), coupled_channels(graph), criteria.l1(graph)
    for share in (0.3, 0.5, 0.7, 0.9):
        counts = ALLOCATIONS[allocation](found, scores, fits(cost, {"flops": int(share * cost.flops())}))
        assert all(count % each.blocks == 0 and count >= each.blocks for each, count in zip(found, counts))
        assert cost.flops({**graph.widths, **widths(found, counts)}) <= share * cost.flops()
    resize(graph.model, channels_to_keep(found, scores, counts))
    graph.model(torch.randn(2, 3, 8, 8))


@pytest.mark.parametrize(
    ("allocation", "value"), [("uniform", 0.0), ("uniform", 1.0), ("ranked", 0.0), ("ranked", 1.0), ("by_error", 1.0)]
)
def test_equal_scores_give_every_set_the_same_share(allocation: str, value: float) -> None:
    scores = {"a": torch.full((10,), value), "b": torch.full((20,), value)}
    assert ALLOCATIONS[allocation](COUPLED, scores, sum_to(18)) == [6, 12]


def test_by_error_takes_channels_without_a_score_first() -> None:
    assert by_error(COUPLED, {"a": torch.zeros(10), "b": torch.ones(20)}, sum_to(15)) == [1, 14]
