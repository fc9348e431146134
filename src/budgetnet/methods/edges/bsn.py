"""Budgeted super networks: which edges of a large network to keep is learned (Veniat and Denoyer, CVPR 2018)."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from budgetnet.backbones.fabric import Fabric
from budgetnet.costs import Budget, CostModel, TrainCostLedger
from budgetnet.costs.budget import amount
from budgetnet.costs.edges import EdgeCosts
from budgetnet.costs.latency import edge_latencies, latency_of
from budgetnet.data.datamodule import DataModule
from budgetnet.errors import RunError, UsageError
from budgetnet.methods.edges import EdgePlan, EdgeSearch, SuperNetwork, keep_edges, reestimate, within
from budgetnet.methods.growth import GrowthPlan
from budgetnet.methods.options import FineTuning, Optimization, Pruning, must_fit, options
from budgetnet.methods.phases import learning_rate
from budgetnet.methods.resizing import Images, ResizingModule
from budgetnet.methods.train import sgd
from budgetnet.processes.environment import started
from budgetnet.processes.group import Processes


class BSN(ResizingModule):
    """Trains `net` with edges drawn at random, learns their probabilities, keeps the likely ones, and fine-tunes them.

    net: a traced Fabric. budget: resolved. search: over its edges. In the phase "warmup" every edge is on; in "sample"
    every image, or each of `method.samples` parts of a batch, has a choice of edges of its own. An edge is computed for
    parts in which some image has it on, and the ledger counts it so.
    """

    def __init__(
        self,
        net: Fabric,
        num_classes: int,
        ledger: TrainCostLedger,
        budget: Budget,
        optim: Optimization,
        pruning: Pruning,
        finetune: FineTuning,
        search: EdgeSearch,
    ) -> None:
        super().__init__(net, num_classes, ledger, budget, optim.label_smoothing)
        self.optim, self.pruning, self.finetune = optim, pruning, finetune
        self.search = search
        self.fallback = torch.empty(0)
        """bool (edges,): a path that meets the budget."""
        self.phase = "warmup" if search.options.warmup_epochs else "sample"
        self.images_wanted = pruning.images
        self.kept = torch.ones(len(search.logits), dtype=torch.bool)
        """The edges that would be kept as of the last epoch, or that are."""
        self.latency: int | None = None
        """Measured microseconds of what was kept, where they are limited."""
        self._losses_of_parts: list[Tensor] = []
        self._batch = 0

    @property
    def supernet(self) -> Fabric:
        """The network, or what is left of it."""
        assert isinstance(self.net, Fabric)
        return self.net

    @property
    def full(self) -> dict[str, int]:
        """By kind, what all edges cost."""
        return self.search.costs.full()

    # -- a step -----------------------------------------------------------------------------------------------------

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return sgd(self.net, self.optim)

    def learning_rate(self, epoch: int, batch: int, steps_per_epoch: int) -> float:
        """The schedule of `optim` over `prune.epochs`, the warm-up of edges among them; then the fine-tuning's own."""
        o, spe = self.optim, steps_per_epoch
        if self.phase == "finetune":
            return self.tuning_rate(epoch, batch, spe)
        return learning_rate(o.schedule, o.lr, epoch * spe + batch, self.pruning.epochs * spe, o.warmup_epochs * spe)

    def check(self, trainer: pl.Trainer, data: DataModule, continued: bool) -> None:
        """Raises UsageError for choices that cannot be shared out, and a budget that no path from end to end meets.

        Times are measured here, by the first process; a continued run has its own.
        """
        world = trainer.world_size
        images = data.images_per_epoch(world) // data.steps_per_epoch(world)
        self.search.check(images // world, world, self.micro_batches)
        if world > 1 and any(isinstance(module, nn.SyncBatchNorm) for module in self.net.modules()):
            raise UsageError(
                "trainer.sync_batchnorm=true waits for all processes at every edge, and with method=bsn each leaves "
                "out others: leave it out"
            )
        if "latency" in self.budget.limits and (continued or started().rank):
            return
        net, shape = self.supernet, self.graph.input_shape[1:]
        if "latency" in self.budget.limits:
            dtype = torch.bfloat16 if trainer.precision == "bf16-true" else torch.float32
            net = copy.deepcopy(net).to(trainer.strategy.root_device, dtype)
            self.search.costs.latency = edge_latencies(net, shape)
        self.fallback = affordable_path(self.budget, self.search.costs, self.pruning.epochs, self.finetune, self.ledger)
        if (most := self.budget.limits.get("latency")) and most < (time := latency_of(net, self.fallback, shape)):
            raise UsageError(
                f"budget.latency={amount('latency', most)} is below the {amount('latency', time)} that were measured "
                "of the shortest path from end to end: raise it"
            )

    def on_fit_start(self) -> None:
        """Every process has the first one's times and path."""
        found = (self.search.costs.latency, self.fallback)
        self.search.costs.latency, self.fallback = self.trainer.strategy.broadcast(found)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self._batch = batch_idx
        if self.phase == "sample":
            self.search.draw(len(batch[1]) * self.trainer.world_size, self.current_epoch, batch_idx)
        super().training_step(batch, batch_idx)

    def book(self, images: int) -> None:
        if self.phase != "sample":
            super().book(images)
            return
        for some, flops in self.search.computed(images, self.trainer.world_size, self.micro_batches):
            self.ledger.add(some, flops)

    def _backward(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        if self.phase != "sample":
            return super()._backward(images, labels)
        parts = list(self.search.parts(len(labels), self.global_rank, self.trainer.world_size, self.micro_batches))
        losses, sums = [], []
        for number, (part, alive) in enumerate(parts, start=1):
            with self._unreduced() if number < len(parts) else nullcontext():
                logits = self.supernet.masked(images[part], alive.to(self.device))
                each = self.task.training_losses(logits, labels[part])
                self.manual_backward(each.sum() / len(labels) + self._unused(alive))
            losses.append(each.detach())
            sums.append(self.task.sums(logits.detach(), labels[part]))
        self._losses_of_parts = losses
        return torch.cat(losses).mean(), torch.stack(sums).sum(0)

    def _unused(self, alive: Tensor) -> Tensor:
        """Zero, from the parameters of what is off everywhere: they too have a gradient, on every process."""
        net, edges = self.supernet, zip(self.search.layout.edges, alive.any(0).tolist(), strict=True)
        off = [net.edges[edge.name] for edge, on in edges if not on]
        off += [] if alive.any() else [net.stem]
        total = torch.zeros((), device=self.device)
        for parameter in (parameter for module in off for parameter in module.parameters()):
            total = total + parameter.sum() * 0
        return total

    def regularise(self) -> None:
        """The logits' own step, which no gradient of the network's parameters depends on."""
        if self.phase == "sample":
            rank, total = self.global_rank, Processes(self.trainer).sum
            self.search.learn(
                self._losses_of_parts, rank, self.trainer.world_size, total, self.current_epoch, self._batch
            )

    def settle(self) -> None:
        super().settle()
        if self.phase == "sample":
            self.search.settle(Processes(self.trainer).sum)

    # -- what would be kept -----------------------------------------------------------------------------------------

    def limits(self) -> dict[str, int]:
        """What the network that is kept may cost: what is left of the train cost bounds its FLOPs, if it is tuned."""
        limits = {kind: most for kind, most in self.budget.limits.items() if kind != "train_cost"}
        if "train_cost" in self.budget.limits and self.finetune.epochs:
            left = self.budget.limits["train_cost"] - self.ledger.spent
            most = left // (self.finetune.epochs * self.ledger.images_per_epoch)
            limits["flops"] = min(most, limits.get("flops", most))
        return limits

    def evaluated(self, images: Tensor) -> Tensor:
        """Logits (batch, classes) of the network that would be kept now; of all edges in the warm-up."""
        if self.phase != "sample":
            return self.forward(images)
        return self.supernet.masked(images, self.kept[None].to(images.device))

    def on_validation_epoch_start(self) -> None:
        super().on_validation_epoch_start()
        self._look()

    def epoch_metrics(self) -> dict[str, float]:
        self._look()
        return super().epoch_metrics()

    def _look(self) -> None:
        """At what would be kept now."""
        if self.phase == "sample":
            self.kept = self.search.chosen(self.limits(), self.fallback)

    def costs(self) -> dict[str, int]:
        """Of the network that would be kept as of the last epoch, or is; of all edges in the warm-up."""
        costs = self.full if self.phase == "warmup" else self.search.costs.price(self.kept)
        return costs if self.latency is None else {**costs, "latency": self.latency}

    def edge_record(self) -> dict[str, float | int]:
        """Of the epoch that ended: costs sampled (a mean), pruned (what would be kept) and full, and every γ."""
        if not self.resizes:
            return {}
        search, now, full = self.search, self.costs(), self.full
        record: dict[str, float | int] = {"decided": search.decided()}
        for kind, mean in search.means(full).items():
            record |= {f"sampled_{kind}": mean, f"pruned_{kind}": now[kind], f"full_{kind}": full[kind]}
        names = (edge.name for edge in search.layout.edges)
        return record | dict(zip(names, search.probabilities.tolist(), strict=True))

    def facts(self) -> dict[str, Any]:
        """The graph with its probabilities and what is kept of it, for figures; costs of all of it."""
        layout = self.search.layout
        rows = zip(layout.edges, self.search.probabilities.tolist(), self.kept.tolist(), strict=True)
        return {
            "machines": self.search.costs.sequential.machines,
            "edges": list(layout.names(self.kept)),
            "fabric": {
                "nodes": [[node.name, *node.at] for node in layout.nodes],
                "edges": [[edge.name, edge.source, edge.target, gamma, kept] for edge, gamma, kept in rows],
            },
            **{f"full_{kind}": cost for kind, cost in self.full.items()},
        }

    # -- the end of the search --------------------------------------------------------------------------------------

    def epoch_is_over(self, epochs: int) -> None:
        """After the warm-up, edges are drawn."""
        if self.phase == "warmup" and epochs >= self.search.options.warmup_epochs:
            self.phase = "sample"

    def round_is_over(self, epochs: int) -> bool:
        """There is one round, at the end of `prune.epochs`."""
        return self.phase != "finetune" and epochs >= self.pruning.epochs

    def first_filters(self, plan: GrowthPlan) -> None:
        """Edges are chosen, not filters."""

    def plan_round(self, epochs: int, images_per_epoch: int, batch: Images | None) -> EdgePlan:
        """Which edges stay. A limit on latency holds for the measured time of the network itself."""
        limits, layout = self.limits(), self.search.layout
        if "latency" in limits:
            kept, latency = self._fast_enough(limits)
        else:
            kept, latency = self.search.chosen(limits, self.fallback), None
        costs: dict[str, int] = {**self.search.costs.price(kept), "train_cost": self.ledger.spent}
        costs |= {} if latency is None else {"latency": latency}
        names = layout.names(kept)
        widths = keep_edges(copy.deepcopy(self.supernet), names).widths
        stop = self.budget.binding(costs)
        return EdgePlan(self.round + 1, widths, widths, stop=stop, edges=names, latency=latency)

    def _fast_enough(self, limits: Mapping[str, int]) -> tuple[Tensor, int]:
        """The likeliest edges whose network, as a whole, was measured to be within its limit, and its microseconds.

        Times of modules do not add up to that of the network: the limit on their sum is lowered until it fits.
        """
        aim = limits["latency"]
        while True:
            kept = self.search.chosen({**limits, "latency": aim}, self.fallback)
            latency = latency_of(self.supernet, kept, self.graph.input_shape[1:])
            if latency <= limits["latency"]:
                return kept, latency
            if torch.equal(kept, self.fallback):
                raise RunError(
                    f"the shortest path was measured to take {amount('latency', latency)} now, above budget.latency="
                    f"{amount('latency', limits['latency'])}: the same command tries again, on a quieter machine"
                )
            aim = int(0.95 * min(aim, self.search.costs.price(kept)["latency"]))

    def carry_out(self, plan: GrowthPlan, epochs: int, batch: Images | None) -> None:
        """Remove all other edges, forget their momentum, and estimate the statistics of batch norms anew."""
        assert isinstance(plan, EdgePlan) and batch is not None
        self.kept, self.latency = self.search.layout.choice(plan.edges), plan.latency
        self._extract(plan.edges)
        optimizer, left = self.optimizer, set(self.net.parameters())
        for group in optimizer.param_groups:
            group["params"] = [parameter for parameter in group["params"] if parameter in left]
        for gone in optimizer.state.keys() - left:
            del optimizer.state[gone]
        size = max(1, self.data.batch_size // self.trainer.world_size)
        reestimate(self.net, [batch[0][start : start + size] for start in range(0, len(batch[0]), size)])
        Processes(self.trainer).share(self.net.buffers())
        self.end_round(plan, epochs)

    def _extract(self, names: Sequence[str]) -> None:
        self.graph = keep_edges(self.supernet, names)
        self.cost = CostModel(self.graph)
        self._flops = self.cost.flops()

    # -- checkpoints ------------------------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        own = {"kept": self.kept, "latency": self.latency, "fallback": self.fallback}
        checkpoint["budgetnet"] |= {**own, "search": self.search.state_dict()}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leave the network the checkpoint's edges before its weights are loaded."""
        state = checkpoint["budgetnet"]
        if state["phase"] == "finetune" and self.phase != "finetune":
            self._extract(self.search.layout.names(state["kept"]))
        super().on_load_checkpoint(checkpoint)
        self.kept, self.latency, self.fallback = state["kept"], state["latency"], state["fallback"]
        self.search.load_state_dict(state["search"])


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
    costs = EdgeCosts(net, budget.machines or 1)
    budget = budget.resolve({**costs.full(), "train_cost": ledger.baseline_cost})
    return BSN(
        net,
        num_classes,
        ledger,
        budget,
        options(Optimization, "optim", config["optim"]),
        pruning,
        finetune,
        EdgeSearch(costs, budget.limits, method, config["seed"]),
    )


def affordable_path(
    budget: Budget, costs: EdgeCosts, search: int, finetune: FineTuning, ledger: TrainCostLedger
) -> Tensor:
    """bool (edges,): a path that meets the budget. search: epochs of the whole network, at most.

    Raises UsageError, with the numbers, where there is none.
    """
    limits, images, tune = dict(budget.limits), ledger.images_per_epoch, finetune.epochs
    if (most := limits.pop("train_cost", None)) is not None:
        spent = search * images * costs.full()["flops"]
        least = spent + tune * images * costs.price(costs.cheapest_path("flops"))["flops"]
        if most < least:
            raise UsageError(
                f"budget.train_cost={most:,} is below the {least:,} that prune.epochs={search} of the whole network "
                f"and finetune.epochs={tune} of the shortest path may cost: raise it or shorten them"
            )
        if tune:
            limits["flops"] = min((most - spent) // (tune * images), limits.get("flops", most))
    paths = {kind: costs.cheapest_path(kind) for kind in limits}
    for kind, path in paths.items():
        if limits[kind] < (cost := costs.price(path)[kind]):
            raise UsageError(
                f"budget.{kind}={amount(kind, limits[kind])} is below the {amount(kind, cost)} of the shortest path "
                "from end to end: raise it"
            )
    balanced = costs.layout.path(costs.shares(limits))
    assert balanced is not None
    fits = within(costs, limits)
    for path in (*paths.values(), balanced):
        if fits(path):
            return path
    raise UsageError(f"{budget}: no path from end to end was found within all of it; raise one of the limits")
