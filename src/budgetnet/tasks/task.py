"""What a network is trained for: its loss, the metrics of its outputs, and the shape that they must have."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from budgetnet.errors import UsageError

Output = Tensor | tuple[Tensor, ...]
"""What a network returns: one tensor, or one for each of its heads or exits."""


def each_of(output: Output) -> tuple[Tensor, ...]:
    """The outputs of a network's heads, however many it has."""
    return (output,) if isinstance(output, Tensor) else tuple(output)


@dataclass(frozen=True)
class Metric:
    """A number that an evaluation gives.

    name: as in files (val_<name>). title: as in tables and on axes. unit: "%", "dB" or none. higher_is_better: which
    way is up. in_tables: whether tables of runs have a column of it also where another one selects the network.
    """

    name: str
    title: str
    unit: str = "%"
    higher_is_better: bool = True
    in_tables: bool = True

    @property
    def worst(self) -> float:
        """What every value is better than."""
        return float("-inf") if self.higher_is_better else float("inf")

    def better(self, value: float, than: float) -> bool:
        """Whether a value is better than another one."""
        return value > than if self.higher_is_better else value < than

    def gain(self, value: float) -> float:
        """The value such that more is better: what a search maximises."""
        return value if self.higher_is_better else -value

    def text(self, value: float) -> str:
        """The value with its unit, to two decimals, "91.21 %"; without a unit with four digits, "0.01570"."""
        return f"{value:.2f} {self.unit}" if self.unit else f"{value:#.4g}"

    @property
    def label(self) -> str:
        """Title and unit, for an axis: "top-1 (%)"."""
        return f"{self.title} ({self.unit})" if self.unit else self.title


class Task(ABC):
    """What a network is trained for. Functions of plain tensors, without a trainer.

    name: as the option `task` has it. metrics: what an evaluation gives; the first selects the network, is what a sweep
    searches for, and stands in tables and figures. target_dims: dimensions of a batch of targets, by which a dataset
    tells which task its labels are for: 1 for a class or a number for each image, 3 for a class for each pixel.
    """

    name: str
    metrics: tuple[Metric, ...]
    target_dims: int = 1
    has_examples: bool = False
    """Whether `examples` shows something."""
    teacher_flops: int = 0
    """FLOPs that `taught` costs for an image."""

    @property
    def metric(self) -> Metric:
        """The metric that selects the network."""
        return self.metrics[0]

    # -- training ---------------------------------------------------------------------------------------------------

    def taught(self, images: Tensor, targets: Tensor) -> Tensor:
        """The targets of a training batch, with whatever a teacher makes of its images; by default as they are."""
        return targets

    @abstractmethod
    def losses(self, output: Output, targets: Tensor) -> Tensor:
        """The loss of every example, (N,), as an evaluation reports it."""

    def training_losses(self, output: Output, targets: Tensor) -> Tensor:
        """The loss of every example, (N,), that training lowers: that of `losses`, unless a task smooths it."""
        return self.losses(output, targets)

    def loss(self, output: Output, targets: Tensor) -> Tensor:
        """The mean of `training_losses`, a scalar."""
        return self.training_losses(output, targets).mean()

    # -- metrics ----------------------------------------------------------------------------------------------------

    @abstractmethod
    def sums(self, output: Output, targets: Tensor) -> Tensor:
        """What the metrics of a batch are made of, (S,): it is added up over batches and processes, in float64."""

    @abstractmethod
    def compute(self, sums: Tensor) -> dict[str, float]:
        """The metrics, by name, of the examples whose `sums`, (S,) float64, were added up."""

    def examples(self, output: Output, targets: Tensor) -> dict[str, Tensor]:
        """What a report draws of a few images below them, row by row: pictures (N, C, H, W) in 0..1, or maps of classes
        (N, H, W), negative or 255 where there is none."""
        return {}

    # -- what a network must look like --------------------------------------------------------------------------------

    def outputs(self, num_classes: int) -> int:
        """How many outputs a network is asked for (its argument `num_classes`), on a dataset of so many classes."""
        return num_classes

    def output_shape(self, outputs: int, input_shape: tuple[int, int, int]) -> tuple[int, ...]:
        """The shape of a network's output for one image of (channels, height, width)."""
        return (outputs,)

    def check(self, output: Any, outputs: int, input_shape: tuple[int, int, int]) -> None:
        """Raises UsageError if `output`, of two images, is not what the losses take.

        outputs: how many were asked for.
        """
        found = tuple(output.shape) if isinstance(output, Tensor) else f"a {type(output).__name__}"
        expected = (2, *self.output_shape(outputs, input_shape))
        if found != expected:
            raise UsageError(f"it gives {found} for two images: expected a tensor of shape {expected} for {self.name}")

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


def described(task: Task) -> dict[str, Any]:
    """A task's name and metrics as plain values: task.json of a run directory."""
    return {"name": task.name, "metrics": [asdict(metric) for metric in task.metrics]}
