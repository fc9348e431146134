"""Plain training of a fixed network: the full backbone, a width multiplier, or widths that another run found."""

from __future__ import annotations

from collections.abc import Mapping

from budgetnet.channels import ChannelGraph
from budgetnet.channels.untrained import resize_untrained
from budgetnet.channels.upsampled import upsampled
from budgetnet.costs.pricing import EdgePricing
from budgetnet.errors import UsageError
from budgetnet.methods.edges.selection import keep_edges
from budgetnet.methods.method import Method, Training
from budgetnet.methods.options import Optimization, Source
from budgetnet.methods.phases import Phase
from budgetnet.runs.summaries import edges_of_run, widths_of_run

_WIDEST = 64.0  # times the full widths


class Train(Method):
    """SGD with momentum on a network whose widths never change ("train-scratch-base" of the paper's Table 4)."""

    needs_budget = False

    def __init__(self, optim: Optimization, method: Source) -> None:
        super().__init__(optim)
        self.source = method.widths_from

    def start(self, training: Training) -> list[Phase]:
        """Raises UsageError for a budget below the costs of the network, and for widths of another backbone."""
        self.training = training
        if self.source is not None and training.weights is not None:
            raise UsageError(f"method.widths_from={self.source} draws new weights: leave it out, or the trained ones")
        if self.source is not None:
            self._take(self.source)
        costs = self._costs(self.graph.widths)
        for kind, limit in training.budget.limits.items():
            if costs[kind] > limit:
                raise UsageError(
                    f"budget.{kind}={limit:,} is below the {costs[kind]:,} of this fixed network, which method=train "
                    "does not change: raise the budget, or lower backbone.multiplier or epochs"
                )
        return [self.optim.phase("train", training.epochs, final=True)]

    def _take(self, source: str) -> None:
        """Give the network the edges and the widths of another run."""
        if (edges := edges_of_run(source)) is not None:
            pricing = self.training.pricing
            fabric = pricing.fabric if isinstance(pricing, EdgePricing) else None
            if unknown := set(edges) - set(fabric.edges if fabric else ()):
                raise UsageError(
                    f"method.widths_from={source}: it has the edge {min(unknown)!r}, which this backbone does not have"
                )
            if fabric is not None:
                keep_edges(fabric, edges)
        widths, graph = widths_of_run(source), self.graph
        if graph.widths.keys() - widths.keys():
            raise UsageError(f"method.widths_from={source}: its width groups are not those of this backbone")
        own = {name: width for name, width in widths.items() if name in graph.widths}
        resize_untrained(self.net, own, self.training.seed)

    def _costs(self, widths: Mapping[str, int]) -> dict[str, int]:
        """The costs, by kind, of the network at these widths, with the train cost of all epochs."""
        training = self.training
        costs = training.pricing.costs() | training.pricing.model.costs(widths)
        return {**costs, "train_cost": training.epochs * training.ledger.images_per_epoch * costs["flops"]}


class Width(Train):
    """Plain training of the backbone with all convolution widths multiplied by the largest number that fits."""

    needs_budget = True
    no_weights = "it draws a network of other widths: use method=l1 or another that prunes"

    def __init__(self, optim: Optimization) -> None:
        super().__init__(optim, Source())

    def start(self, training: Training) -> list[Phase]:
        """Raises UsageError also for a budget that is exceeded with one filter per layer."""
        self.training = training
        graph, budget = self.graph, training.budget

        def fits(multiplier: float) -> bool:
            return budget.fits(self._costs(scaled_widths(graph, multiplier)))

        if not fits(0.0):
            raise UsageError(f"{budget}: one filter in every convolution that can change already costs more; raise it")
        low, high = 0.0, 1.0
        while fits(high) and high < _WIDEST:
            low, high = high, 2 * high
        for _ in range(50):
            middle = (low + high) / 2
            low, high = (middle, high) if fits(middle) else (low, middle)
        resize_untrained(self.net, scaled_widths(graph, low), training.seed)
        return super().start(training)


def scaled_widths(graph: ChannelGraph, multiplier: float, linear: bool = False) -> dict[str, int]:
    """The widths of a traced network with those of convolutions times `multiplier`, rounded, at least one filter.

    linear: whether those of linear layers are multiplied, too.
    """
    widths, made = graph.widths, upsampled(graph)
    for group in graph.groups:
        if linear or group.kind == "convolution" or group.name in made:
            widths[group.name] = max(1, round(group.width * multiplier / group.blocks)) * group.blocks
    return widths
