"""What a method is, and what it is handed: a network to change, its prices and its budget. No trainer, no Lightning.

A method is a class whose constructor takes, by the names of the sections of conf/, the value objects of the options
that it reads (`budgetnet.options`); every hook below has a default but `start`. docs/extending.md has a complete
example.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from budgetnet.channels import ChannelGraph, resize
from budgetnet.costs import Budget, TrainCostLedger
from budgetnet.costs.pricing import Pricing
from budgetnet.errors import UsageError
from budgetnet.methods.options import Optimization
from budgetnet.methods.phases import Phase
from budgetnet.methods.plan import Plan, WidthPlan
from budgetnet.optim.sgd import sgd
from budgetnet.processes.group import Processes
from budgetnet.tasks import Output, Task

Images = tuple[Tensor, Tensor]
"""(images, targets) on the network's device."""


def _one() -> float:
    return 1.0


@dataclass
class Training:
    """What a method is handed.

    net: the full backbone, traced; `start` makes it what training begins with. budget: resolved, in whole numbers.
    epochs: of the whole run, at most. backbone: what it is called. input_shape: (channels, height, width).
    batch_size: images of a step, of all processes together. validation_every: epochs between two validations; None:
    nothing is held out. micro_batches: parts that a process's images are passed in, to save memory. processes: this one
    and the others.
    """

    net: nn.Module
    task: Task
    pricing: Pricing
    ledger: TrainCostLedger
    budget: Budget
    epochs: int
    seed: int = 0
    backbone: str = "own"
    input_shape: tuple[int, int, int] = (3, 32, 32)
    batch_size: int = 128
    steps_per_epoch: int = 1
    validation_every: int | None = 1
    micro_batches: int = 1
    processes: Processes = field(default_factory=Processes)
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    dtype: torch.dtype = torch.float32

    # -- where training stands, kept up to date by the trainer --------------------------------------------------------
    phase: Phase = field(default_factory=lambda: Phase("train", None, 0.0))
    round: int = 0
    """Rounds that were carried out."""
    epoch: int = 0
    batch: int = 0
    optimizers: list[torch.optim.Optimizer] = field(default_factory=list)
    results: dict[str, float] = field(default_factory=dict)
    """Metrics of the last training epoch and the last evaluation: train_loss, val_<metric> and so on."""

    # -- how a step goes ----------------------------------------------------------------------------------------------
    backward: Callable[[Tensor], None] = Tensor.backward
    """Add up the gradients of a loss."""
    unreduced: Callable[[], AbstractContextManager[None]] = nullcontext
    """Within it, gradients stay on this process: those of a batch's last part reduce all."""
    loss_scale: Callable[[], float] = _one
    """What gradients are multiplied with until the optimizer steps: above 1 under precision 16-mixed."""
    compiled: Callable[[Tensor], Output] | None = None
    """The method's `forward`, compiled, once no shape changes any more."""

    @property
    def graph(self) -> ChannelGraph:
        """The channel graph of the network now."""
        return ChannelGraph.of(self.net)

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """The optimizer of the network."""
        return self.optimizers[0]

    def resize(self, widths: Mapping[str, int | Sequence[int]], **options: Any) -> None:
        """Change widths of the live network (see `budgetnet.resize`) and price it anew."""
        resize(self.net, widths, **options)
        self.pricing.update()

    def epochs_before(self, finetuning: int, stated: int | None) -> int:
        """Epochs before a fine-tuning of so many: as stated, or (None) all that it leaves of the run, at least one."""
        return max(1, self.epochs - finetuning) if stated is None else stated

    def flops_left(self, epochs: int) -> int | None:
        """FLOPs of a network that may be trained for `epochs` epochs from what is left of the train cost; None: any."""
        most = self.budget.limits.get("train_cost")
        if most is None or not epochs:
            return None
        return (most - self.ledger.spent) // (epochs * self.ledger.images_per_epoch)

    def limits(self, epochs: int) -> dict[str, int]:
        """By kind, what a network may cost that is trained for `epochs` more; the train cost bounds its FLOPs."""
        limits = {kind: most for kind, most in self.budget.limits.items() if kind != "train_cost"}
        if (left := self.flops_left(epochs)) is not None:
            limits["flops"] = min(left, limits.get("flops", left))
        return limits


