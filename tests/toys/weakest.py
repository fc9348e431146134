"""A method in one file: the weakest filter of the widest layer goes until the budget fits."""

from __future__ import annotations

from dataclasses import dataclass

from budgetnet.methods.method import Images, Method, Training
from budgetnet.methods.options import Optimization
from budgetnet.methods.phases import Phase
from budgetnet.methods.plan import Plan, WidthPlan


@dataclass(frozen=True)
class Options:
    """Options of the section method: how many filters go at a time."""

    filters: int = 1


class WeakestFilter(Method):
    """Drops filters before the first step and after every epoch until the budget fits, and trains on."""

    def __init__(self, optim: Optimization, method: Options) -> None:
        super().__init__(optim)
        self.filters = method.filters

    def start(self, training: Training) -> list[Phase]:
        self.training = training
        return [Phase("shrink", None, self.optim.lr), Phase("train", None, self.optim.lr, final=True)]

    def plan(self, epochs: int, batch: Images | None) -> Plan | None:
        if self.training.phase.final:
            return None
        widest = max((g for g in self.graph.groups if g.kind == "convolution"), key=lambda group: group.width)
        norms = self.net.get_parameter(f"{widest.producers[0]}.weight").detach().flatten(1).norm(dim=1)
        keep = sorted(norms.argsort(descending=True)[: -self.filters].tolist())
        before = self.graph.widths
        after = {**before, widest.name: len(keep)}
        fits = self.training.budget.fits({**self.training.pricing.costs(after), "train_cost": 0})
        stop = next(iter(self.training.budget.limits)) if fits else None
        return WidthPlan(self.training.round + 1, before, after, stop=stop, keep={widest.name: keep})

    def apply(self, plan: Plan, batch: Images | None) -> None:
        assert isinstance(plan, WidthPlan)
        self.training.resize(plan.keep, optimizer=self.training.optimizer)
