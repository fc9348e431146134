from __future__ import annotations

import copy
import random
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from budgetnet import ChannelGraph, CostModel, UsageError, backbones, resize
from budgetnet.methods.growth import GrowthRule, Limit, Planner
from budgetnet.methods.growth.options import Growth
from budgetnet.methods.growth.policy import CANDIDATES
from budgetnet.methods.plan import WidthPlan

SHAPES = {"lenet5": (1, 28, 28)}


def cost_model(name: str, **options: object) -> CostModel:
    net = backbones.build(name, **options)  # type: ignore[arg-type]
    return CostModel(ChannelGraph.trace(net, torch.empty(1, *SHAPES.get(name, (3, 32, 32)))))


COSTS = {name: cost_model(name, seed_width=6) for name in ("lenet5", "vgg11", "resnet20", "resnet18")}


def planner(cost: CostModel, most: int = 64, **rule: object) -> Planner:
    growing = {group.name: most for group in cost.graph.groups if group.kind == "convolution"}
    return Planner(cost, GrowthRule(**rule), growing)  # type: ignore[arg-type]


def limits(cost: CostModel, **factors: float) -> list[Limit]:
    return [Limit(kind, kind, int(cost.costs()[kind] * factor)) for kind, factor in factors.items()]


def single_channel(cost: CostModel, widths: dict[str, int], form: str, names: list[str]) -> int:
    price = {name: cost.price(form, cost.vector({**widths, name: widths[name] + 1})) for name in names}
    return max(price.values()) - cost.price(form, cost.vector(widths))


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_no_budget_is_ever_exceeded_and_a_reached_one_is_used_to_99_percent(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(COSTS)))
    cost = COSTS[name]
    rule = {
        "policy": data.draw(st.sampled_from(sorted(CANDIDATES))),
        "threshold": data.draw(st.floats(0, 0.99)),
        "number": data.draw(st.integers(0, 40)),
        "ratio": data.draw(st.floats(0.01, 6)),
        "cost_ratio": data.draw(st.floats(0.1, 9)),
    }
    plans = planner(cost, most=data.draw(st.integers(8, 200)), **rule)
    saturation = {group: data.draw(st.floats(0, 1)) for group in plans.max_widths}
    kinds = data.draw(st.sets(st.sampled_from(["flops", "params"]), min_size=1))
    given_limits = limits(cost, **{kind: data.draw(st.floats(1, 30)) for kind in sorted(kinds)})
    scores = {group: [data.draw(st.floats(-1, 1)) for _ in range(6)] for group in plans.max_widths}
    plan = plans.plan(1, saturation, given_limits, scores=scores)

    after = dict(plan.after)
    used = {limit.kind: cost.price(limit.form, cost.vector(after)) / limit.most for limit in given_limits}
    assert all(part <= 1 for part in used.values())
    assert all(before <= after[group] for group, before in plan.before.items())
    assert all(after[group] <= max(plans.max_widths[group], plan.before[group]) for group in plans.max_widths)
    assert set(plan.changes) <= plans.max_widths.keys()
    if plan.stop in used:
        assert plan.stop == max(used, key=used.__getitem__)
        not_full = [g for g in plans.max_widths if after[g] < plans.max_widths[g]]
        cheap = all(single_channel(cost, after, kind, not_full) < 0.01 * lim.most for lim in given_limits
                    for kind in [lim.form]) if not_full else False  # fmt: skip
        if cheap:
            assert max(used.values()) >= 0.99
    assert plans.plan(1, saturation, given_limits, scores=scores) == plan


def test_exactly_the_groups_above_the_threshold_grow_by_the_larger_of_number_and_ratio() -> None:
    cost = COSTS["vgg11"]
    plans = planner(cost, policy="saturation", threshold=0.8, number=3, ratio=0.25)
    saturation = dict.fromkeys(plans.max_widths, 0.5) | {"conv2": 0.81, "conv4": 0.8}
    assert plans.plan(1, saturation, limits(cost, flops=10)).changes == {"conv2": 9}
    assert planner(cost, policy="saturation", threshold=0.8, number=1, ratio=1.0).plan(
        1, saturation, limits(cost, flops=10)
    ).changes == {"conv2": 12}


