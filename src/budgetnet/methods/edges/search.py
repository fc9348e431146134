"""The search for edges: masks are sampled in every step, their losses train the logits, and the likely edges win."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from budgetnet.costs.edges import EdgeCosts
from budgetnet.errors import UsageError
from budgetnet.methods.edges.estimator import advantages, drawn, penalties, score_gradient
from budgetnet.methods.edges.multipliers import Multipliers
from budgetnet.methods.edges.options import AUTO, SuperNetwork
from budgetnet.methods.edges.selection import choose, filled
from budgetnet.seeding import keyed_generator

DECIDED = (0.02, 0.98)
"""An edge counts as decided if its probability is below the first or above the second number."""


class EdgeSearch:
    """The logits of edges, and the edge masks of the current step, which all processes sample alike.

    costs: prices edge masks. limits: the budget by kind; a mask that costs more is penalised. All tensors are on the
    CPU, where masks are sampled and priced in double precision.
    """

    def __init__(self, costs: EdgeCosts, limits: Mapping[str, int], options: SuperNetwork, seed: int) -> None:
        self.costs, self.options, self.seed = costs, options, seed
        self.layout = costs.layout
        self.limits = {kind: most for kind, most in limits.items() if kind != "train_cost"}
        self.shown = ("flops", "params", *(kind for kind in self.limits if kind not in ("flops", "params")))
        """The kinds of cost that are recorded."""
        count = len(self.layout.edges)
        self.logits = torch.full((count,), options.initial, dtype=torch.float64)
        self.multipliers = Multipliers(self.limits, options.lr)
        self.average: float | None = None
        """Moving average of the mean loss of masks, with penalties, for the baseline "ema"."""
        self.sampled = torch.zeros(1 + len(self.shown), dtype=torch.float64)
        """The number of masks of all processes in this epoch and the sums of their costs, as of the last `collect`."""
        self._own_sampled = torch.zeros_like(self.sampled)
        self.masks = self.alive = torch.ones(1, count, dtype=torch.bool)

    @property
    def probabilities(self) -> Tensor:
        """γ of every edge, (edges,)."""
        return torch.sigmoid(self.logits)

    def decided(self) -> float:
        """The fraction of edges whose γ is near 0 or 1."""
        low, high = DECIDED
        return float(((self.probabilities < low) | (self.probabilities > high)).double().mean())

    def chosen(self, limits: Mapping[str, int], fallback: Tensor) -> Tensor:
        """The edges that are selected within these limits, bool (edges,); see `choose`, and `filled` for "auto"."""
        if self.options.choice == "random":
            draws = torch.rand(len(self.logits), generator=keyed_generator("choice", self.seed))
            return choose(self.costs, limits, draws, fallback, threshold=-1.0)
        selected = choose(self.costs, limits, self.probabilities, fallback)
        return filled(self.costs, limits, self.probabilities, selected) if self.learns_weight else selected

    @property
    def learns_weight(self) -> bool:
        """Whether the weight of the cost is learned, so that the budget is used up."""
        return bool(self.options.cost_weight == AUTO)

    # -- a step -----------------------------------------------------------------------------------------------------

    def draw(self, images: int, *step: int) -> None:
        """Sample the masks of a step of `images` images of all processes, as a function of logits, seed and step."""
        key = keyed_generator("edges", self.seed, *step)
        count = self.options.samples or images
        self.masks = drawn(self.logits, torch.rand(count, len(self.logits), generator=key, dtype=torch.float64))
        self.alive = self.layout.alive(self.masks)

    def own(self, rank: int, world: int) -> slice:
        """Which masks of the step belong to process `rank` of `world`."""
        count = len(self.masks) // world
        return slice(rank * count, (rank + 1) * count)

    def parts(self, images: int, rank: int, world: int, pieces: int = 1) -> Iterator[tuple[slice, Tensor]]:
        """The slices of a process's images that are passed in turn, and their masks, bool (1 or images, edges).

        With `method.samples` there is one slice for each mask of the process, else there are `pieces` slices.
        """
        alive, shared = self.alive[self.own(rank, world)], self.options.samples is not None
        for place, rows in enumerate(torch.arange(images).chunk(len(alive) if shared else pieces)):
            yield slice(int(rows[0]), int(rows[-1]) + 1), alive[place : place + 1] if shared else alive[rows]

    def computed(self, images: int, world: int, pieces: int = 1) -> list[tuple[int, int]]:
        """(images, FLOPs per image) for every slice of every process, where any image of a slice turns an edge on."""
        slices = [each for rank in range(world) for each in self.parts(images // world, rank, world, pieces)]
        computed = torch.stack([alive.any(0) for _, alive in slices])
        flops = self.costs.of(computed, ("flops",))["flops"].tolist()
        return [(rows.stop - rows.start, cost) for (rows, _), cost in zip(slices, flops, strict=True)]

    def learn(
        self, losses: Sequence[Tensor], rank: int, world: int, total: Callable[[Tensor], Tensor], *step: int
    ) -> None:
        """Take a step of plain gradient descent on the logits, using the losses and costs of this process's masks.

        losses: the losses of the images of each slice, as `parts` gives them. total: sums a tensor over all processes,
        which all call it.
        """
        masks = self.masks[self.own(rank, world)]
        key = keyed_generator("latency", self.seed, *step, rank)
        costs = self.costs.of(masks, {*self.shown, *self.limits}, key)
        self._own_sampled[0] += len(masks)
        for place, kind in enumerate(self.shown, start=1):
            self._own_sampled[place] += costs[kind].sum()
        if self.options.choice == "random":
            return
        shared = self.options.samples is not None
        objective = torch.cat([each.mean()[None] if shared else each for each in losses]).double().cpu()
        if self.learns_weight:
            objective += self.multipliers.price(costs)
        elif self.limits:
            objective += self.options.cost_weight * penalties(costs, self.limits)
        baseline = None
        if self.options.baseline == "ema":
            mean, decay = float(total(objective.mean()[None])) / world, self.options.decay
            baseline = self.average
            self.average = mean if baseline is None else decay * baseline + (1 - decay) * mean
            if baseline is None:  # a baseline from the masks of this step would not be independent of them
                return
        gradient = score_gradient(self.logits, masks, advantages(objective, baseline))
        self.logits -= self.options.lr * total(gradient) / world
        if self.learns_weight:
            self.multipliers.ascend(
                {kind: float(total(costs[kind].double().mean()[None])) / world for kind in self.limits}
            )

    def collect(self, total: Callable[[Tensor], Tensor]) -> None:
        """Add this process's counts and costs since the last call to the totals; all processes must call.

        The sums are exact.
        """
        self.sampled += total(self._own_sampled)
        self._own_sampled = torch.zeros_like(self.sampled)

    def means(self, full: Mapping[str, int]) -> dict[str, float]:
        """The mean cost of a mask, by kind, in the epoch that ends, and that of all edges, `full`, in the warm-up.

        The totals are reset.
        """
        count, *sums = self.sampled.tolist()
        self.sampled = torch.zeros_like(self.sampled)
        return {kind: s / count if count else float(full[kind]) for kind, s in zip(self.shown, sums, strict=True)}

    def check(self, images: int, world: int, pieces: int) -> None:
        """Check that `images` images of each of `world` processes can be divided among the masks.

        pieces: how many slices a process passes if every image has its own mask. Raises UsageError if the masks do not
        divide the images, if a slice is too small for batch norms, or if there are too few masks for the baseline.
        """
        samples, options = self.options.samples, self.options
        if samples is not None and (samples % world or images % (samples // world)):
            raise UsageError(
                f"method.samples={samples}: expected a multiple of the number of processes, {world}, such that the "
                f"samples of each process divide its {images} images of a step"
            )
        count = images if samples is None else samples // world
        slices = pieces if samples is None else count
        if images < 2 * slices and any(node.shape[1:] == (1, 1) for node in self.layout.nodes):
            raise UsageError(
                f"{images} images in {slices} slices leave slices of one image, and batch norms of maps of a single "
                "position need two: lower method.samples or trainer.micro_batches, or raise dataset.batch_size"
            )
        if count < 2 and options.baseline == "mean" and options.choice == "learned":
            raise UsageError(
                f"method.baseline=mean takes the mean over a step's other samples, and a process has {count} in all: "
                "raise method.samples or dataset.batch_size, or set method.baseline=ema"
            )

    # -- checkpoints ------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """The logits, the baseline, the totals of the current epoch, and the measured latencies."""
        return {
            "logits": self.logits,
            "average": self.average,
            "multipliers": self.multipliers.state_dict(),
            "sampled": self.sampled,
            "latency": self.costs.latency,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore `state_dict()`."""
        self.logits, self.average = state["logits"], state["average"]
        self.multipliers.load_state_dict(state["multipliers"])
        self.sampled, self.costs.latency = state["sampled"], state["latency"]
