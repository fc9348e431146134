"""Growing and pruning with indicators: every epoch trains a sub-network within the budget, sampled from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from budgetnet.channels import resize
from budgetnet.methods.method import Images, Method, Training, must_fit
from budgetnet.methods.options import FineTuning, Optimization
from budgetnet.methods.phases import Phase
from budgetnet.methods.plan import Plan, WidthPlan
from budgetnet.methods.pruning import allocate, channels_to_keep, coupled_channels
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
from budgetnet.methods.pruning.options import Sampling, Scope
from budgetnet.methods.pruning.subnetwork import FullNetwork
from budgetnet.optim.sgd import sgd
from budgetnet.seeding import keyed_generator
from budgetnet.tasks import Output


class GrowPrune(Method):
    """Trains a new sample of filters in each of `method.search_epochs` epochs, then fine-tunes the likeliest that fit.

    Filters that are not sampled stay unchanged in `full`. A round is an epoch.
    """

    def __init__(self, optim: Optimization, prune: Scope, finetune: FineTuning, method: Sampling) -> None:
        super().__init__(optim)
        optim.must_be_sgd("grow_prune")
        self.scope, self.finetune, self.sampling = prune.scope, finetune, method

    def start(self, training: Training) -> list[Phase]:
        """Narrow the backbone to the first sampled network.

        Raises UsageError for a budget that no pruned network meets, and for phases longer than the run.
        """
        self.training = training
        sampling, tune = self.sampling, self.finetune.epochs
        epochs = self.search_epochs = training.epochs_before(tune, sampling.search_epochs)
        must_fit(training.epochs, epochs + tune, f"method.search_epochs={epochs}", f"finetune.epochs={tune}")
        images = (epochs + tune) * training.ledger.images_per_epoch
        allocate.check(training.budget.limits, training.pricing.model, self.scope, images)
        self.coupled = coupled_channels(self.graph, self.scope)
        indicators = Indicators(self.coupled, sampling.start, epochs, sampling.temperature)
        self.modules["indicators"] = indicators
        self.full = FullNetwork(self.graph, by_channel(self.coupled, indicators.activity))
        self.distance = 0.0
        """Δu of the current epoch."""
        self._columns: dict[str, Tensor] | None = None
        first = kept_by(self.coupled, self._sampled(indicators, 0))
        self._begin(indicators, first, 0)
        resize(self.net, first)
        training.pricing.update()
        return [self.optim.growing(epochs=epochs), self.finetune.phase(self.optim)]

    @property
    def searching(self) -> bool:
        return self.indicators is not None

    @property
    def indicators(self) -> Indicators | None:
        """The indicators of all sets of coupled filters, or None after they are folded into the weights."""
        found = dict(self.modules.items()).get("indicators")
        assert found is None or isinstance(found, Indicators)
        return found

    def allowed(self, epochs: int) -> dict[str, int]:
        """The limits, by kind, on the network that is trained after `epochs` epochs.

        The rest of the train cost is divided equally among the remaining epochs.
        """
        return self.training.limits(self.search_epochs + self.finetune.epochs - epochs)

    # -- a step -------------------------------------------------------------------------------------------------------

    def forward(self, images: Tensor) -> Output:
        """The output of the network with each filter masked by its σ(βs)."""
        if self.indicators is None:
            return super().forward(images)
        if self._columns is None:
            self._columns = self._masked_columns(self.indicators)
        weights = masked(self.net, self._columns, self.indicators.masks())
        output: Output = functional_call(self.net, weights, (images,))
        return output

    def before_step(self) -> None:
        """Add the gradient of the penalty, λ_base · Δu, where λ_base over all steps of the search adds up to `pull`."""
        if self.indicators is None:
            return
        steps = self.search_epochs * self.training.steps_per_epoch
        base = self.sampling.pull * (1 - self.optim.momentum) / (self.optim.lr * steps)
        gradient = self.indicators.scores.grad
        assert gradient is not None
        gradient += pull(self.indicators, base * self.distance * self.training.loss_scale())

    def optimizers(self) -> list[torch.optim.Optimizer]:
        optimizer = sgd(self.net, self.optim.lr, self.optim.momentum, self.optim.weight_decay)
        if self.indicators is not None:
            optimizer.add_param_group({"params": [self.indicators.scores], "weight_decay": 0.0})
        return [optimizer]

    # -- sampling -----------------------------------------------------------------------------------------------------

    def after_epoch(self, epochs: int) -> None:
        """Count an epoch for the active indicators, which raises their temperatures."""
        if self.indicators is not None:
            self.indicators.activity += self.indicators.active

    def plan(self, epochs: int, batch: Images | None) -> WidthPlan | None:
        """Plan which channels of the full network train in the next epoch or, at the end of the search, remain."""
        if self.indicators is None or epochs == 0:
            return None
        last, price = epochs >= self.search_epochs, self.training.pricing.model
        if last:
            scores = by_channel(self.coupled, nn.functional.softplus(_logits(self.indicators)))  # -log(1 - σ(βs))
            counts = allocate.ranked(self.coupled, scores, allocate.fits(price, self.allowed(epochs)))
            keep = channels_to_keep(self.coupled, scores, counts)
        else:
            keep = kept_by(self.coupled, self._sampled(self.indicators, epochs))
        before, spent = self.graph.widths, self.training.ledger.spent
        after = {**before, **{name: len(channels) for name, channels in keep.items()}}
        stop = self.training.budget.binding({**price.costs(after), "train_cost": spent}) if last else None
        return WidthPlan(self.training.round + 1, before, after, stop=stop, keep=keep)

    def apply(self, plan: Plan, batch: Images | None) -> None:
        """Store the trained filters and load the next ones; at the end of the search, fold the masks into weights."""
        assert isinstance(plan, WidthPlan) and self.indicators is not None
        optimizer, training = self.training.optimizer, self.training
        training.processes.synchronise(self.net.buffers())
        self.full.take(kept_by(self.coupled, self.indicators.active), optimizer)
        if plan.changes:
            training.resize(plan.changes, optimizer=optimizer, seed=training.seed)
        self.full.give(plan.keep, optimizer)
        self._begin(self.indicators, plan.keep, training.epoch + 1)
        if plan.stop is not None:
            self._fold(self.indicators, optimizer)

    def selected(self, group: str, plan: WidthPlan) -> Tensor:
        """Which of the filters that were trained in this round are selected again, bool (width,)."""
        assert self.indicators is not None
        trained = kept_by(self.coupled, self.indicators.active).get(group)
        if trained is None:
            return super().selected(group, plan)
        return torch.isin(torch.tensor(trained), torch.tensor(plan.keep[group]))

    def _sampled(self, indicators: Indicators, epochs: int) -> Tensor:
        """Which indicators are active after `epochs` epochs, (n,): a function of indicators, seed and epoch."""
        logits = _logits(indicators)
        key = keyed_generator("indicators", self.training.seed, epochs)
        draws = torch.rand(len(logits), generator=key, dtype=logits.dtype)
        fits = allocate.fits(self.training.pricing.model, self.allowed(epochs))
        return sample(self.coupled, logits, draws, fits)

    def _begin(self, indicators: Indicators, keep: Mapping[str, Sequence[int]], epochs: int) -> None:
        """Begin an epoch with the channels `keep` of the full network, and measure its distance from the budget."""
        indicators.active.copy_(active_of(self.coupled, keep))
        masks = indicators.masks().cpu()
        self.distance = distance(self.coupled, masks, self.training.pricing.model, self.allowed(epochs))
        self._columns = None

    def _masked_columns(self, indicators: Indicators) -> dict[str, Tensor]:
        """The result of `columns` for the current network, on the device of the indicators."""
        with torch.inference_mode(False):  # a validation may compute them first, and training uses them later
            numbers = by_channel(self.coupled, torch.arange(len(indicators.scores)))
            keep = kept_by(self.coupled, indicators.active)
            current = {name: own[keep[name]] for name, own in numbers.items()}
            found = columns(self.graph, current, len(indicators.scores))
            return {path: own.to(indicators.active.device) for path, own in found.items()}

    @torch.no_grad()
    def _fold(self, indicators: Indicators, optimizer: torch.optim.Optimizer) -> None:
        """Multiply the masks into the weights and drop the indicators."""
        for name, weight in masked(self.net, self._masked_columns(indicators), indicators.masks()).items():
            self.net.get_parameter(name).copy_(weight)
        optimizer.param_groups.pop()
        optimizer.state.pop(indicators.scores, None)
        self._end_sampling()

    def _end_sampling(self) -> None:
        self.modules.clear()
        self.full = FullNetwork(self.graph, ())

    # -- checkpoints --------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        if self.indicators is None:
            return {"full": None}
        return {"distance": self.distance, "full": self.full.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._columns = None
        if state["full"] is None:
            self._end_sampling()
        else:
            self.distance = state["distance"]
            self.full.load_state_dict(state["full"])


def _logits(indicators: Indicators) -> Tensor:
    """βs in double precision on the CPU."""
    return indicators.logits().detach().cpu().double()
