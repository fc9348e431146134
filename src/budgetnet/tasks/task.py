"""The interface of a task: its loss, its metrics, and the shape of the outputs that it takes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from budgetnet.errors import UsageError

Output = Tensor | tuple[Tensor, ...]
"""The output of a network: one tensor, or a tensor for each of its heads or exits."""


def each_of(output: Output) -> tuple[Tensor, ...]:
    """The outputs of all heads of a network, as a tuple."""
    return (output,) if isinstance(output, Tensor) else tuple(output)


@dataclass(frozen=True)
class Metric:
    """A metric of an evaluation.

    name: the name in files (val_<name>). title: the name in tables and on axes. unit: "%", "dB" or "" for none.
    higher_is_better: whether higher values are better. in_tables: whether tables of runs have a column for the metric
    even if it does not select the network.
    """

    name: str
    title: str
    unit: str = "%"
    higher_is_better: bool = True
    in_tables: bool = True

    @property
    def worst(self) -> float:
        """An infinite value that is worse than any other."""
        return float("-inf") if self.higher_is_better else float("inf")

    def better(self, value: float, than: float) -> bool:
        """Whether a value is better than another one."""
        return value > than if self.higher_is_better else value < than

    def gain(self, value: float) -> float:
        """The value with a sign such that higher is better, as a search maximises it."""
        return value if self.higher_is_better else -value

    def text(self, value: float) -> str:
        """The value as text: with a unit to two decimals, "91.21 %", without one to four digits, "0.01570"."""
        return f"{value:.2f} {self.unit}" if self.unit else f"{value:#.4g}"

    @property
    def label(self) -> str:
        """Title and unit for an axis, such as "top-1 (%)"."""
        return f"{self.title} ({self.unit})" if self.unit else self.title


class Task(ABC):
    """A task that a network is trained for, as functions of plain tensors that need no trainer.

    name: the value of the option `task`.
    metrics: the metrics of an evaluation. The first selects the network, is searched for by a sweep, and is shown in
    tables and figures.
    target_dims: the number of dimensions of a batch of targets, which decides the task of a dataset: 1 for a class or a
    number per image, 3 for a class per pixel.
    """

    name: str
    metrics: tuple[Metric, ...]
    target_dims: int = 1
    has_examples: bool = False
    """Whether `examples` returns any tensors."""
    any_size: bool = False
    """Whether a network is meant for images of any height and width."""
    teacher_flops: int = 0
    """FLOPs of `taught` for one image."""

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
        """The loss of every example, (N,), that training minimises: by default `losses`, without label smoothing."""
        return self.losses(output, targets)

    def loss(self, output: Output, targets: Tensor) -> Tensor:
        """The mean of `training_losses`, a scalar."""
        return self.training_losses(output, targets).mean()

    # -- metrics ----------------------------------------------------------------------------------------------------

    @abstractmethod
    def sums(self, output: Output, targets: Tensor) -> Tensor:
        """The sums from which the metrics of a batch are computed, (S,).

        They are added over batches and processes in float64.
        """

    @abstractmethod
    def compute(self, sums: Tensor) -> dict[str, float]:
        """The metrics, by name, from the total of the sums of all batches, (S,) float64."""

    def confusion(self, output: Output, targets: Tensor) -> Tensor | None:
        """How many images of class i (rows) are predicted as class j in a batch, (K, K); None without classes."""
        return None

    def examples(self, output: Output, targets: Tensor) -> dict[str, Tensor]:
        """What a report draws below a few images, a row for each name.

        A row holds pictures (N, C, H, W) in 0..1, or class maps (N, H, W) that are negative or 255 at pixels without a
        class.
        """
        return {}

    def read(self, output: Output, classes: Sequence[str]) -> Any:
        """What an output for one image says, for a person; by default the first head's output (...) itself.

        classes: the names of the classes.
        """
        return each_of(output)[0][0]

    # -- the output of a network --------------------------------------------------------------------------------------

    def outputs(self, num_classes: int) -> int:
        """The number of outputs of a network, its argument `num_classes`, for a dataset of `num_classes` classes."""
        return num_classes

    def output_shape(self, outputs: int, input_shape: tuple[int, int, int]) -> tuple[int, ...]:
        """The shape of the output for one image of `input_shape` (channels, height, width)."""
        return (outputs,)

    def check(self, output: Any, outputs: int, input_shape: tuple[int, int, int]) -> None:
        """Check the output of a network with `outputs` outputs for two images of `input_shape`.

        Raises UsageError if the task's losses do not take it.
        """
        found = tuple(output.shape) if isinstance(output, Tensor) else f"a {type(output).__name__}"
        expected = (2, *self.output_shape(outputs, input_shape))
        if found != expected:
            raise UsageError(f"it gives {found} for two images: expected a tensor of shape {expected} for {self.name}")

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


def described(task: Task) -> dict[str, Any]:
    """The name and the metrics of a task as plain values, for task.json in a run directory."""
    return {"name": task.name, "metrics": [asdict(metric) for metric in task.metrics]}
