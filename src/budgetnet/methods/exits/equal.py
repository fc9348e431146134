"""A network with early exits, trained by the sum of its exits' losses, and the thresholds that keep a mean budget."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from budgetnet.channels import ChannelGraph
from budgetnet.costs.exits import ExitCosts
from budgetnet.costs.pricing import ExitPricing
from budgetnet.errors import UsageError
from budgetnet.methods.exits.allocation import confidences
from budgetnet.methods.exits.budgeted import Setting, check_budget, curve, evaluate, leaving, within
from budgetnet.methods.exits.imta import Collaborating, OneForAll
from budgetnet.methods.exits.options import Techniques
from budgetnet.methods.method import Images, Method, Training, must_fit
from budgetnet.methods.options import FineTuning, Optimization
from budgetnet.methods.phases import Phase
from budgetnet.methods.plan import Plan, WidthPlan
from budgetnet.tasks import Classification, Output, each_of
from budgetnet.tasks.multi_exit import MultiExit

MOST_SHOWN = 10
"""Of each exit, the most images that a report shows."""


class Settings(nn.Module):
    """Settings of a network's thresholds, found on images held out; saved and loaded with the weights they suit.

    chosen: the setting that keeps the mean budget, if there is a budget. curve: every one of `SETTINGS`.
    They are extra state, not buffers: thresholds must not be rounded to the precision of the network.
    """

    def __init__(self) -> None:
        super().__init__()
        self.chosen: Setting | None = None
        self.curve: list[Setting] = []

    def get_extra_state(self) -> dict[str, Any]:
        """Plain values: q, accuracy and mean FLOPs, and then the thresholds, of each setting."""
        return {"chosen": [_row(self.chosen)] if self.chosen else [], "curve": [_row(each) for each in self.curve]}

    def set_extra_state(self, state: Any) -> None:
        """Take what `get_extra_state` gave."""
        self.chosen = next((_setting(row) for row in state["chosen"]), None)
        self.curve = [_setting(row) for row in state["curve"]]


def _row(setting: Setting) -> list[float]:
    return [setting.q, setting.accuracy, setting.mean_flops, *setting.thresholds]


def _setting(row: list[float]) -> Setting:
    q, accuracy, mean_flops, *thresholds = row
    return Setting(q, tuple(thresholds), accuracy, mean_flops)


class Exits(Method):
    """Trains all exits alike, and sets thresholds of confidence at which images leave.

    The thresholds are set on the images held out after every epoch. With budget.mean_flops the most accurate setting
    within it is chosen, and the accuracy that it has there selects the network; without, that of the last exit does.
    With imta the epochs of fine-tuning are the second phase: the network is frozen, and new classifiers learn.
    """

    budgets = ("mean_flops",)
    needs_budget = False
    has_examples = True

    def __init__(self, optim: Optimization, finetune: FineTuning, method: Techniques) -> None:
        super().__init__(optim)
        self.finetune, self.imta = finetune, method.imta
        self.settings = Settings()
        self.modules["settings"] = self.settings
        self._seen: list[tuple[Tensor, Tensor]] = []
        """Confidences and whether exits are right, (batch, exits), of the running evaluation."""
        self._tested: list[tuple[float, float]] = []
        """Accuracy and mean FLOPs on the test set of each setting of the curve."""
        self._test: dict[str, Any] = {}

    @property
    def exits(self) -> ExitCosts:
        """Costs of the exits of the final network."""
        return self._final.exits

    @property
    def flops(self) -> Tensor:
        """(exits,) of an image that leaves the final network there, float64."""
        return torch.tensor(self.exits.lazy["flops"], dtype=torch.float64)

    def start(self, training: Training) -> list[Phase]:
        """Raises UsageError for a network with one output, and a mean budget that cannot be kept or checked."""
        self.training = training
        pricing, task = training.pricing, training.task
        if not isinstance(pricing, ExitPricing):
            raise UsageError(
                f"backbone={training.backbone} has one output: a method with exits takes msdnet or ranet, or an own "
                "network that is a budgetnet.backbones.exits.ExitNetwork"
            )
        if not (isinstance(task, MultiExit) and isinstance(task.task, Classification)):
            raise UsageError(f"task={task.name}: the exits of this method classify whole images; leave task out")
        phases = [self.optim.phase("train", training.epochs, final=True)]
        self._first = self._final = pricing
        if self.imta:
            phases = self._two_phases()
        if (most := training.budget.limits.get("mean_flops")) is not None:
            check_budget(most, self.flops)
            if training.validation_every is None:
                raise UsageError(
                    f"budget.mean_flops={most} is kept by thresholds that are set on images held out: set "
                    "dataset.validation to how many"
                )
            if training.validation_every > 1:
                raise UsageError(
                    f"trainer.check_val_every_n_epoch={training.validation_every}: with budget.mean_flops thresholds "
                    "are set after every epoch; leave it out"
                )
        return phases

    # -- two phases ---------------------------------------------------------------------------------------------------

    def _two_phases(self) -> list[Phase]:
        """Replaces the network by one with new classifiers, which wait for the second phase."""
        training, epochs = self.training, self.finetune.epochs
        must_fit(training.epochs, epochs + 1, "an epoch of the first phase of method.imta=true", f"finetune.{epochs=}")
        net = Collaborating(self._first.network)
        ChannelGraph.trace(net, torch.empty(1, *training.input_shape))
        training.net, self._final = net.freeze(False), ExitPricing(net)
        return [self.optim.phase("train", training.epochs - epochs), self.finetune.phase(self.optim)]

    def plan(self, epochs: int, batch: Images | None) -> Plan | None:
        """With imta, the end of the first phase."""
        if not self.imta or epochs != self.training.epochs - self.finetune.epochs:
            return None
        widths = self.graph.widths
        return WidthPlan(self.training.round + 1, widths, widths, stop="epochs")

    def apply(self, plan: Plan, batch: Images | None) -> None:
        self._begin_second()

    def _begin_second(self) -> None:
        """Freezes the network, whose last exit teaches the new classifiers from now on."""
        net, training = self.net, self.training
        assert isinstance(net, Collaborating) and isinstance(training.task, MultiExit)
        net.freeze()
        training.pricing = self._final
        training.task = OneForAll(training.task, net.teacher)

    def first_filters(self, plan: Plan) -> None:
        """None: no filters are selected."""

    def computed(self, images: int) -> list[tuple[int, int]]:
        """In the second phase the teacher passes the images too."""
        taught = isinstance(self.training.task, OneForAll)
        return [*super().computed(images), *([(images, self._first.flops)] if taught else [])]

    def state_dict(self) -> dict[str, Any]:
        """taught: whether imta is in its second phase; None without it."""
        taught = isinstance(self.training.task, OneForAll) if self.imta else None
        return {**super().state_dict(), "taught": taught}

    def rebuild(self, state: Mapping[str, Any]) -> None:
        if state.get("taught") and not isinstance(self.training.task, OneForAll):
            self._begin_second()

    # -- evaluation ---------------------------------------------------------------------------------------------------

    def refresh(self) -> None:
        """Every process has the settings that the first has: it alone has read the checkpoint of the best epoch."""
        self._seen.clear()
        state = self.training.processes.broadcast(self.settings.get_extra_state())
        self.settings.set_extra_state(state)

    def judge(self, output: Output, targets: Tensor) -> None:
        logits = [each.float() for each in each_of(output)]
        right = torch.stack([each.argmax(1) == targets for each in logits], 1)
        self._seen.append((confidences(logits).cpu(), right.cpu()))

    def judged(self, split: str) -> dict[str, float]:
        """With a mean budget: the accuracy, in percent, under the thresholds that keep it, and the mean FLOPs."""
        seen, self._seen = self._seen, []
        own = tuple(torch.cat(parts) for parts in zip(*seen, strict=True))
        confidence, right = (torch.cat(parts) for parts in zip(*self.training.processes.gather(own), strict=True))
        most = self.training.budget.limits.get("mean_flops")
        if split == "val":
            self.settings.curve = curve(confidence, right, self.flops)
            self.settings.chosen = None if most is None else within(confidence, right, self.flops, most)
        else:
            self._tested = [self._evaluated(confidence, right, setting) for setting in self.settings.curve]
        if (chosen := self.settings.chosen) is None:
            return {}
        accuracy, mean = self._evaluated(confidence, right, chosen)
        if split == "test":
            gone = torch.bincount(leaving(confidence, _limits(chosen)), minlength=len(self.flops))
            self._test = {"test_mean_flops": mean, "test_leaving": gone.tolist()}
        return {self.training.task.metric.name: 100 * accuracy, "mean_flops": mean}

    def _evaluated(self, confidence: Tensor, right: Tensor, setting: Setting) -> tuple[float, float]:
        return evaluate(confidence, right, _limits(setting), self.flops)

    # -- records ------------------------------------------------------------------------------------------------------

    def costs(self) -> dict[str, int]:
        """Those of the whole network; and mean_flops on the images held out, rounded up, once a setting is chosen."""
        chosen = self.settings.chosen
        return {**super().costs(), **({} if chosen is None else {"mean_flops": math.ceil(chosen.mean_flops)})}

    def rows(self) -> dict[str, dict[str, float]]:
        """exits.csv: the setting that keeps the mean budget, as of the last evaluation."""
        chosen = self.settings.chosen
        if chosen is None:
            return {}
        limits = {f"threshold_{number}": limit for number, limit in enumerate(chosen.thresholds, start=1)}
        return {"exits": {"q": chosen.q, "accuracy": 100 * chosen.accuracy, "mean_flops": chosen.mean_flops, **limits}}

    def facts(self) -> dict[str, Any]:
        """What an image costs that leaves at each exit, and the setting that was chosen."""
        costs = {
            "params": list(self.exits.lazy["params"]),
            "flops": list(self.exits.lazy["flops"]),
            "published_flops": list(self.exits.cumulative["published"]),
        }
        if (chosen := self.settings.chosen) is None:
            return {"exits": costs}
        setting = {"q": chosen.q, "thresholds": list(chosen.thresholds[:-1]), "val_mean_flops": chosen.mean_flops}
        return {"exits": costs | setting | self._test}

    def examples(self, images: Tensor) -> dict[str, Tensor]:
        """By exit, the first images that leave there, under the setting that was chosen."""
        if (chosen := self.settings.chosen) is None:
            return {}
        left = leaving(confidences([each.float() for each in each_of(self.evaluate(images))]), _limits(chosen))
        return {f"exit {k + 1}": (left == k).nonzero().flatten()[:MOST_SHOWN] for k in range(len(self.flops))}

    def export(self, directory: Path) -> None:
        """exit_1.onnx and so on, and exits.json: see `export_exits`."""
        from budgetnet.methods.exits.export import export_exits

        settings, network = self.settings, self._final.network
        export_exits(
            network, self.training.input_shape, directory, self.exits.lazy["flops"], settings.chosen, settings.curve
        )

    def tables(self) -> dict[str, list[dict[str, float]]]:
        """budgeted.csv: accuracies, in percent, and mean FLOPs of all settings, on the images held out and the test."""
        rows = [
            {
                "q": setting.q,
                "val_accuracy": 100 * setting.accuracy,
                "val_mean_flops": setting.mean_flops,
                "test_accuracy": 100 * accuracy,
                "test_mean_flops": mean,
            }
            for setting, (accuracy, mean) in zip(self.settings.curve, self._tested, strict=True)
        ]
        return {"budgeted": rows} if rows else {}


def _limits(setting: Setting) -> Tensor:
    return torch.tensor(setting.thresholds, dtype=torch.float64)