class Method:
    """A way to a network within a budget. Every hook is optional but `start`; `self.training` is there from then on.

    keeps: the kinds of budget that it can hold. needs_budget: whether one must be stated. create_graph: whether its
    step differentiates through gradients. unused_parameters: whether some parameters may be left without a gradient in
    a step (on several processes that takes a search for them). modules: its own modules, whose parameters and buffers
    are moved, reduced and saved like those of the network.
    """

    keeps: ClassVar[tuple[str, ...]] = ("flops", "params", "train_cost")
    needs_budget: ClassVar[bool] = True
    create_graph: ClassVar[bool] = False
    unused_parameters: ClassVar[bool] = False
    optim: Optimization
    training: Training

    def __init__(self, optim: Optimization) -> None:
        self.optim = optim
        self.modules = nn.ModuleDict()

    @property
    def net(self) -> nn.Module:
        """The network that is trained."""
        return self.training.net

    @property
    def graph(self) -> ChannelGraph:
        """Its channel graph."""
        return self.training.graph

    # -- before training ----------------------------------------------------------------------------------------------

    def start(self, training: Training) -> list[Phase]:
        """Make the full backbone the network that training begins with; the phases of the run.

        Nothing has been written, and the processes do not know each other yet. Raises UsageError for options and
        budgets that cannot go together. Subclasses set `self.training` first.
        """
        raise NotImplementedError

    def check(self, continued: bool) -> None:
        """Raises UsageError where the method cannot run so, as far as `start` cannot tell; continued: a run goes on."""

    def begin(self) -> None:
        """Called on every process when training begins or goes on, and they know each other."""

    def optimizers(self) -> list[torch.optim.Optimizer]:
        """The network's optimizer first: its learning rate is the phase's, in a group with "lr_scale" times that.

        Others keep their own learning rates, and step when it does.
        """
        return [sgd(self.net, self.optim.lr, self.optim.momentum, self.optim.weight_decay)]

    # -- a step -------------------------------------------------------------------------------------------------------

    def forward(self, images: Tensor) -> Output:
        """The output of the network that is trained now, of images (batch, channels, height, width)."""
        output: Output = self.training.net(images)
        return output

    def evaluate(self, images: Tensor) -> Output:
        """The output of the network that would be left if training ended now."""
        return self.forward(images)

    def loss(self, output: Output, targets: Tensor) -> Tensor:
        """What training lowers, a scalar: by default the task's mean loss."""
        return self.training.task.loss(output, targets)

    def step(self, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Add up the gradients of a batch; returns its mean loss and the sums of its metrics (`Task.sums`).

        By default the batch is passed in `micro_batches` parts. The optimizers step afterwards.
        """
        training, number = self.training, self.training.micro_batches
        forward = training.compiled or self.forward
        parts = list(zip(images.chunk(number), targets.chunk(number), strict=True))
        losses, sums = [], []
        for place, (some, of_some) in enumerate(parts, start=1):
            with training.unreduced() if place < len(parts) else nullcontext():
                output = forward(some)
                loss = self.loss(output, of_some)
                loss = loss if len(parts) == 1 else loss * (len(of_some) / len(targets))
                training.backward(loss)
            losses.append(loss.detach())
            sums.append(training.task.sums(detached(output), of_some))
        if len(parts) == 1:
            return losses[0], sums[0]
        return torch.stack(losses).sum(), torch.stack(sums).sum(0)

    def before_step(self) -> None:
        """Add to the gradients, times `loss_scale`, what no loss of a batch gives; by default nothing."""

    def computed(self, images: int) -> list[tuple[int, int]]:
        """(images, FLOPs of one) that a step of so many images, of all processes, has cost: for the ledger."""
        return [(images, self.training.pricing.flops)]

    # -- after an epoch -----------------------------------------------------------------------------------------------

    def refresh(self) -> None:
        """Called before an evaluation and before an epoch is recorded: bring up to date what they ask for."""

    def collect(self) -> None:
        """Add what this process has counted to the totals of all, which all call at the same steps."""

    def after_epoch(self, epochs: int) -> None:
        """Whatever every process does after `epochs` epochs, before a plan is made."""

    def images(self, epochs: int) -> int:
        """How many training images `plan` and `apply` want after `epochs` epochs, at least; 0: none."""
        return 0

    def plan(self, epochs: int, batch: Images | None) -> Plan | None:
        """What is to happen after `epochs` epochs; 0 comes before the first step. None: nothing.

        Asked on the first process alone. batch: as many images as `images` wanted, of this process.
        """
        return None

    def apply(self, plan: Plan, batch: Images | None) -> None:
        """Carry out a plan, on every process."""

    def first_filters(self, plan: Plan) -> tuple[Tensor, Tensor] | None:
        """Weights of the first convolution, on the CPU, and which of its filters are selected, (filters,).

        Asked before the plan is carried out (the AdeNeL paper's Figure 4). None where the plan is not of widths, or the
        first width is a linear layer's.
        """
        first = self.graph.groups[0]
        if not isinstance(plan, WidthPlan) or first.kind != "convolution":
            return None
        weight = self.net.get_parameter(f"{first.name}.weight")
        return weight.detach().float().cpu(), self.selected(first.name, plan).cpu()

    def selected(self, group: str, plan: WidthPlan) -> Tensor:
        """(width,) which filters of a group a plan keeps; none where it does not choose among them."""
        chosen = torch.zeros(self.graph.group(group).width, dtype=torch.bool)
        chosen[torch.tensor(plan.keep.get(group, ()), dtype=torch.long)] = True
        return chosen

    # -- what is said of it -------------------------------------------------------------------------------------------

    def costs(self) -> dict[str, int]:
        """By kind, what the network costs that would be left if training ended now."""
        return self.training.pricing.costs()

    def rows(self) -> dict[str, dict[str, float]]:
        """Rows for the epoch that ended, by file: {"saturation": {...}} is a line of saturation.csv."""
        return {}

    def facts(self) -> dict[str, Any]:
        """What summary.json says of the method's own."""
        return {}

    # -- checkpoints --------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """What a continued run must know besides modules, optimizers, widths and phase: plain values and tensors."""
        return {}

    def rebuild(self, state: Mapping[str, Any]) -> None:
        """Give the network the structure that it had at `state_dict`, before its widths and weights are loaded.

        May be called again when that was done already.
        """

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`, once the network has its widths."""


def detached(output: Output) -> Output:
    """Outputs without their graph."""
    return output.detach() if isinstance(output, Tensor) else tuple(each.detach() for each in output)


def must_fit(epochs: int, needed: int, *parts: str) -> None:
    """Raises UsageError if `needed` epochs, those of all `parts` ("finetune.epochs=40"), are more than a run's."""
    if needed > epochs:
        raise UsageError(
            f"{', '.join(parts[:-1])} and {parts[-1]} do not fit into epochs={epochs}: "
            f"raise it to {needed} or shorten one of them"
        )
