"""Growing and pruning by indicators: every epoch trains a sub-network sampled from them, at the budget at most."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from budgetnet.channels import ChannelGraph, resize
from budgetnet.costs import Budget, CostModel, TrainCostLedger
from budgetnet.errors import UsageError
from budgetnet.methods.growth import GrowthPlan
from budgetnet.methods.options import FineTuning, Optimization, Pruning, must_fit, options
from budgetnet.methods.phases import learning_rate
from budgetnet.methods.pruning import allocate, kept, pools
from budgetnet.methods.pruning.indicators import (
    Indicators,
    active_of,
    by_channel,
    columns,
    distance,
    kept_by,
    masked,
    pull,
    sample,
)
from budgetnet.methods.pruning.subnetwork import FullNetwork
from budgetnet.methods.resizing import Images, ResizingModule
from budgetnet.methods.train import sgd
from budgetnet.processes.group import Processes
from budgetnet.seeding import keyed_generator


@dataclass(frozen=True)
class GrowPruning:
    """conf/method/grow_prune.yaml: how slim the first network is, and how fast indicators move and harden."""

    start: float = 0.2
    temperature: float = 100.0
    pull: float = 40.0

    def __post_init__(self) -> None:
        if not 0 < self.start < 1:
            raise UsageError(f"method.start={self.start}: expected a share of the filters between 0 and 1")
        if not self.temperature >= 1:
            raise UsageError(f"method.temperature={self.temperature}: expected 1 or more")
        if not self.pull > 0:
            raise UsageError(f"method.pull={self.pull}: expected a number above 0")


class GrowPrune(ResizingModule):
    """Every epoch of `prune.epochs` trains the filters sampled for it; the likeliest that fit are fine-tuned.

    net: the full backbone, traced; it becomes the first sampled network. budget: resolved. Filters that are not sampled
    wait in `full`, as they are. A round is an epoch.
    """

    phase = "grow"

    def __init__(
        self,
        net: nn.Module,
        num_classes: int,
        ledger: TrainCostLedger,
        budget: Budget,
        optim: Optimization,
        method: GrowPruning,
        pruning: Pruning,
        finetune: FineTuning,
        seed: int,
    ) -> None:
        super().__init__(net, num_classes, ledger, budget, optim.label_smoothing)
        self.optim, self.method, self.pruning, self.finetune, self.seed = optim, method, pruning, finetune, seed
        self.pools = pools(self.graph, pruning.scope)
        self.indicators: Indicators | None = Indicators(self.pools, method.start, pruning.epochs, method.temperature)
        self.full = FullNetwork(self.graph, by_channel(self.pools, self.indicators.activity))
        self.distance = 0.0
        """Δu of the running epoch."""
        self._columns: dict[str, Tensor] | None = None
        first = kept_by(self.pools, self._sampled(self.indicators, 0))
        self._begin(self.indicators, first, 0)
        resize(net, first)
        self._flops = self.cost.flops()

    def allowed(self, epochs: int) -> dict[str, int]:
        """What a network that is trained after `epochs` epochs may cost, by kind.

        What is left of the train cost is shared out equally to the epochs that are left.
        """
        return limits_of(self.budget, self.ledger, self.pruning.epochs + self.finetune.epochs - epochs)

    # -- a step -----------------------------------------------------------------------------------------------------

    def forward(self, images: Tensor) -> Tensor:
        """Logits (batch, classes) of images (batch, channels, height, width), filters masked by their σ(βs)."""
        if self.indicators is None:
            return super().forward(images)
        if self._columns is None:
            self._columns = self._masked_columns(self.indicators)
        weights = masked(self.net, self._columns, self.indicators.masks())
        logits: Tensor = functional_call(self.net, weights, (images,))
        return logits

    def regularise(self) -> None:
        """The penalty's gradient: λ_base · Δu, with λ_base such that the steps of prune.epochs add up to `pull`."""
        if self.indicators is None:
            return
        steps = self.pruning.epochs * int(self.trainer.num_training_batches)
        base = self.method.pull * (1 - self.optim.momentum) / (self.optim.lr * steps)
        gradient = self.indicators.scores.grad
        assert gradient is not None
        gradient += pull(self.indicators, base * self.distance * self.loss_scale)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        optimizer = sgd(self.net, self.optim)
        if self.indicators is not None:
            optimizer.add_param_group({"params": [self.indicators.scores], "weight_decay": 0.0})
        return optimizer

    def learning_rate(self, epoch: int, batch: int, steps_per_epoch: int) -> float:
        """Constant after a warm-up while filters are sampled; then the fine-tuning's own schedule."""
        o, spe = self.optim, steps_per_epoch
        if self.phase == "finetune":
            return self.tuning_rate(epoch, batch, spe)
        return learning_rate("constant", o.lr, epoch * spe + batch, self.pruning.epochs * spe, o.warmup_epochs * spe)

    # -- sampling ---------------------------------------------------------------------------------------------------

    def round_is_over(self, epochs: int) -> bool:
        """Every epoch is a round."""
        return self.phase == "grow"

    def epoch_is_over(self, epochs: int) -> None:
        """Indicators that took part get harder."""
        if self.indicators is not None:
            self.indicators.activity += self.indicators.active

    def plan_round(self, epochs: int, images_per_epoch: int, batch: Images | None) -> GrowthPlan:
        """Who trains in the next epoch, as channels of the full network; in the end, who stays."""
        assert self.indicators is not None
        last = epochs >= self.pruning.epochs
        if last:
            scores = by_channel(self.pools, nn.functional.softplus(_logits(self.indicators)))  # -log(1 - σ(βs))
            counts = allocate.ranked(self.pools, scores, allocate.fits(self.cost, self.allowed(epochs)))
            keep = kept(self.pools, scores, counts)
        else:
            keep = kept_by(self.pools, self._sampled(self.indicators, epochs))
        before = self.graph.widths
        after = {**before, **{name: len(channels) for name, channels in keep.items()}}
        stop = self.budget.binding({**self.cost.costs(after), "train_cost": self.ledger.spent}) if last else None
        return GrowthPlan(self.round + 1, before, after, stop=stop, kept=keep)

    def carry_out(self, plan: GrowthPlan, epochs: int, batch: Images | None) -> None:
        """Put back what was trained and take out what is next; in the end, fold the masks into the weights."""
        assert self.indicators is not None
        optimizer = self.optimizer
        Processes(self.trainer).share(self.net.buffers())
        self.full.take(kept_by(self.pools, self.indicators.active), optimizer)
        if plan.changes:
            self.resize(plan.changes, optimizer=optimizer, seed=self.seed)
        self.full.give(plan.kept, optimizer)
        self._begin(self.indicators, plan.kept, epochs)
        if plan.stop is not None:
            self._fold(self.indicators, optimizer)
        self.end_round(plan, epochs)

    def selected(self, group: str, plan: GrowthPlan) -> Tensor:
        """(width,) which of the filters that were trained in this round go on."""
        assert self.indicators is not None
        live = kept_by(self.pools, self.indicators.active).get(group)
        if live is None:
            return super().selected(group, plan)
        return torch.isin(torch.tensor(live), torch.tensor(plan.kept[group]))

    def _sampled(self, indicators: Indicators, epochs: int) -> Tensor:
        """Which indicators are active in the epoch after `epochs`: a function of them, the seed and the epoch."""
        logits = _logits(indicators)
        draws = torch.rand(len(logits), generator=keyed_generator("indicators", self.seed, epochs), dtype=logits.dtype)
        return sample(self.pools, logits, draws, allocate.fits(self.cost, self.allowed(epochs)))

    def _begin(self, indicators: Indicators, keep: Mapping[str, Sequence[int]], epochs: int) -> None:
        """An epoch with the channels `keep` of the full network, which is pulled by the distance from the budget."""
        indicators.active.copy_(active_of(self.pools, keep))
        self.distance = distance(self.pools, indicators.masks().cpu(), self.cost, self.allowed(epochs))
        self._columns = None

    def _masked_columns(self, indicators: Indicators) -> dict[str, Tensor]:
        """See `columns`; on the indicators' device."""
        with torch.inference_mode(False):  # a validation may ask first, and training goes on with them
            numbers = by_channel(self.pools, torch.arange(len(indicators.scores)))
            keep = kept_by(self.pools, indicators.active)
            here = {name: own[keep[name]] for name, own in numbers.items()}
            found = columns(self.graph, here, len(indicators.scores))
            return {path: own.to(indicators.active.device) for path, own in found.items()}

    @torch.no_grad()
    def _fold(self, indicators: Indicators, optimizer: torch.optim.Optimizer) -> None:
        """What was masked is the network's own; the indicators go."""
        for name, weight in masked(self.net, self._masked_columns(indicators), indicators.masks()).items():
            self.net.get_parameter(name).copy_(weight)
        optimizer.param_groups.pop()
        optimizer.state.pop(indicators.scores, None)
        self._end_sampling()

    def _end_sampling(self) -> None:
        self.indicators, self.full = None, FullNetwork(self.graph, ())

    # -- checkpoints ------------------------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        if self.indicators is not None:
            checkpoint["budgetnet"] |= {"distance": self.distance, "full": self.full.state_dict()}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        self._columns = None
        if self.phase == "finetune":
            self._end_sampling()
        else:
            self.distance = checkpoint["budgetnet"]["distance"]
            self.full.load_state_dict(checkpoint["budgetnet"]["full"])


