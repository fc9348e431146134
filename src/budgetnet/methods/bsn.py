"""Budgeted super networks: which edges of a large network to keep is learned (Veniat and Denoyer, CVPR 2018)."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from budgetnet.backbones.fabric import Fabric
from budgetnet.channels import ChannelGraph
from budgetnet.costs import Budget, CostModel, TrainCostLedger
from budgetnet.costs.edges import EdgeCosts
from budgetnet.costs.latency import edge_latencies, latency_of
from budgetnet.data.sharding import keyed_generator
from budgetnet.errors import UsageError, nearest
from budgetnet.methods.options import FineTuning, Optimization, Pruning, must_fit, options
from budgetnet.methods.resizing import Images, ResizingModule
from budgetnet.methods.schedule import learning_rate
from budgetnet.methods.train import sgd
from budgetnet.processes import Processes
from budgetnet.supernets import (
    EdgePlan,
    advantages,
    choose,
    drawn,
    penalties,
    reestimate,
    score_gradient,
    within,
)

CHOICES = ("learned", "random")
BASELINES = ("mean", "ema")


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

    def __post_init__(self) -> None:
        for name, known in (("choice", CHOICES), ("baseline", BASELINES)):
            if (value := getattr(self, name)) not in known:
                raise UsageError(f"method.{name}={value!r} is unknown{nearest(value, known)}")
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


class BSN(ResizingModule):
    """Trains `net` with edges drawn at random, learns their probabilities, keeps the likely ones, and fine-tunes them.

    net: a traced Fabric. budget: resolved. costs: of its edges. In the phase "warmup" every edge is on; in "sample"
    every image, or each of `method.samples` parts of a batch, has a choice of edges of its own. What is computed of an
    edge is for the images of which some have it on, and counts as such in the ledger.
    """

    phase = "warmup"

    def __init__(
        self,
        net: Fabric,
        num_classes: int,
        ledger: TrainCostLedger,
        budget: Budget,
        optim: Optimization,
        method: SuperNetwork,
        pruning: Pruning,
        finetune: FineTuning,
        costs: EdgeCosts,
        fallback: Tensor,
        seed: int,
    ) -> None:
        super().__init__(net, num_classes, ledger, budget, optim.label_smoothing)
        self.optim, self.method, self.pruning, self.finetune, self.seed = optim, method, pruning, finetune, seed
        self.layout = net.layout
        """Of all edges, whichever are left."""
        self.edge_costs, self.fallback, self.full = costs, fallback, costs.full()
        self.images_wanted = pruning.images
        self.phase = "sample" if method.warmup_epochs == 0 else "warmup"
        self.logits = torch.full((len(net.layout.edges),), method.initial, dtype=torch.float64)
        """a of every edge, on the CPU, where choices are drawn and priced."""
        self.average: float | None = None
        """Of what a choice costs, for method.baseline=ema."""
        self.kept = torch.ones(len(self.logits), dtype=torch.bool)
        """The edges that would be kept as of the last epoch, or that are."""
        self.latency: int | None = None
        """Measured, of what was kept."""
        self._shown = ("flops", "params", *(kind for kind in budget.limits if kind in ("latency", "sequential_ops")))
        self._sampled = torch.zeros(1 + len(self._shown), dtype=torch.float64)
        self._choices = self._alive = torch.empty(0)
        self._batch = 0
        self._losses_of_choices: list[Tensor] = []

    @property
    def supernet(self) -> Fabric:
        """The network, or what is left of it."""
        assert isinstance(self.net, Fabric)
        return self.net

    # -- a step -----------------------------------------------------------------------------------------------------

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return sgd(self.net, self.optim)

    def learning_rate(self, epoch: int, batch: int, steps_per_epoch: int) -> float:
        """The schedule of `optim` over `prune.epochs`, the warm-up of edges among them; then the fine-tuning's own."""
        o, spe = self.optim, steps_per_epoch
        if self.phase == "finetune":
            return self.tuning_rate(epoch, batch, spe)
        return learning_rate(o.schedule, o.lr, epoch * spe + batch, self.pruning.epochs * spe, o.warmup_epochs * spe)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self._batch = batch_idx
        if self.phase == "sample":
            self._draw(len(batch[1]), batch_idx)
        super().training_step(batch, batch_idx)

    def _draw(self, images: int, batch: int) -> None:
        """The choices of a step, of all processes: a function of the probabilities, the seed and the step."""
        world = self.trainer.world_size
        count = self.method.samples or images * world
        key = keyed_generator("edges", self.seed, self.current_epoch, batch)
        draws = torch.rand(count, len(self.logits), generator=key, dtype=torch.float64)
        self._choices = drawn(self.logits, draws)
        self._alive = self.layout.alive(self._choices)

    def _own(self, rank: int) -> slice:
        """Which of a step's choices are a process's."""
        count = len(self._choices) // self.trainer.world_size
        return slice(rank * count, (rank + 1) * count)

    def _parts(self, images: int, rank: int) -> Iterator[tuple[slice, Tensor]]:
        """The parts of a process's images that are passed one after the other, and their edges, (1 or images, edges)."""
        alive, shared = self._alive[self._own(rank)], self.method.samples is not None
        for place, part in enumerate(torch.arange(images).chunk(len(alive) if shared else self.micro_batches)):
            yield slice(int(part[0]), int(part[-1]) + 1), alive[place : place + 1] if shared else alive[part]

    def book(self, images: int) -> None:
        """Of every part of every process, the edges that some image has on."""
        if self.phase != "sample":
            super().book(images)
            return
        each = images // self.trainer.world_size
        for rank in range(self.trainer.world_size):
            for part, alive in self._parts(each, rank):
                computed = alive.any(0)[None]
                flops = self.edge_costs.of(computed, ("flops",))["flops"]
                self.ledger.add(part.stop - part.start, int(flops))

    def _backward(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        if self.phase != "sample":
            return super()._backward(images, labels)
        parts = list(self._parts(len(labels), self.global_rank))
        losses, correct = [], []
        for number, (part, alive) in enumerate(parts, start=1):
            with self._unreduced() if number < len(parts) else nullcontext():
                logits = self.supernet.masked(images[part], alive.to(self.device))
                each = nn.functional.cross_entropy(
                    logits, labels[part], label_smoothing=self.label_smoothing, reduction="none"
                )
                self.manual_backward(each.sum() / len(labels) + self._unused(alive))
            losses.append(each.detach())
            correct.append((logits.detach().argmax(1) == labels[part]).sum())
        self._losses_of_choices = [part.mean()[None] for part in losses] if self.method.samples else losses
        return torch.cat(losses).mean(), torch.stack(correct).sum()

    def _unused(self, alive: Tensor) -> Tensor:
        """Zero, from the parameters of edges that are off everywhere: they too have a gradient, on every process."""
        total = torch.zeros((), device=self.device)
        for edge, on in zip(self.layout.edges, alive.any(0).tolist(), strict=True):
            if not on:
                for parameter in self.supernet.edges[edge.name].parameters():
                    total = total + parameter.sum() * 0
        return total

    def regularise(self) -> None:
        """A step of plain gradient descent on the logits: see `estimator`. Every process takes the same."""
        if self.phase != "sample":
            return
        choices = self._choices[self._own(self.global_rank)]
        key = keyed_generator("latency", self.seed, self.current_epoch, self._batch, self.global_rank)
        costs = self.edge_costs.of(choices, {*self._shown, *self.budget.limits}, key)
        limits = {kind: most for kind, most in self.budget.limits.items() if kind in costs}
        self._sampled[0] += len(choices)
        for place, kind in enumerate(self._shown, start=1):
            self._sampled[place] += costs[kind].sum()
        if self.method.choice == "random":
            return
        losses = torch.cat(self._losses_of_choices).double().cpu()
        if limits:
            losses += self.method.cost_weight * penalties(costs, limits)
        world, processes = self.trainer.world_size, Processes(self.trainer)
        baseline = self.average if self.method.baseline == "ema" else None
        if self.method.baseline == "ema":
            mean = float(processes.sum(losses.mean()[None])) / world
            decay = self.method.decay
            self.average = mean if self.average is None else decay * self.average + (1 - decay) * mean
            if baseline is None:  # a baseline of these very choices would not be independent of them
                return
        gradient = score_gradient(self.logits, choices, advantages(losses, baseline))
        self.logits -= self.method.lr * processes.sum(gradient) / world

    def on_fit_start(self) -> None:
        """Raises UsageError where the choices of a step cannot be shared, or are too few for a baseline."""
        samples, world = self.method.samples, self.trainer.world_size
        each = self.data.images_per_epoch(world) // (world * self.data.steps_per_epoch(world))
        if self.edge_costs.latency is not None:
            Processes(self.trainer).share([self.edge_costs.latency])
        if samples is not None and (samples % world or each % (samples // world)):
            raise UsageError(
                f"method.samples={samples}: expected a number that {world} processes can share and that divides a "
                f"process's {each} images of a step"
            )
        least = 2 if self.method.baseline == "mean" and self.method.choice == "learned" else 1
        if (each if samples is None else samples // world) < least:
            raise UsageError(
                f"method.baseline=mean takes the mean of a step's other choices, and a process has only "
                f"{samples or each}: raise method.samples or dataset.batch_size, or set method.baseline=ema"
            )

    # -- what would be kept -----------------------------------------------------------------------------------------

    @property
    def probabilities(self) -> Tensor:
        """γ of every edge, (edges,)."""
        return torch.sigmoid(self.logits)

    def limits(self) -> dict[str, int]:
        """What the network that is kept may cost: what is left of the train cost bounds its FLOPs, if it is tuned."""
        limits = {kind: most for kind, most in self.budget.limits.items() if kind != "train_cost"}
        if "train_cost" in self.budget.limits and self.finetune.epochs:
            left = self.budget.limits["train_cost"] - self.ledger.spent
            most = left // (self.finetune.epochs * self.ledger.images_per_epoch)
            limits["flops"] = min(most, limits.get("flops", most))
        return limits

    def chosen(self, limits: Mapping[str, int]) -> Tensor:
        """bool (edges,): what would be kept within these limits."""
        fits = within(self.edge_costs, limits)
        if self.method.choice == "random":
            draws = torch.rand(len(self.logits), generator=keyed_generator("choice", self.seed))
            return choose(self.layout, draws, fits, self.fallback, threshold=-1.0)
        return choose(self.layout, self.probabilities, fits, self.fallback)

    def evaluated(self, images: Tensor) -> Tensor:
        """Logits (batch, classes) of the network that would be kept now; of all edges in the warm-up."""
        if self.phase != "sample":
            return self.forward(images)
        return self.supernet.masked(images, self.kept[None].to(images.device))

    def on_validation_epoch_start(self) -> None:
        super().on_validation_epoch_start()
        if self.phase == "sample":
            self.kept = self.chosen(self.limits())

    def on_test_epoch_start(self) -> None:
        self.on_validation_epoch_start()

    def epoch_metrics(self) -> dict[str, float]:
        if self.phase == "sample":
            self.kept = self.chosen(self.limits())
        return super().epoch_metrics()

    def costs(self) -> dict[str, int]:
        """Of the network that would be kept as of the last epoch, or is; of all edges in the warm-up."""
        costs = self.full if self.phase == "warmup" else self.edge_costs.price(self.kept)
        return costs if self.latency is None else {**costs, "latency": self.latency}

    def edge_record(self) -> dict[str, float | int]:
        """Of the epoch that ended: costs sampled (a mean), pruned (what would be kept) and full, and every γ.

        decided: the part of the edges whose γ is outside (0.02, 0.98).
        """
        sampled = Processes(self.trainer).sum(self._sampled)
        self._sampled = torch.zeros_like(self._sampled)
        now, gamma = self.costs(), self.probabilities
        record: dict[str, float | int] = {"decided": float(((gamma < 0.02) | (gamma > 0.98)).double().mean())}
        for place, kind in enumerate(self._shown, start=1):
            mean = float(sampled[place] / sampled[0]) if sampled[0] else float(self.full[kind])
            record |= {f"sampled_{kind}": mean, f"pruned_{kind}": now[kind], f"full_{kind}": self.full[kind]}
        return record | {edge.name: float(p) for edge, p in zip(self.layout.edges, gamma, strict=True)}

    def facts(self) -> dict[str, Any]:
        """The graph with its probabilities, and which edges are kept, for figures and for `method.widths_from`."""
        rows = zip(self.layout.edges, self.probabilities.tolist(), self.kept.tolist(), strict=True)
        return {
            "machines": self.budget.machines or 1,
            "edges": list(self.layout.names(self.kept)),
            "fabric": {
                "nodes": [[node.name, *node.at] for node in self.layout.nodes],
                "edges": [[edge.name, edge.source, edge.target, gamma, kept] for edge, gamma, kept in rows],
            },
            **{f"full_{kind}": cost for kind, cost in self.full.items()},
        }

    # -- the end of the search --------------------------------------------------------------------------------------

    def first_filters(self, plan: Any) -> None:
        """Edges are chosen, not filters."""

    def epoch_is_over(self, epochs: int) -> None:
        """After the warm-up, edges are drawn."""
        if self.phase == "warmup" and epochs >= self.method.warmup_epochs:
            self.phase = "sample"

    def round_is_over(self, epochs: int) -> bool:
        """There is one round, at the end of `prune.epochs`."""
        return self.phase != "finetune" and epochs >= self.pruning.epochs

    def plan_round(self, epochs: int, images_per_epoch: int, batch: Images | None) -> EdgePlan:
        """Which edges stay. A limit on latency holds for the measured time of the network itself."""
        limits = self.limits()
        kept, latency = self.chosen(limits), None
        if "latency" in limits:
            kept, latency = self._fast_enough(limits)
        costs = {**self.edge_costs.price(kept), "train_cost": self.ledger.spent}
        costs |= {} if latency is None else {"latency": latency}
        names = self.layout.names(kept)
        widths = extracted(copy.deepcopy(self.supernet), names, self.graph).widths
        stop = self.budget.binding(costs)
        return EdgePlan(self.round + 1, widths, widths, stop=stop, edges=names, latency=latency)

    def _fast_enough(self, limits: Mapping[str, int]) -> tuple[Tensor, int]:
        """The likeliest edges whose network, as a whole, was measured to be within its limit, and its microseconds.

        Times of modules do not add up to that of the network: the limit on their sum is lowered until they do.
        """
        most = limits["latency"]
        aim, shape = most, (*self.graph.input_shape[1:],)
        while True:
            kept = self.chosen({**limits, "latency": aim})
            latency = latency_of(self.supernet, kept, shape)
            if latency <= most or torch.equal(kept, self.fallback):
                return kept, latency
            aim = int(0.95 * min(aim, self.edge_costs.price(kept)["latency"]))

    def carry_out(self, plan: Any, epochs: int, batch: Images | None) -> None:
        """Remove all other edges, forget their momentum, and estimate the statistics of batch norms anew."""
        self.kept, self.latency = self.layout.choice(plan.edges), plan.latency
        self._extract(plan.edges)
        optimizer, left = self.optimizer, set(self.net.parameters())
        for group in optimizer.param_groups:
            group["params"] = [parameter for parameter in group["params"] if parameter in left]
        for gone in optimizer.state.keys() - left:
            del optimizer.state[gone]
        if batch is not None:
            each = max(1, self.data.batch_size // self.trainer.world_size)
            reestimate(self.net, batch[0].split(each))
            Processes(self.trainer).share(self.net.buffers())
        self.end_round(plan, epochs)

    def _extract(self, names: tuple[str, ...]) -> None:
        self.graph = extracted(self.supernet, names, self.graph)
        self.cost = CostModel(self.graph)
        self._flops = self.cost.flops()

    # -- checkpoints ------------------------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["budgetnet"] |= {
            "logits": self.logits,
            "average": self.average,
            "kept": self.kept,
            "latency": self.latency,
            "latencies": self.edge_costs.latency,
            "sampled": self._sampled,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leave the network the checkpoint's edges before its weights are loaded."""
        state = checkpoint["budgetnet"]
        if state["phase"] == "finetune" and self.phase != "finetune":
            self._extract(self.layout.names(state["kept"]))
        super().on_load_checkpoint(checkpoint)
        self.logits, self.average = state["logits"], state["average"]
        self.kept, self.latency = state["kept"], state["latency"]
        self.edge_costs.latency, self._sampled = state["latencies"], state["sampled"]


def extracted(net: Fabric, names: tuple[str, ...], graph: ChannelGraph) -> ChannelGraph:
    """Keep only these edges of a live fabric, and trace it as it was traced before."""
    net.keep(names)
    return ChannelGraph.trace(net, torch.empty(graph.input_shape), graph.frozen)


def build(config: Mapping[str, Any], net: nn.Module, num_classes: int, ledger: TrainCostLedger) -> BSN:
    """The method for a resolved configuration; `net` is a Fabric, traced.

    Raises UsageError for options out of range, a backbone without edges to choose from, and a budget that no path from
    end to end meets, or that the search alone exceeds.
    """
    method = options(SuperNetwork, "method", config["method"])
    pruning = options(Pruning, "prune", config["prune"])
    finetune = options(FineTuning, "finetune", config["finetune"])
    search = f"prune.epochs={pruning.epochs}"
    must_fit(config["epochs"], pruning.epochs + finetune.epochs, search, f"finetune.epochs={finetune.epochs}")
    if method.warmup_epochs >= pruning.epochs:
        raise UsageError(
            f"method.warmup_epochs={method.warmup_epochs} leaves no epoch of {search} to learn edges in: lower it"
        )
    if not isinstance(net, Fabric):
        name = config["backbone"].get("name", config["backbone"]["_target_"])
        raise UsageError(
            f"backbone={name} has no edges to choose from: method=bsn takes resnet_fabric or cnf, or an own network "
            "that is a budgetnet.backbones.fabric.Fabric"
        )
    budget = Budget(**config["budget"])
    budget.require()
    latency = None
    if budget.latency is not None:
        wanted = config["trainer"]["accelerator"] in ("auto", "gpu", "cuda")
        device = "cuda" if wanted and torch.cuda.is_available() else "cpu"
        latency = edge_latencies(net, ChannelGraph.of(net).input_shape[1:], device)
    costs = EdgeCosts(net, budget.machines or 1, latency)
    budget = budget.resolve({**costs.full(), "train_cost": ledger.baseline_cost})
    fallback = _check_budget(budget, costs, pruning.epochs, finetune.epochs, ledger)
    optim = options(Optimization, "optim", config["optim"])
    return BSN(
        net, num_classes, ledger, budget, optim, method, pruning, finetune, costs, fallback, config["seed"]
    )  # fmt: skip


def _check_budget(budget: Budget, costs: EdgeCosts, search: int, tune: int, ledger: TrainCostLedger) -> Tensor:
    """A path that meets the budget. Raises UsageError, with the numbers, where there is none."""
    limits = dict(budget.limits)
    spent = search * ledger.images_per_epoch * costs.full()["flops"]
    if (most := limits.pop("train_cost", None)) is not None:
        path = costs.price(costs.cheapest_path("flops"))["flops"]
        if most < (least := spent + tune * ledger.images_per_epoch * path):
            raise UsageError(
                f"budget.train_cost={most:,} is below the {least:,} that prune.epochs={search} of the whole network and "
                f"finetune.epochs={tune} of the shortest path may cost: raise it or shorten them"
            )
        if tune:
            limits["flops"] = min((most - spent) // (tune * ledger.images_per_epoch), limits.get("flops", most))
    paths = {kind: costs.cheapest_path(kind) for kind in limits}
    for kind, path in paths.items():
        if limits[kind] < (least := costs.price(path)[kind]):
            raise UsageError(
                f"budget.{kind}={limits[kind]:,} is below the {least:,} of the shortest path from end to end: raise it"
            )
    fits = within(costs, limits)
    for path in paths.values():
        if fits(path):
            return path
    if not paths:
        return costs.cheapest_path("flops")
    raise UsageError(f"{budget}: no path from end to end is within all of them; raise one")
