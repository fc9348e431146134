"""The search for edges: choices drawn for every step, what they taught, and what would be kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from budgetnet.costs.edges import EdgeCosts
from budgetnet.errors import UsageError, nearest
from budgetnet.methods.edges.estimator import advantages, drawn, penalties, score_gradient
from budgetnet.methods.edges.selection import choose
from budgetnet.options import require_positive
from budgetnet.seeding import keyed_generator

CHOICES = ("learned", "random")
BASELINES = ("mean", "ema")
DECIDED = (0.02, 0.98)
"""Probabilities outside of which an edge counts as decided."""


@dataclass(frozen=True)
class SuperNetwork:
    """conf/method/bsn.yaml: how probabilities of edges are learned."""

    warmup_epochs: int = 50
    choice: str = "learned"
    cost_weight: float = 1.0
    lr: float = 0.064
    initial: float = 3.0
    baseline: str = "mean"
    decay: float = 0.9
    samples: int | None = None
    search_epochs: int | None = None
    images: int = 1024

    def __post_init__(self) -> None:
        for name, known in (("choice", CHOICES), ("baseline", BASELINES)):
            if (value := getattr(self, name)) not in known:
                raise UsageError(f"method.{name}={value!r} is unknown{nearest(value, known)}")
        require_positive("method", search_epochs=self.search_epochs, images=self.images)
        if self.warmup_epochs < 0:
            raise UsageError(f"method.warmup_epochs={self.warmup_epochs}: expected 0 or more")
        for name in ("cost_weight", "lr"):
            if not getattr(self, name) > 0:
                raise UsageError(f"method.{name}={getattr(self, name)}: expected a number above 0")
        if not 0 < self.decay < 1:
            raise UsageError(f"method.decay={self.decay}: expected a number between 0 and 1")
        if not -30 <= self.initial <= 30:
            raise UsageError(f"method.initial={self.initial}: expected a number from -30 to 30")
        if self.samples is not None and self.samples < 1:
            raise UsageError(f"method.samples={self.samples}: expected 1 or more, or null")


class EdgeSearch:
    """Logits of edges, and the choices of the running step: of all processes, which draw the same.

    costs: of the edges. limits: on what a choice may cost, by kind; above one it is penalised. All of it lives on the
    CPU, where choices are drawn and priced, in double precision.
    """

    def __init__(self, costs: EdgeCosts, limits: Mapping[str, int], options: SuperNetwork, seed: int) -> None:
        self.costs, self.options, self.seed = costs, options, seed
        self.layout = costs.layout
        self.limits = {kind: most for kind, most in limits.items() if kind != "train_cost"}
        self.shown = ("flops", "params", *(kind for kind in self.limits if kind not in ("flops", "params")))
        """Kinds of cost that are recorded."""
        count = len(self.layout.edges)
        self.logits = torch.full((count,), options.initial, dtype=torch.float64)
        self.average: float | None = None
        """Of what choices cost, for the baseline "ema"."""
        self.sampled = torch.zeros(1 + len(self.shown), dtype=torch.float64)
        """Choices of all processes since the epoch began, and the sums of their costs, as of the last `collect`."""
        self._own_sampled = torch.zeros_like(self.sampled)
        self.choices = self.alive = torch.ones(1, count, dtype=torch.bool)

    @property
    def probabilities(self) -> Tensor:
        """γ of every edge, (edges,)."""
        return torch.sigmoid(self.logits)

    def decided(self) -> float:
        """The part of the edges whose γ is near 0 or 1."""
        low, high = DECIDED
        return float(((self.probabilities < low) | (self.probabilities > high)).double().mean())

    def chosen(self, limits: Mapping[str, int], fallback: Tensor) -> Tensor:
        """bool (edges,): what would be kept within these limits; see `choose`."""
        if self.options.choice == "random":
            draws = torch.rand(len(self.logits), generator=keyed_generator("choice", self.seed))
            return choose(self.costs, limits, draws, fallback, threshold=-1.0)
        return choose(self.costs, limits, self.probabilities, fallback)

    # -- a step -----------------------------------------------------------------------------------------------------

    def draw(self, images: int, *step: int) -> None:
        """Choices of a step of so many images, of all processes: a function of the logits, the seed and the step."""
        key = keyed_generator("edges", self.seed, *step)
        count = self.options.samples or images
        self.choices = drawn(self.logits, torch.rand(count, len(self.logits), generator=key, dtype=torch.float64))
        self.alive = self.layout.alive(self.choices)

    def own(self, rank: int, world: int) -> slice:
        """Which of the step's choices are a process's."""
        count = len(self.choices) // world
        return slice(rank * count, (rank + 1) * count)

    def parts(self, images: int, rank: int, world: int, pieces: int = 1) -> Iterator[tuple[slice, Tensor]]:
        """The parts of a process's images that are passed one after the other, and their edges, (1 or images, edges).

        One for each of its choices where images share them, else `pieces`.
        """
        alive, shared = self.alive[self.own(rank, world)], self.options.samples is not None
        for place, part in enumerate(torch.arange(images).chunk(len(alive) if shared else pieces)):
            yield slice(int(part[0]), int(part[-1]) + 1), alive[place : place + 1] if shared else alive[part]

    def computed(self, images: int, world: int, pieces: int = 1) -> list[tuple[int, int]]:
        """(images, FLOPs of one) of every part of every process: of the edges that some image of the part has on."""
        parts = [part for rank in range(world) for part in self.parts(images // world, rank, world, pieces)]
        some = torch.stack([alive.any(0) for _, alive in parts])
        flops = self.costs.of(some, ("flops",))["flops"].tolist()
        return [(part.stop - part.start, cost) for (part, _), cost in zip(parts, flops, strict=True)]

    def learn(
        self, losses: Sequence[Tensor], rank: int, world: int, total: Callable[[Tensor], Tensor], *step: int
    ) -> None:
        """A step of plain gradient descent on the logits, by what this process's choices cost.

        losses: cross-entropies of the images of each of `parts`. total: the sum over processes, which all call.
        """
        choices = self.choices[self.own(rank, world)]
        key = keyed_generator("latency", self.seed, *step, rank)
        costs = self.costs.of(choices, {*self.shown, *self.limits}, key)
        self._own_sampled[0] += len(choices)
        for place, kind in enumerate(self.shown, start=1):
            self._own_sampled[place] += costs[kind].sum()
        if self.options.choice == "random":
            return
        shared = self.options.samples is not None
        spent = torch.cat([part.mean()[None] if shared else part for part in losses]).double().cpu()
        if self.limits:
            spent += self.options.cost_weight * penalties(costs, self.limits)
        baseline = None
        if self.options.baseline == "ema":
            mean, decay = float(total(spent.mean()[None])) / world, self.options.decay
            baseline = self.average
            self.average = mean if baseline is None else decay * baseline + (1 - decay) * mean
            if baseline is None:  # one of these very choices would not be independent of them
                return
        gradient = score_gradient(self.logits, choices, advantages(spent, baseline))
        self.logits -= self.options.lr * total(gradient) / world

    def collect(self, total: Callable[[Tensor], Tensor]) -> None:
        """Add what this process has sampled since the last call to that of all. All must call. Sums are exact."""
        self.sampled += total(self._own_sampled)
        self._own_sampled = torch.zeros_like(self.sampled)

    def means(self, full: Mapping[str, int]) -> dict[str, float]:
        """Of the epoch that ends, by kind, the mean cost of a choice; of a warm-up that of every edge, `full`."""
        count, *sums = self.sampled.tolist()
        self.sampled = torch.zeros_like(self.sampled)
        return {kind: s / count if count else float(full[kind]) for kind, s in zip(self.shown, sums, strict=True)}

    def check(self, images: int, world: int, pieces: int) -> None:
        """Raises UsageError where choices for `images` of a process cannot be shared out, or are too few to compare.

        pieces: that a process's images are passed in where each has its own choice.
        """
        samples, options = self.options.samples, self.options
        if samples is not None and (samples % world or images % (samples // world)):
            raise UsageError(
                f"method.samples={samples}: expected a number that {world} processes can share, and a process's part "
                f"to divide its {images} images of a step"
            )
        choices = images if samples is None else samples // world
        parts = pieces if samples is None else choices
        if images < 2 * parts and any(node.shape[1:] == (1, 1) for node in self.layout.nodes):
            raise UsageError(
                f"parts of one image, of {images} in {parts} parts: batch norms of maps of a single position need two; "
                "lower method.samples or trainer.micro_batches, or raise dataset.batch_size"
            )
        if choices < 2 and options.baseline == "mean" and options.choice == "learned":
            raise UsageError(
                f"method.baseline=mean takes the mean of a step's other choices, and a process has {choices} in all: "
                "raise method.samples or dataset.batch_size, or set method.baseline=ema"
            )

    # -- checkpoints ------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """What was learned, and the running epoch's sums; measured times too, which a continued run draws from."""
        return {
            "logits": self.logits,
            "average": self.average,
            "sampled": self.sampled,
            "latency": self.costs.latency,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict()`."""
        self.logits, self.average = state["logits"], state["average"]
        self.sampled, self.costs.latency = state["sampled"], state["latency"]