def _logits(indicators: Indicators) -> Tensor:
    """βs in double precision on the CPU."""
    return indicators.logits().detach().cpu().double()


def limits_of(budget: Budget, ledger: TrainCostLedger, epochs: int) -> dict[str, int]:
    """What a network may cost, by kind ("flops", "params"), of which `epochs` epochs are still to be trained."""
    limits = {kind: most for kind, most in budget.limits.items() if kind != "train_cost"}
    if "train_cost" in budget.limits:
        most = (budget.limits["train_cost"] - ledger.spent) // (ledger.images_per_epoch * epochs)
        limits["flops"] = min(most, limits.get("flops", most))
    return limits


def build(config: Mapping[str, Any], net: nn.Module, num_classes: int, ledger: TrainCostLedger) -> GrowPrune:
    """The method for a resolved configuration; `net` is the full backbone, traced, and becomes the first network.

    Raises UsageError for options out of range, and for a budget that no sampled network meets.
    """
    method = options(GrowPruning, "method", config["method"])
    pruning = options(Pruning, "prune", config["prune"])
    finetune = options(FineTuning, "finetune", config["finetune"])
    whole = pruning.epochs + finetune.epochs
    must_fit(config["epochs"], whole, f"prune.epochs={pruning.epochs}", f"finetune.epochs={finetune.epochs}")
    cost = CostModel(ChannelGraph.of(net))
    budget = Budget(**config["budget"])
    budget.require()
    budget = budget.resolve({**cost.costs(), "train_cost": ledger.baseline_cost})
    allocate.check(budget.limits, cost, pruning.scope, whole * ledger.images_per_epoch)
    optim = options(Optimization, "optim", config["optim"])
    return GrowPrune(net, num_classes, ledger, budget, optim, method, pruning, finetune, config["seed"])
