"""Which groups grow, and by how much, within the budget: from saturations to a WidthPlan."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from budgetnet.channels.graph import Graph
from budgetnet.costs.model import CostModel
from budgetnet.errors import RunError
from budgetnet.methods.growth.options import ROUNDS_BY_COST, GrowthRule
from budgetnet.methods.plan import WidthPlan

_MOST_FORESEEN = 1000
FULL = 0.99
"""A budget of which this fraction is used counts as reached."""


@dataclass(frozen=True)
class Limit:
    """The limit `form`(widths) <= `most`, which a budget of `kind` puts on a closed form, "flops" or "params".

    next_most: the limit that the network must meet if another growth round is to follow; None if it is the same.
    """

    kind: str
    form: str
    most: int
    next_most: int | None = None


class Planner:
    """Plans the growth rounds of a network by a rule, with its closed-form costs.

    max_widths: the largest allowed width of each group that may grow; the others keep their width.
    proportions: the widths in whose proportions the policy "uniform" grows; None for the network's own.
    """

    def __init__(
        self,
        cost: CostModel,
        rule: GrowthRule,
        max_widths: Mapping[str, int],
        seed: int = 0,
        proportions: Mapping[str, int] | None = None,
    ) -> None:
        self.cost, self.rule, self.max_widths, self.seed = cost, rule, dict(max_widths), seed
        self.proportions = dict(proportions or cost.graph.widths)
        self.policy = rule.policy or usual_policy(cost.graph)
        joined = [(s[0].group, t[0].group) for s, t in cost.graph.joins if rule.shortcuts and len(s) == len(t) == 1]
        self.ordered = [(s, t) for s, t in joined if s is not None and t is not None and s != t]
        """Pairs of groups, the first of which may not get wider than the second."""
        self.step = {
            group.name: math.lcm(group.blocks, rule.round_to) for group in cost.graph.groups if group.name in max_widths
        }

    def plan(
        self,
        round: int,
        saturation: Mapping[str, float],
        limits: Sequence[Limit],
        gradients: Mapping[str, float] | None = None,
        scores: Mapping[str, Sequence[float]] | None = None,
    ) -> WidthPlan:
        """Propose new widths, clip them to the limits, and fill the budget with single channels once it is reached.

        saturation: s of each group, in 0..1.
        gradients: the score of each group for the policy "gradient" (`growth_gradients`).
        scores: the scores of the candidate channels of each group for the policy "firefly" (`firefly_candidates`).

        The plan is a function of the arguments and the current widths. `stop` is the kind of the limit that was
        reached, "saturation" if no group is a candidate, or "max_width" if every group has its largest width.
        """
        before = self.cost.graph.widths
        open_groups = [name for name in self.max_widths if self._next(name, before[name]) <= self.max_widths[name]]
        candidates = CANDIDATES[self.policy](self, open_groups, round, saturation, gradients or {})
        wanted = self._wanted(before, candidates, saturation, limits)
        if self.policy == "firefly":
            wanted = self._best_scored(before, sum(wanted.values()) - sum(before.values()), open_groups, scores or {})
            candidates = [name for name in open_groups if wanted[name] > before[name]]
        if wanted == before:
            ended = "saturation" if open_groups else "max_width"
            return WidthPlan(round, before, before, dict(saturation), stop=ended)
        after, clipped = self._clip(before, wanted, limits)
        reached = clipped or not self._room_to_go_on(after, limits)
        if reached:
            after = self._top_up(after, self._ranked(candidates, saturation), limits, wanted)
            for order in (candidates, list(self.max_widths)):
                after = self._top_up(after, self._ranked(order, saturation), limits, self.max_widths, FULL)
        used = self._used(after, limits)
        if not self._fits(after, limits):
            raise RunError(f"the plan of round {round} exceeds the budget ({used}), which is an error of this program")
        stop = max(used, key=used.__getitem__) if reached else None
        return WidthPlan(round, before, after, dict(saturation), tuple(candidates), clipped=clipped, stop=stop)

    def used(self, limits: Sequence[Limit]) -> float:
        """The largest fraction of a limit that the network uses now."""
        return max(self._used(self.cost.graph.widths, limits).values())

    def course(self, limits: Sequence[Limit]) -> list[float]:
        """The fractions of the budget that are used after each round to come, the last of which is 1.

        A policy that does not go by costs is taken to widen every group in every round, so it may need more of them.
        """
        widths = dict(self.cost.graph.widths)
        used = [self.used(limits)]
        while used[-1] < FULL and len(used) < _MOST_FORESEEN:
            if self.policy in ROUNDS_BY_COST:
                used.append(self._next_use(used[-1]))
                continue
            ratio, number = self.rule.ratio, self.rule.number
            wider = {name: max(widths[name] + number, int(widths[name] * (1 + ratio))) for name in self.max_widths}
            wider = {name: min(self._round_up(name, width), self._widest(name)) for name, width in wider.items()}
            if all(widths[name] >= width for name, width in wider.items()):
                break
            widths.update(wider)
            used.append(min(1.0, max(self._used(widths, limits).values())))
        return used[1:]

    # -- how much ---------------------------------------------------------------------------------------------------

    def _wanted(
        self,
        before: Mapping[str, int],
        candidates: Sequence[str],
        saturation: Mapping[str, float],
        limits: Sequence[Limit],
    ) -> dict[str, int]:
        if self.policy == "cost_aware":
            return self._cost_aware(before, candidates, saturation, limits)
        if self.policy == "balanced":
            return self._cost_aware(before, candidates, dict.fromkeys(candidates, 1.0), limits)
        if self.policy == "uniform":
            return self._uniform(before, candidates, limits)
        return {**before, **{name: self.wider(name) for name in candidates}}

    def wider(self, name: str) -> int:
        """The width to which the rule lets a group grow, at most its largest width."""
        width = self.cost.graph.group(name).width
        more = max(width + self.rule.number, math.floor(width * (1 + self.rule.ratio) + 1e-9))
        return min(self._round_up(name, more), self._widest(name))

    @property
    def increases(self) -> dict[str, int]:
        """The number of channels by which the rule would widen each group that may grow."""
        return {name: max(0, self.wider(name) - self.cost.graph.group(name).width) for name in self.max_widths}

    def _best_scored(
        self, before: Mapping[str, int], count: int, groups: Sequence[str], scores: Mapping[str, Sequence[float]]
    ) -> dict[str, int]:
        """Widths with `count` more channels, taken from the candidates that score best over all groups.

        If a group grows in steps of several channels, a step is scored by their mean.
        """
        steps = []
        for name in groups:
            ranked, width = sorted(scores.get(name, ()), reverse=True), before[name]
            while (wider := self._next(name, width)) <= min(self.max_widths[name], before[name] + len(ranked)):
                together = ranked[width - before[name] : wider - before[name]]
                steps.append((sum(together) / len(together), name, wider))
                width = wider
        wanted = dict(before)
        for _, name, wider in sorted(steps, key=lambda step: -step[0]):
            if sum(wanted.values()) - sum(before.values()) >= count:
                break
            wanted[name] = wider
        return wanted

    def _cost_aware(
        self,
        before: Mapping[str, int],
        candidates: Sequence[str],
        saturation: Mapping[str, float],
        limits: Sequence[Limit],
    ) -> dict[str, int]:
        """Add channels one by one to the group in which -Σ s/width rises most relative to the cost of the channels.

        This assumes that the error due to a layer's finite width falls as 1/width. The cost of channels is the sum over
        all budgets of the fraction of the remaining budget that they use, so that a scarcer budget counts more. With
        equal saturations, growth tends to costs per layer in proportion to 1/width: widths rise by 2^(2/3) where the
        resolution halves, whatever the seed network was. Every round raises the cost by the same ratio, the largest
        one up to 1 + cost_ratio for which the last round meets the budget.
        """
        w = self.cost.vector(before)
        room = {limit: max(limit.most - self.cost.price(limit.form, w), 1) for limit in limits}
        names = self.cost.names
        index = np.array([names.index(name) for name in candidates], dtype=np.int64)
        s = np.array(
            [max(saturation.get(name, 0.0), 1e-6) for name in candidates]
        )  # 0 counts if no other group can grow
        multiple = np.array([self.step[name] for name in candidates], dtype=np.int64)
        most = np.array([self.max_widths[name] for name in candidates], dtype=np.int64)
        target = self._next_use(max(self._used(before, limits).values()))
        while max(self._used_at(w, limits).values()) < target:
            now = w[index]
            step = (now // multiple + 1) * multiple - now
            steps = np.ones_like(w)
            steps[index] = step
            rises = {limit: self.cost.rises(limit.form, w, steps)[index] for limit in limits}
            fits = now + step <= most
            for group, bound in self.ordered:
                fits &= (index != names.index(group)) | (now + step <= w[names.index(bound)])
            for limit, rise in rises.items():
                fits &= rise <= limit.most - self.cost.price(limit.form, w)
            price = sum((rise / room[limit] for limit, rise in rises.items()), np.full(len(index), 1e-12))
            gain = np.where(fits, s * step / (now * (now + step)) / price, 0.0)
            if not len(gain) or gain.max() <= 0:
                break
            w[index[gain.argmax()]] += step[gain.argmax()]
        return {**before, **{name: int(w[i]) for name, i in zip(candidates, index, strict=True)}}

    def _uniform(self, before: Mapping[str, int], candidates: Sequence[str], limits: Sequence[Limit]) -> dict[str, int]:
        """Multiply the proportions by the least common factor that uses what this round is to use of the budget.

        A width is the nearest possible one, and never falls. Every round raises the cost by the same ratio, as by cost.
        """
        target = self._next_use(max(self._used(before, limits).values()))

        def at(factor: float) -> dict[str, int]:
            nearest = {g: round(factor * self.proportions[g] / self.step[g]) * self.step[g] for g in candidates}
            return {**before, **{g: max(before[g], min(width, self._widest(g))) for g, width in nearest.items()}}

        widest = {**before, **{g: self._widest(g) for g in candidates}}
        low, high = 0.0, 1.0
        while max(self._used(at(high), limits).values()) < target and at(high) != widest:
            high *= 2
        for _ in range(50):
            middle = (low + high) / 2
            low, high = (middle, high) if max(self._used(at(middle), limits).values()) < target else (low, middle)
        return at(high)

    def _next_use(self, used: float) -> float:
        """The fraction of the budget to use after the next round, if rounds of equal ratio are to use all of it."""
        rounds = max(1, math.ceil(math.log(1 / max(used, 1e-9)) / math.log1p(self.rule.cost_ratio) - 1e-9))
        return float(min(1.0, used ** (1 - 1 / rounds)))

    # -- within the limits ------------------------------------------------------------------------------------------

    def _fits(self, widths: Mapping[str, int], limits: Sequence[Limit]) -> bool:
        now = self.cost.graph.widths if self.ordered else {}
        if any(widths[group] > max(widths[bound], now[group]) for group, bound in self.ordered):
            return False
        w = self.cost.vector(widths)
        return all(self.cost.price(limit.form, w) <= limit.most for limit in limits)

    def _used(self, widths: Mapping[str, int], limits: Sequence[Limit]) -> dict[str, float]:
        return self._used_at(self.cost.vector(widths), limits)

    def _used_at(self, w: np.ndarray, limits: Sequence[Limit]) -> dict[str, float]:
        return {limit.kind: self.cost.price(limit.form, w) / max(limit.most, 1) for limit in limits}

    def _room_to_go_on(self, widths: Mapping[str, int], limits: Sequence[Limit]) -> bool:
        """Whether another round fits, the budget is not used up, and a group that may grow has room for a channel.

        Groups at their largest widths do not count: if there is no other, the next round ends growth by "max_width".
        """
        w = self.cost.vector(widths)
        if any(limit.next_most is not None and self.cost.price(limit.form, w) > limit.next_most for limit in limits):
            return False
        if max(self._used(widths, limits).values(), default=0) >= FULL:
            return False
        narrower = [name for name in self.max_widths if self._next(name, widths[name]) <= self.max_widths[name]]
        return not narrower or any(self._fits({**widths, n: self._next(n, widths[n])}, limits) for n in narrower)

    def _clip(
        self, before: Mapping[str, int], wanted: Mapping[str, int], limits: Sequence[Limit]
    ) -> tuple[dict[str, int], bool]:
        """The widths with the largest common fraction of all increases that fits, and whether it is below 1."""
        if self._fits(wanted, limits):
            return dict(wanted), False

        def at(fraction: float) -> dict[str, int]:
            return {
                name: max(width, self._round_down(name, width + fraction * (wanted[name] - width)))
                if wanted[name] > width
                else width
                for name, width in before.items()
            }

        low, high = 0.0, 1.0
        for _ in range(30):
            middle = (low + high) / 2
            low, high = (middle, high) if self._fits(at(middle), limits) else (low, middle)
        return at(low), True

    def _top_up(
        self,
        widths: Mapping[str, int],
        order: Sequence[str],
        limits: Sequence[Limit],
        most: Mapping[str, int],
        enough: float = math.inf,
    ) -> dict[str, int]:
        """Add single channels to the groups in turn, in this order, up to `most` in each group.

        Stop when no group has room for a channel, or when the fraction `enough` of a budget is used.
        """
        widths = dict(widths)
        waiting = list(order)
        while waiting:
            fitted = []
            for name in waiting:
                if max(self._used(widths, limits).values()) >= enough:
                    return widths
                wider = self._next(name, widths[name])
                if wider <= most[name] and self._fits({**widths, name: wider}, limits):
                    widths[name] = wider
                    fitted.append(name)
            waiting = fitted
        return widths

    # -- widths -----------------------------------------------------------------------------------------------------

    def _ranked(self, names: Sequence[str], saturation: Mapping[str, float]) -> list[str]:
        return sorted(names, key=lambda name: -saturation.get(name, 0.0))

    def _next(self, name: str, width: int) -> int:
        return (width // self.step[name] + 1) * self.step[name]

    def _round_up(self, name: str, width: float) -> int:
        return math.ceil(width / self.step[name]) * self.step[name]

    def _round_down(self, name: str, width: float) -> int:
        return math.floor(width / self.step[name]) * self.step[name]

    def _widest(self, name: str) -> int:
        return max(self._round_down(name, self.max_widths[name]), self.cost.graph.group(name).width)


def usual_policy(graph: Graph) -> str:
    """The policy where none is asked for: uniform on a residual network, cost_aware on any other.

    On residual networks the proportions of the backbone do better than those that cost_aware ends at, or no worse
    (experiments/study_residual); on a plain one it is the other way round (experiments/study_capacity).
    """
    return "uniform" if graph.residual else "cost_aware"


ByGroup = Mapping[str, float]


def _saturated(p: Planner, groups: Sequence[str], round: int, saturation: ByGroup, gradients: ByGroup) -> list[str]:
    """Every group with s > τ, as in the paper (equation 9)."""
    return [name for name in groups if saturation.get(name, 0.0) > p.rule.threshold]


def _if_any(p: Planner, groups: Sequence[str], round: int, saturation: ByGroup, gradients: ByGroup) -> list[str]:
    """Every group, or none if no group has a saturated filter."""
    return list(groups) if any(saturation.get(name, 0.0) > 0 for name in groups) else []


def _every(p: Planner, groups: Sequence[str], round: int, saturation: ByGroup, gradients: ByGroup) -> list[str]:
    return list(groups)


def _random(p: Planner, groups: Sequence[str], round: int, saturation: ByGroup, gradients: ByGroup) -> list[str]:
    """As many groups as the policy "saturation" would select, at random."""
    count = len(_saturated(p, groups, round, saturation, gradients))
    chosen = random.Random(f"{p.seed}/{round}").sample(sorted(groups), count)
    return [name for name in groups if name in chosen]


def _gradient(p: Planner, groups: Sequence[str], round: int, saturation: ByGroup, gradients: ByGroup) -> list[str]:
    """As many groups as the policy "saturation" would select, those whose new channels have the largest gradients."""
    count = len(_saturated(p, groups, round, saturation, gradients))
    chosen = sorted(groups, key=lambda name: -gradients.get(name, 0.0))[:count]
    return [name for name in groups if name in chosen]


CANDIDATES: dict[str, Callable[[Planner, Sequence[str], int, ByGroup, ByGroup], list[str]]] = {
    "saturation": _saturated,
    "cost_aware": _if_any,  # `_cost_aware` decides by how much
    "balanced": _every,  # the same with all saturations equal
    "uniform": _every,
    "random": _random,
    "gradient": _gradient,
    "firefly": _saturated,  # for the number of channels; `_best_scored` decides where
}
"""Select the groups that grow in a round among those below their largest width."""
