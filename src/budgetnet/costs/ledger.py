"""The train cost so far, and its ratio to reference costs."""

from __future__ import annotations

from collections.abc import Mapping
from operator import index

from budgetnet.costs.budget import format_quantity
from budgetnet.errors import UsageError


class TrainCostLedger:
    """The train cost: FLOPs (multiply-accumulates of the forward pass), summed exactly over all training images.

    images_per_epoch: the number of training images in an epoch.
    baseline_epochs: the number of epochs for which the baseline is trained.
    full_flops: FLOPs of the full backbone for one image.
    Raises UsageError if one of them is not positive.

    The seconds spent on compilation and on growth, and the FLOPs of a teacher's forward passes, are recorded separately
    and are not part of the train cost.
    """

    def __init__(self, images_per_epoch: int, baseline_epochs: int, full_flops: int) -> None:
        self.images_per_epoch = _positive("images_per_epoch", images_per_epoch)
        self.baseline_epochs = _positive("baseline_epochs", baseline_epochs)
        self.full_flops = _positive("full_flops", full_flops)
        self.spent = 0
        self.teacher = 0
        self.compile_seconds = 0.0
        self.growth_seconds = 0.0

    def add(self, images: int, flops: int) -> None:
        """Add the cost of training a network of `flops` FLOPs per image on `images` images, both whole numbers.

        Raises ValueError for a negative number.
        """
        images, flops = index(images), index(flops)
        if images < 0 or flops < 0:
            raise ValueError(f"train cost of images={images}, flops={flops}: expected zero or more")
        self.spent += images * flops

    @property
    def baseline_cost(self) -> int:
        """The train cost of the full backbone for the epochs of the baseline, in FLOPs."""
        return self.cost_of(self.full_flops)

    def cost_of(self, flops: int) -> int:
        """The train cost of a network of `flops` FLOPs per image for the epochs of the baseline, in FLOPs."""
        return index(flops) * self.baseline_epochs * self.images_per_epoch

    def percent_of_baseline(self) -> float:
        """The train cost so far in percent of that of the full backbone for the epochs of the baseline."""
        return 100 * self.spent / self.baseline_cost

    def percent_of_final(self, final_flops: int) -> float:
        """The train cost so far in percent of that of a network of `final_flops` for the epochs of the baseline.

        Raises UsageError if `final_flops` is not positive.
        """
        return 100 * self.spent / self.cost_of(_positive("final_flops", final_flops))

    def state_dict(self) -> dict[str, int | float]:
        """The recorded costs as plain numbers."""
        return {
            "spent": self.spent,
            "teacher": self.teacher,
            "compile_seconds": self.compile_seconds,
            "growth_seconds": self.growth_seconds,
        }

    def load_state_dict(self, state: Mapping[str, int | float]) -> None:
        """Restore `state_dict()`."""
        self.spent = int(state["spent"])
        self.teacher = int(state.get("teacher", 0))
        self.compile_seconds = float(state["compile_seconds"])
        self.growth_seconds = float(state["growth_seconds"])

    def __repr__(self) -> str:
        spent = format_quantity(self.spent)
        return f"TrainCostLedger(spent={spent} FLOPs, {self.percent_of_baseline():.1f}% of the baseline)"


def _positive(name: str, value: int) -> int:
    if index(value) <= 0:
        raise UsageError(f"train cost {name}={value}: expected a positive whole number")
    return index(value)
