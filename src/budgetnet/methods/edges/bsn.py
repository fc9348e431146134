"""Budgeted super networks, which learn which edges of a large network to keep (Veniat and Denoyer, CVPR 2018)."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from budgetnet.backbones.fabric import Fabric
from budgetnet.costs import Budget, TrainCostLedger
from budgetnet.costs.budget import amount
from budgetnet.costs.edges import EdgeCosts
from budgetnet.costs.latency import edge_latencies, latency_of
from budgetnet.costs.pricing import EdgePricing
from budgetnet.errors import RunError, UsageError
from budgetnet.methods.edges import EdgePlan, EdgeSearch, keep_edges, reestimate, within
from budgetnet.methods.edges.options import OptionalFineTuning, SuperNetwork
from budgetnet.methods.method import Images, Method, Training, must_fit
from budgetnet.methods.options import FineTuning, Optimization
from budgetnet.methods.phases import Phase
from budgetnet.methods.plan import Plan
from budgetnet.tasks import Output


class BSN(Method):
    """Trains a network with randomly sampled edges, learns their probabilities, and fine-tunes the likely edges.

    In the phase "warmup" every edge is on. In the phase "sample" every image, or each of `method.samples` slices of a
    batch, has an edge mask of its own. An edge is computed for a slice, and counted in its cost, if any image of the
    slice has it on.
    """

    budgets = ("flops", "params", "train_cost", "latency", "sequential_ops")

    def __init__(self, optim: Optimization, finetune: OptionalFineTuning, method: SuperNetwork) -> None:
        super().__init__(optim)
        self.options, self.finetune = method, finetune
        self.fallback = torch.empty(0)
        """A path that meets the budget, bool (edges,)."""
        self.latency: int | None = None
        """Measured latency of the selected network in microseconds, if there is a limit on it."""
        self._slice_losses: list[Tensor] = []

    def start(self, training: Training) -> list[Phase]:
        """Raises UsageError for a backbone without edges to choose from, and for phases longer than the run."""
        self.training = training
        options, tune = self.options, self.finetune.epochs
        epochs = self.search_epochs = training.epochs_before(tune, options.search_epochs)
        search = f"method.search_epochs={epochs}"
        must_fit(training.epochs, epochs + tune, search, f"finetune.epochs={tune}")
        if options.warmup_epochs >= epochs:
            raise UsageError(
                f"method.warmup_epochs={options.warmup_epochs} leaves no epoch of {search} to learn edges in: lower it"
            )
        if not isinstance(training.pricing, EdgePricing):
            raise UsageError(
                f"backbone={training.backbone} has no edges to choose from: method=bsn takes resnet_fabric or cnf, or "
                "an own network that is a budgetnet.backbones.fabric.Fabric"
            )
        self.search = EdgeSearch(training.pricing.edges, training.budget.limits, options, training.seed)
        self.mask = torch.ones(len(self.search.logits), dtype=torch.bool)
        """The selected edges, bool (edges,): provisional, as of the last epoch, until the search ends."""
        rate, warmup = replace(self.optim.phase("sample", epochs), decay_epochs=epochs), options.warmup_epochs
        phases = [replace(rate, name="warmup", epochs=warmup)] if warmup else []
        sample = replace(rate, epochs=epochs - warmup, elapsed=warmup)
        return [*phases, sample, self.finetune.phase(self.optim)]

    @property
    def supernet(self) -> Fabric:
        """The network, with all edges or with the selected ones."""
        pricing = self.training.pricing
        assert isinstance(pricing, EdgePricing)
        return pricing.fabric

    @property
    def full(self) -> dict[str, int]:
        """The costs, by kind, of the network with all edges."""
        return self.search.costs.full()

    @property
    def sampling(self) -> bool:
        """Whether edges are sampled in the current phase."""
        return self.training.phase.name == "sample"

    # -- before training ----------------------------------------------------------------------------------------------

    def check(self, continued: bool) -> None:
        """The first process measures latencies here; a resumed run loads those from its checkpoint instead.

        Raises UsageError for a number of samples that does not divide among processes and images, and for a budget
        that no path from input to output meets.
        """
        training, limits = self.training, self.training.budget.limits
        world = training.processes.count
        self.search.check(training.batch_size // world, world, training.micro_batches)
        if world > 1 and any(isinstance(module, nn.SyncBatchNorm) for module in self.net.modules()):
            raise UsageError(
                "trainer.sync_batchnorm=true synchronises all processes at every edge, and with method=bsn each of "
                "them leaves out other edges: leave it out"
            )
        if "latency" in limits and (continued or training.processes.rank):
            return
        net, shape = self.supernet, training.input_shape
        if "latency" in limits:
            net = copy.deepcopy(net).to(training.device, training.dtype)
            self.search.costs.latency = edge_latencies(net, shape)
        self.fallback = affordable_path(
            training.budget, self.search.costs, self.search_epochs, self.finetune, training.ledger
        )
        if (most := limits.get("latency")) and most < (time := latency_of(net, self.fallback, shape)):
            raise UsageError(
                f"budget.latency={amount('latency', most)} is below the {amount('latency', time)} that were measured "
                "for the shortest path from end to end: raise it"
            )

    def begin(self) -> None:
        """Broadcast the latencies and the fallback path of the first process."""
        found = (self.search.costs.latency, self.fallback)
        self.search.costs.latency, self.fallback = self.training.processes.broadcast(found)

    # -- a step -------------------------------------------------------------------------------------------------------

    def computed(self, images: int) -> list[tuple[int, int]]:
        if not self.sampling:
            return super().computed(images)
        return self.search.computed(images, self.training.processes.count, self.training.micro_batches)

    def step(self, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """While edges are sampled, pass each slice of the batch through its own edges; the losses train the logits."""
        if not self.sampling:
            return super().step(images, targets)
        training, task = self.training, self.training.task
        rank, world = training.processes.rank, training.processes.count
        self.search.draw(len(targets) * world, training.epoch, training.batch)
        slices = list(self.search.parts(len(targets), rank, world, training.micro_batches))
        losses, sums = [], []
        for number, (rows, alive) in enumerate(slices, start=1):
            with training.unreduced() if number < len(slices) else nullcontext():
                output = self.supernet.masked(images[rows], alive.to(images.device))
                each = task.training_losses(output, targets[rows])
                training.backward(each.sum() / len(targets) + self._unused(alive))
            losses.append(each.detach())
            sums.append(task.sums(output.detach(), targets[rows]))
        self._slice_losses = losses
        return torch.cat(losses).mean(), torch.stack(sums).sum(0)

    def _unused(self, alive: Tensor) -> Tensor:
        """Zero, as a function of the parameters of edges that are off in a slice, to give every parameter a gradient.

        Processes that sample different edges would otherwise disagree about which gradients to average.
        """
        net, edges = self.supernet, zip(self.search.layout.edges, alive.any(0).tolist(), strict=True)
        off = [net.edges[edge.name] for edge, on in edges if not on]
        off += [] if alive.any() else [net.stem]
        total = torch.zeros((), device=next(net.parameters()).device)
        for parameter in (parameter for module in off for parameter in module.parameters()):
            total = total + parameter.sum() * 0
        return total

    def before_step(self) -> None:
        """Update the logits, on which the gradients of the network's parameters do not depend."""
        if self.sampling:
            training, processes = self.training, self.training.processes
            self.search.learn(
                self._slice_losses, processes.rank, processes.count, processes.sum, training.epoch, training.batch
            )

    def collect(self) -> None:
        if self.sampling:
            self.search.collect(self.training.processes.sum)

    # -- the selected network -----------------------------------------------------------------------------------------

    def limits(self) -> dict[str, int]:
        """The limits, by kind, on the selected network; the rest of the train cost bounds its FLOPs if it is tuned."""
        return self.training.limits(self.finetune.epochs)

    def evaluate(self, images: Tensor) -> Output:
        """The output of the currently selected network, or of the whole network in the warm-up."""
        if not self.sampling:
            return self.forward(images)
        return self.supernet.masked(images, self.mask[None].to(images.device))

    def refresh(self) -> None:
        """Select edges by their current probabilities."""
        if self.sampling:
            self.mask = self.search.chosen(self.limits(), self.fallback)

    def costs(self) -> dict[str, int]:
        """The costs, by kind, of the network as selected in the last epoch, or of the whole network in the warm-up."""
        warmup = self.training.phase.name == "warmup"
        costs = self.full if warmup else self.training.pricing.costs(self.mask)
        return costs if self.latency is None else {**costs, "latency": self.latency}

    def rows(self) -> dict[str, dict[str, float]]:
        """A row of edges.csv: costs of sampled networks (mean), of the selected one and of all edges, every γ and λ."""
        if self.training.phase.final:
            return {}
        search, now, full = self.search, self.costs(), self.full
        record: dict[str, float] = {"decided": search.decided()}
        for kind, mean in search.means(full).items():
            record |= {f"sampled_{kind}": mean, f"pruned_{kind}": now[kind], f"full_{kind}": full[kind]}
        names = (edge.name for edge in search.layout.edges)
        record |= dict(zip(names, search.probabilities.tolist(), strict=True))
        learned = search.multipliers.weights() if search.learns_weight else {}
        return {"edges": record | {f"weight_{kind}": weight for kind, weight in learned.items()}}

    def facts(self) -> dict[str, Any]:
        """The graph with the probabilities and the selection, which figures need, and the costs of all edges."""
        layout = self.search.layout
        rows = zip(layout.edges, self.search.probabilities.tolist(), self.mask.tolist(), strict=True)
        return {
            "machines": self.search.costs.sequential.machines,
            "edges": list(layout.names(self.mask)),
            "fabric": {
                "nodes": [[node.name, *node.at] for node in layout.nodes],
                "edges": [[edge.name, edge.source, edge.target, gamma, kept] for edge, gamma, kept in rows],
            },
            **{f"full_{kind}": cost for kind, cost in self.full.items()},
        }

    # -- the end of the search ----------------------------------------------------------------------------------------

    def round_ends(self, epochs: int) -> bool:
        """Whether the only round, at the end of the search, follows after `epochs` epochs."""
        return not self.training.phase.final and epochs >= self.search_epochs

    def images(self, epochs: int) -> int:
        return self.options.images if self.round_ends(epochs) else 0

    def first_filters(self, plan: Plan) -> None:
        """None: this method selects edges, not filters."""

    def plan(self, epochs: int, batch: Images | None) -> EdgePlan | None:
        """Plan which edges stay. A limit on latency applies to the measured time of the selected network as a whole.

        Raises RunError if not even the shortest path meets the limit on latency any more.
        """
        if not self.round_ends(epochs):
            return None
        limits, layout = self.limits(), self.search.layout
        if "latency" in limits:
            kept, latency = self._fast_enough(limits)
        else:
            kept, latency = self.search.chosen(limits, self.fallback), None
        costs = {**self.training.pricing.costs(kept), "train_cost": self.training.ledger.spent}
        costs |= {} if latency is None else {"latency": latency}
        names = layout.names(kept)
        widths = keep_edges(copy.deepcopy(self.supernet), names).widths
        stop = self.training.budget.binding(costs)
        return EdgePlan(self.training.round + 1, widths, widths, stop=stop, edges=names, latency=latency)

    def _fast_enough(self, limits: Mapping[str, int]) -> tuple[Tensor, int]:
        """The likeliest edges whose network meets the limit on latency, and its measured time in microseconds.

        The times of modules do not add up to the time of the network, so the limit on their sum is lowered until the
        whole network fits.
        """
        aim = limits["latency"]
        while True:
            kept = self.search.chosen({**limits, "latency": aim}, self.fallback)
            latency = latency_of(self.supernet, kept, self.training.input_shape)
            if latency <= limits["latency"]:
                return kept, latency
            if torch.equal(kept, self.fallback):
                raise RunError(
                    f"the shortest path was measured to take {amount('latency', latency)} now, above budget.latency="
                    f"{amount('latency', limits['latency'])}: the same command tries again, on a quieter machine"
                )
            aim = int(0.95 * min(aim, self.search.costs.price(kept)["latency"]))

    def apply(self, plan: Plan, batch: Images | None) -> None:
        """Remove all other edges and their momentum, and re-estimate the batch-norm statistics."""
        assert isinstance(plan, EdgePlan) and batch is not None
        self.mask, self.latency = self.search.layout.mask(plan.edges), plan.latency
        self._extract(plan.edges)
        optimizer, left = self.training.optimizer, set(self.net.parameters())
        for group in optimizer.param_groups:
            group["params"] = [parameter for parameter in group["params"] if parameter in left]
        for gone in optimizer.state.keys() - left:
            del optimizer.state[gone]
        size = max(1, self.training.batch_size // self.training.processes.count)
        reestimate(self.net, [batch[0][start : start + size] for start in range(0, len(batch[0]), size)])
        self.training.processes.synchronise(self.net.buffers())

    def _extract(self, names: Sequence[str]) -> None:
        keep_edges(self.supernet, names)
        self.training.pricing.update()

    @property
    def searching(self) -> bool:
        return not self.training.phase.final

    # -- checkpoints --------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        own = {"kept": self.mask, "latency": self.latency, "fallback": self.fallback}
        return {**own, "extracted": self.training.phase.final, "search": self.search.state_dict()}

    def rebuild(self, state: Mapping[str, Any]) -> None:
        names = self.search.layout.names(state["kept"])
        if state["extracted"] and set(names) != set(self.supernet.edges):
            self._extract(names)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.mask, self.latency, self.fallback = state["kept"], state["latency"], state["fallback"]
        self.search.load_state_dict(state["search"])


def affordable_path(
    budget: Budget, costs: EdgeCosts, search: int, finetune: FineTuning, ledger: TrainCostLedger
) -> Tensor:
    """A path that meets the budget, bool (edges,). search: the most epochs in which the whole network is trained.

    Raises UsageError, with the numbers, if no such path is found.
    """
    limits, images, tune = dict(budget.limits), ledger.images_per_epoch, finetune.epochs
    if (most := limits.pop("train_cost", None)) is not None:
        spent = search * images * costs.full()["flops"]
        least = spent + tune * images * costs.price(costs.cheapest_path("flops"))["flops"]
        if most < least:
            raise UsageError(
                f"budget.train_cost={most:,} is below the {least:,} that method.search_epochs={search} of the whole "
                f"network and finetune.epochs={tune} of the shortest path may cost: raise it or shorten them"
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
    balanced = costs.layout.path(costs.budget_fractions(limits))
    assert balanced is not None
    fits = within(costs, limits)
    for path in (*paths.values(), balanced):
        if fits(path):
            return path
    raise UsageError(f"{budget}: no path from end to end was found within all of it; raise one of the limits")
