"""The interface of a method, and the training state that it works on. It depends on neither trainer nor Lightning.

A method is a class. The parameters of its constructor are named after sections of conf/ and take the value objects of
the options that it reads (`budgetnet.options`). Every hook except `start` has a default. docs/extending.md has a
complete example.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from budgetnet.channels import ChannelGraph, resize
from budgetnet.costs import Budget, TrainCostLedger
from budgetnet.costs.pricing import Pricing
from budgetnet.errors import UsageError
from budgetnet.methods.options import Optimization
from budgetnet.methods.phases import Phase, Stretch
from budgetnet.methods.plan import Plan, WidthPlan
from budgetnet.optim.sgd import adam, sgd
from budgetnet.processes.group import Processes
from budgetnet.tasks import Output, Task

Images = tuple[Tensor, Tensor]
"""(images, targets) on the network's device."""


def _one() -> float:
    return 1.0


@dataclass
class Training:
    """The network, task, prices and budget that a method works on, and the progress of training.

    net: the traced full backbone; `start` turns it into the network that training begins with.
    budget: the resolved budget, in whole numbers.
    epochs: the most epochs that the whole run may take.
    backbone: the name of the backbone.
    input_shape: (channels, height, width) of one image.
    batch_size: images per step, over all processes.
    validation_every: epochs between two validations, or None if no images are held out.
    micro_batches: how many micro-batches the images of one process are divided into, to save memory.
    processes: the group of training processes, and the rank of this one.
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
    weights: str | None = None
    """What is said of the trained weights that the network has (backbone.weights, start.from), or None: it has none."""
    started: bool = False
    """Whether the network is that of another run (start.from), at its widths."""

    # -- progress, updated by the trainer -----------------------------------------------------------------------------
    phase: Phase = field(default_factory=lambda: Phase("train", None, 0.0))
    round: int = 0
    """How many rounds have been applied."""
    epoch: int = 0
    batch: int = 0
    optimizers: list[torch.optim.Optimizer] = field(default_factory=list)
    results: dict[str, float] = field(default_factory=dict)
    """Metrics of the last training epoch and of the last evaluation: train_loss, val_<metric> and so on."""

    # -- functions that a step uses -----------------------------------------------------------------------------------
    backward: Callable[[Tensor], None] = Tensor.backward
    """Adds the gradients of a loss to those of the parameters."""
    unreduced: Callable[[], AbstractContextManager[None]] = nullcontext
    """A context in which gradients are not averaged over processes; the last micro-batch of a step averages all."""
    loss_scale: Callable[[], float] = _one
    """The factor by which gradients are scaled until the optimizer steps: above 1 under precision 16-mixed."""
    compiled: Callable[[Tensor], Output] | None = None
    """The compiled `forward` of the method, once the network has its final shape."""

    @property
    def graph(self) -> ChannelGraph:
        """The current channel graph of the network."""
        return ChannelGraph.of(self.net)

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """The optimizer of the network."""
        return self.optimizers[0]

    def resize(self, widths: Mapping[str, int | Sequence[int]], **options: Any) -> None:
        """Change widths of the live network (see `budgetnet.resize`) and update its price.

        Raises GraphError and UsageError as `budgetnet.resize` does.
        """
        resize(self.net, widths, **options)
        self.pricing.update()

    def epochs_before(self, finetuning: int, stated: int | None) -> int:
        """The epochs before `finetuning` epochs of fine-tuning: `stated`, or the rest of the run, at least 1."""
        return max(1, self.epochs - finetuning) if stated is None else stated

    def flops_left(self, epochs: int) -> int | None:
        """The FLOPs per image that the rest of the train cost allows in `epochs` more epochs; None without a limit."""
        most = self.budget.limits.get("train_cost")
        if most is None or not epochs:
            return None
        return (most - self.ledger.spent) // (epochs * self.ledger.images_per_epoch)

    def limits(self, epochs: int) -> dict[str, int]:
        """The limits, by kind, on a network that trains for `epochs` more epochs; the train cost bounds its FLOPs."""
        limits = {kind: most for kind, most in self.budget.limits.items() if kind != "train_cost"}
        if (left := self.flops_left(epochs)) is not None:
            limits["flops"] = min(left, limits.get("flops", left))
        return limits


class Method:
    """A way to find a network within a budget. Every hook except `start` is optional; `start` sets `self.training`.

    budgets: the kinds of budget that the method can meet.
    needs_budget: whether a budget must be stated.
    create_graph: whether a step differentiates through gradients.
    no_weights: why the method cannot start from trained weights of the full backbone, or None if it can. goes_on:
    whether it can nevertheless start from the network of another run (start.from).
    unused_parameters: whether a step may leave some parameters without a gradient, for which
    DistributedDataParallel then has to search.
    has_examples: whether `examples` chooses any images.
    modules: modules of the method's own, whose parameters and buffers are moved, synchronised and saved like those of
    the network.
    """

    budgets: ClassVar[tuple[str, ...]] = ("flops", "params", "train_cost")
    needs_budget: ClassVar[bool] = True
    create_graph: ClassVar[bool] = False
    no_weights: ClassVar[str | None] = None
    goes_on: ClassVar[bool] = False
    unused_parameters: ClassVar[bool] = False
    has_examples: ClassVar[bool] = False
    optim: Optimization
    training: Training

    def __init__(self, optim: Optimization) -> None:
        self.optim = optim
        self.modules = nn.ModuleDict()

    @property
    def net(self) -> nn.Module:
        """The network in training."""
        return self.training.net

    @property
    def graph(self) -> ChannelGraph:
        """The current channel graph of the network."""
        return self.training.graph

    # -- before training ----------------------------------------------------------------------------------------------

    def start(self, training: Training) -> list[Phase]:
        """Turn the full backbone into the network that training begins with, and return the phases of the run.

        It is called before any file is written and before the processes can communicate. A subclass sets
        `self.training` first. Raises UsageError for options and budgets that contradict each other.
        """
        raise NotImplementedError

    def check(self, continued: bool) -> None:
        """Check what `start` cannot know yet, such as the number of processes. continued: whether a run is resumed.

        Raises UsageError if the method cannot run under these conditions.
        """

    def begin(self) -> None:
        """Called on every process when training begins or resumes, once the processes can communicate."""

    def optimizers(self) -> list[torch.optim.Optimizer]:
        """The optimizers, that of the network first.

        The first one takes the learning rate of the phase, times "lr_scale" in parameter groups with this key. The
        others have their own rates and step together with it.
        """
        optim = self.optim
        make = {"sgd": sgd, "adam": adam}[optim.optimizer]
        return [make(self.net, optim.lr, optim.momentum, optim.weight_decay)]

    # -- a step -------------------------------------------------------------------------------------------------------

    def forward(self, images: Tensor) -> Output:
        """The output of the current network for images (batch, channels, height, width)."""
        output: Output = self.training.net(images)
        return output

    def evaluate(self, images: Tensor) -> Output:
        """The output of the network that would result if training ended now."""
        return self.forward(images)

    def judge(self, output: Output, targets: Tensor) -> None:
        """Look at a batch of an evaluation, for metrics that are no sums over images. By default there are none."""

    def judged(self, split: str) -> dict[str, float]:
        """Metrics of all batches that were judged, in place of those of the task that have the same name.

        It is called on every process at the end of an evaluation. split: "val" or "test".
        """
        return {}

    def loss(self, output: Output, targets: Tensor) -> Tensor:
        """The scalar that training minimises, by default the mean loss of the task."""
        return self.training.task.loss(output, targets)

    def step(self, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Accumulate the gradients of a batch and return its mean loss and the sums of its metrics (`Task.sums`).

        By default the batch is passed as `micro_batches` micro-batches. The optimizers step afterwards.
        """
        training, number = self.training, self.training.micro_batches
        forward = training.compiled or self.forward
        micro_batches = list(zip(images.chunk(number), targets.chunk(number), strict=True))
        losses, sums = [], []
        for place, (inputs, expected) in enumerate(micro_batches, start=1):
            with training.unreduced() if place < len(micro_batches) else nullcontext():
                output = forward(inputs)
                loss = self.loss(output, expected)
                loss = loss if len(micro_batches) == 1 else loss * (len(expected) / len(targets))
                training.backward(loss)
            losses.append(loss.detach())
            sums.append(training.task.sums(detached(output), expected))
        if len(micro_batches) == 1:
            return losses[0], sums[0]
        return torch.stack(losses).sum(), torch.stack(sums).sum(0)

    def before_step(self) -> None:
        """Add gradients that come from no batch, such as a penalty's, times `loss_scale`. By default there are none."""

    def computed(self, images: int) -> list[tuple[int, int]]:
        """The cost of a step on `images` images of all processes: pairs (images, FLOPs per image) for the ledger."""
        return [(images, self.training.pricing.flops)]

    # -- after an epoch -----------------------------------------------------------------------------------------------

    def refresh(self) -> None:
        """Update whatever `evaluate`, `costs` and `rows` read. It is called before an evaluation or a record."""

    def collect(self) -> None:
        """Add the counts of this process to the totals of all processes, which call it at the same steps."""

    def after_epoch(self, epochs: int) -> None:
        """Called on every process after `epochs` epochs, before a plan is made."""

    def images(self, epochs: int) -> int:
        """The least number of training images that `plan` and `apply` need after `epochs` epochs; 0 for none."""
        return 0

    def plan(self, epochs: int, batch: Images | None) -> Plan | None:
        """The plan for the end of epoch `epochs`, or None if nothing is to change; 0 is before the first step.

        It is called on the first process alone. batch: at least as many images of this process as `images` asked for.
        """
        return None

    def apply(self, plan: Plan, batch: Images | None) -> None:
        """Apply a plan to the network and the optimizers. It is called on every process."""

    def first_filters(self, plan: Plan) -> tuple[Tensor, Tensor] | None:
        """Weights of the first convolution, on the CPU, and which of its filters are selected, bool (filters,).

        It is called before the plan is applied, for Figure 4 of the AdeNeL paper. The result is None if the plan is
        not a WidthPlan or if the first width group belongs to a linear layer.
        """
        first = self.graph.groups[0]
        if not isinstance(plan, WidthPlan) or first.kind != "convolution":
            return None
        weight = self.net.get_parameter(f"{first.name}.weight")
        return weight.detach().float().cpu(), self.selected(first.name, plan).cpu()

    def selected(self, group: str, plan: WidthPlan) -> Tensor:
        """Which filters of a group a plan keeps, bool (width,); all False if the plan does not select channels."""
        chosen = torch.zeros(self.graph.group(group).width, dtype=torch.bool)
        chosen[torch.tensor(plan.keep.get(group, ()), dtype=torch.long)] = True
        return chosen

    def course(self, epochs: int) -> list[Stretch] | None:
        """What is to come after `epochs` epochs, up to the end of the run, as far as the method foresees it.

        By default nothing: phases last as long as they may, and the last one has the costs of the budget.
        """
        return None

    def chosen(self) -> str | None:
        """What was left to the method to choose, and what it chose, such as "growth.policy=uniform"."""
        return None

    def shortfall(self) -> str | None:
        """A line about what will keep the network from its budget, and which option would change that, if anything."""
        return None

    # -- records ------------------------------------------------------------------------------------------------------

    def costs(self) -> dict[str, int]:
        """The costs, by kind, of the network that would result if training ended now."""
        return self.training.pricing.costs()

    def rows(self) -> dict[str, dict[str, float]]:
        """Rows for the epoch that ended, by file: {"saturation": {...}} becomes a line of saturation.csv."""
        return {}

    def facts(self) -> dict[str, Any]:
        """Entries that the method adds to summary.json."""
        return {}

    def tables(self) -> dict[str, list[dict[str, float]]]:
        """Rows about the final network, by file: {"budgeted": [...]} becomes budgeted.csv once it has been tested."""
        return {}

    def examples(self, images: Tensor) -> dict[str, Tensor]:
        """Which of a batch of test images a report shows: by title of a row, their indices, int64 (N,)."""
        return {}

    def export(self, directory: Path) -> None:
        """Write what the final network is deployed by besides model.pt2 and model.onnx, into a run directory."""

    @property
    def searching(self) -> bool:
        """Whether the network is still part of a search, so that it is not by itself what was validated."""
        return False

    # -- checkpoints --------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """The state of the method besides modules, optimizers, widths and phase, as plain values and tensors."""
        return {}

    def rebuild(self, state: Mapping[str, Any]) -> None:
        """Restore the structure that the network had at `state_dict`, before its widths and weights are loaded.

        It may be called on a network that has this structure already.
        """

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore `state_dict`, after the network has its widths."""


def detached(output: Output) -> Output:
    """Outputs detached from the autograd graph."""
    return output.detach() if isinstance(output, Tensor) else tuple(each.detach() for each in output)


def must_fit(epochs: int, needed: int, *parts: str) -> None:
    """Check that the `needed` epochs of all `parts`, such as "finetune.epochs=40", fit into a run of `epochs` epochs.

    Raises UsageError otherwise.
    """
    if needed > epochs:
        raise UsageError(
            f"{', '.join(parts[:-1])} and {parts[-1]} do not fit into epochs={epochs}: "
            f"raise it to {needed} or shorten one of them"
        )