def test_nobody_above_the_threshold_ends_growth_by_saturation() -> None:
    cost = COSTS["vgg11"]
    plan = planner(cost).plan(1, {}, limits(cost, flops=10))
    assert (plan.changes, plan.stop) == ({}, "saturation")


def test_everybody_at_the_largest_width_ends_growth_by_max_width() -> None:
    cost = COSTS["vgg11"]
    plans = planner(cost, most=6)
    plan = plans.plan(1, dict.fromkeys(plans.max_widths, 1.0), limits(cost, flops=10))
    assert (plan.changes, plan.stop) == ({}, "max_width")


def test_the_last_round_is_clipped_evenly_and_topped_up() -> None:
    cost = COSTS["resnet20"]
    plans = planner(cost, policy="saturation", number=20, ratio=0)
    budget = limits(cost, flops=4)
    plan = plans.plan(1, dict.fromkeys(plans.max_widths, 1.0), budget)
    assert plan.clipped and plan.stop == "flops"
    assert max(plan.after.values()) - min(plan.after.values()) <= 2
    assert cost.flops(plan.after) <= budget[0].most
    assert all(cost.flops({**plan.after, name: width + 1}) > budget[0].most for name, width in plan.after.items()
               if name in plans.max_widths)  # fmt: skip


def test_train_cost_ends_growth_when_another_round_would_not_fit() -> None:
    cost = COSTS["resnet20"]
    plans = planner(cost, policy="saturation", number=1, ratio=0)
    now = cost.flops()
    everybody = dict.fromkeys(plans.max_widths, 1.0)
    roomy = plans.plan(1, everybody, [Limit("train_cost", "flops", 10 * now, 8 * now)])
    assert roomy.stop is None
    last = plans.plan(1, everybody, [Limit("train_cost", "flops", 3 * now, now)])
    assert last.stop == "train_cost"
    assert 0.99 * 3 * now <= cost.flops(last.after) <= 3 * now


def test_residual_networks_keep_their_proportions_unless_something_else_is_asked_for() -> None:
    assert {name: planner(cost).policy for name, cost in COSTS.items()} == {
        "lenet5": "cost_aware", "vgg11": "cost_aware", "resnet20": "uniform", "resnet18": "uniform"
    }  # fmt: skip
    residual = COSTS["resnet20"]
    assert planner(residual, policy="random").policy == "random"
    assert planner(residual, shortcuts="pad").policy == Growth(readout="importance").policy == "cost_aware"
    assert Growth().policy is None


def test_features_that_are_multiplied_or_put_side_by_side_are_no_residual_network() -> None:
    class Net(nn.Module):
        def __init__(self, meet: Callable[[Tensor, Tensor], Tensor]) -> None:
            super().__init__()
            self.one, self.other, self.meet = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1), meet
            self.scale = nn.Parameter(torch.ones(4, 1, 1))
            self.head = nn.Conv2d(meet(*torch.zeros(2, 1, 4, 1, 1)).shape[1], 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.meet(self.one(x) + self.scale, self.other(x)))

    def residual(meet: Callable[[Tensor, Tensor], Tensor]) -> bool:
        return ChannelGraph.trace(Net(meet), torch.empty(1, 3, 8, 8)).residual

    assert residual(torch.add) and residual(lambda a, b: a.relu_().add_(b))
    assert not residual(torch.mul) and not residual(lambda a, b: torch.cat((a, b), 1))
    assert not residual(lambda a, b: a * torch.sigmoid(b + 1))


def grown(cost: CostModel, saturation: float | dict[str, float], most: list[Limit], **rule: object) -> list[WidthPlan]:
    """All rounds of growth with these saturations throughout; `cost`'s network is left as it is."""
    net = copy.deepcopy(cost.graph.model)
    plans = planner(CostModel(ChannelGraph.of(net)), most=4096, **{"policy": "cost_aware", **rule})
    s = saturation if isinstance(saturation, dict) else dict.fromkeys(plans.max_widths, saturation)
    rounds = [plans.plan(1, s, most)]
    while rounds[-1].stop is None:
        resize(net, rounds[-1].changes)
        rounds.append(plans.plan(len(rounds) + 1, s, most))
    return rounds


def test_cost_aware_growth_ends_at_the_same_widths_from_any_seed() -> None:
    most = [Limit("flops", "flops", 4_000_000)]
    ends = [grown(cost_model("vgg11", seed_width=width), 0.5, most)[-1].after for width in (2, 4, 8)]
    for name, width in ends[0].items():
        assert all(abs(other[name] - width) <= max(1, 0.03 * width) for other in ends[1:])


def test_where_a_layer_alone_pays_for_its_width_cost_aware_growth_meets_the_closed_form() -> None:
    """-Σ s/w under Σ c·w has its greatest value where every w² c / s is the same."""
    net = nn.Sequential(*(nn.Sequential(nn.Conv2d(16, 4, 3, groups=1), nn.Conv2d(4, 16, 1)) for _ in range(3)))
    cost = CostModel(ChannelGraph.trace(net, torch.empty(1, 16, 60, 60)))
    inner = [f"{i}.0" for i in range(3)]
    outer = [group.name for group in cost.graph.groups if group.name not in inner]
    s = dict.fromkeys(inner, 0.5) | dict.fromkeys(outer, 0.0) | {"1.0": 1.0}
    end = grown(cost, s, limits(cost, flops=20))[-1].after
    assert all(end[name] == 16 for name in outer)
    price = {name: cost.flops({**end, name: end[name] + 1}) - cost.flops(end) for name in inner}
    values = [end[name] ** 2 * price[name] / s[name] for name in inner]
    assert max(values) / min(values) < 1.1
    assert end["1.0"] > 1.3 * end["2.0"]


def test_rounds_of_cost_aware_growth_rise_by_one_ratio_and_the_last_meets_the_budget() -> None:
    cost = COSTS["vgg11"]
    rounds = grown(cost, 1.0, limits(cost, flops=10), cost_ratio=0.5)
    spent = [cost.flops(plan.before) for plan in rounds] + [cost.flops(rounds[-1].after)]
    rises = [after / before for before, after in pairwise(spent)]
    assert len(rises) == 6 and [plan.stop for plan in rounds] == [None] * 5 + ["flops"]
    assert all(rise == pytest.approx(10 ** (1 / 6), rel=0.07) for rise in rises)


def test_a_scarce_budget_of_parameters_keeps_late_layers_narrow() -> None:
    cost = COSTS["vgg11"]
    loose, scarce = (grown(cost, 1.0, limits(cost, flops=10, params=p))[-1].after for p in (100, 3))
    assert scarce["conv8"] < loose["conv8"] / 2
    assert cost.params(scarce) <= 3 * cost.params()


def test_a_layer_without_saturation_grows_when_nobody_else_can_and_none_at_all_ends_growth() -> None:
    cost = COSTS["vgg11"]
    alone = planner(cost, most=7, policy="cost_aware")
    plan = alone.plan(1, dict.fromkeys(alone.max_widths, 0.0) | {"conv2": 1.0}, limits(cost, flops=1.08))
    assert plan.after["conv2"] == 7 and plan.stop == "flops" and len(plan.changes) > 1
    saturation = dict.fromkeys(planner(cost).max_widths, 0.5) | {"conv2": 0.0}
    assert grown(cost, saturation, limits(cost, flops=10))[-1].after["conv2"] == 6
    plan = planner(cost, policy="cost_aware").plan(1, {}, limits(cost, flops=10))
    assert (plan.changes, plan.stop) == ({}, "saturation")


def test_balanced_growth_is_cost_aware_growth_that_takes_no_measurement() -> None:
    cost = COSTS["resnet20"]
    most = limits(cost, flops=2)
    everybody = dict.fromkeys(planner(cost).max_widths, 1.0)
    balanced = planner(cost, policy="balanced").plan(1, {}, most)
    assert balanced.after == planner(cost, policy="cost_aware").plan(1, everybody, most).after


def test_layers_that_grow_alike_stay_at_one_multiple_of_the_networks_widths_round_after_round() -> None:
    cost = cost_model("resnet20", multiplier=0.25)
    first = cost.graph.widths
    rounds = grown(cost, 0.0, limits(cost, flops=8), policy="uniform")
    assert [plan.stop for plan in rounds] == [None] * 5 + ["flops"]
    for plan in rounds:
        grows = [(plan.after[name], width) for name, width in first.items() if plan.after[name] > width]
        assert max((after - 1) / width for after, width in grows) <= min((after + 1) / width for after, width in grows)
    spent = [cost.flops(plan.before) for plan in rounds]
    assert all(1.3 < after / before < 1.7 for before, after in pairwise(spent))


def test_layers_grow_alike_in_the_proportions_that_are_given_and_in_whole_steps() -> None:
    cost = cost_model("vgg11", seed_width=8)
    growing = {group.name: 4096 for group in cost.graph.groups if group.kind == "convolution"}
    given_widths = {**cost.graph.widths, **{f"conv{i}": 100 * i for i in range(1, 9)}}
    plans = Planner(cost, GrowthRule(policy="uniform", round_to=8), growing, proportions=given_widths)
    after = plans.plan(1, {}, [Limit("flops", "flops", 20 * cost.flops())]).after
    assert [after[f"conv{i}"] for i in range(1, 9)] == [8, 8, 16, 16, 24, 24, 32, 32]  # the steps nearest to 4 i


def test_widths_do_not_fall_along_shortcuts_that_pad() -> None:
    cost = cost_model("resnet20", seed_width=6)
    full = {
        **dict.fromkeys(cost.graph.widths, 0.01),
        "conv1": 1.0,
        "layer2.0.conv2": 1.0,
    }  # wide where it would be cropped
    plans = [
        planner(cost, policy="cost_aware", shortcuts=s).plan(1, full, limits(cost, flops=3)) for s in (None, "pad")
    ]
    streams = [[plan.after[source[0].group] for source, _ in cost.graph.joins] for plan in plans]
    assert any(first > second for first, second in pairwise(streams[0]))
    assert all(first <= second for first, second in pairwise(streams[1])) and plans[1].changes


def test_random_growth_chooses_as_many_groups_as_saturation_would() -> None:
    cost = COSTS["resnet20"]
    saturated = random.Random(0).sample(sorted(planner(cost).max_widths), 5)
    saturation = dict.fromkeys(saturated, 0.9)
    chosen = [planner(cost, policy="random").plan(r, saturation, limits(cost, flops=99)).candidates for r in (1, 1, 2)]
    assert chosen[0] == chosen[1] != chosen[2]
    assert len(chosen[0]) == 5


def test_widths_are_rounded() -> None:
    cost = COSTS["vgg11"]
    plans = planner(cost, policy="saturation", round_to=8, number=1, ratio=0)
    plan = plans.plan(1, dict.fromkeys(plans.max_widths, 1.0), limits(cost, flops=10))
    assert set(plan.changes.values()) == {8}


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({"policy": "saturated"}, "did you mean 'saturation'"),
        ({"number": -1}, "growth.number"),
        ({"number": 0, "ratio": 0.0}, "growth.number"),
        ({"threshold": 1.0}, "growth.threshold"),
        ({"round_to": 0}, "growth.round_to"),
        ({"shortcuts": "crop"}, "expected pad or null"),
        ({"shortcuts": "pad", "policy": "uniform"}, "use cost_aware or balanced"),
    ],
)
def test_impossible_rules_are_refused(rule: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        GrowthRule(**rule)  # type: ignore[arg-type]


def test_a_plan_prints_what_will_happen() -> None:
    cost = COSTS["lenet5"]
    plans = planner(cost, policy="saturation", number=2, ratio=0)
    plan = plans.plan(3, {"conv1": 1.0, "conv2": 0.1}, limits(cost, flops=9))
    assert repr(plan) == "WidthPlan(round 3: conv1 6->8)"
