"""What training has cost so far, against a reference."""

from __future__ import annotations

from collections.abc import Mapping
from operator import index

from budgetnet.costs.budget import format_quantity
from budgetnet.errors import UsageError


class TrainCostLedger:
    """Train cost: FLOPs (multiply-accumulates of a forward pass) summed over every image trained on, exactly.

    images_per_epoch: training images in an epoch.
    baseline_epochs: epochs for which the baseline is trained.
    full_flops: FLOPs of the full backbone for one image.
    Raises UsageError if one of them is not positive.

    The seconds spent on compiling and on growing are kept apart, and so are the forward FLOPs of a teacher: they are no
    part of the train cost.
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
        """Record that a network of `flops` FLOPs per image was trained on `images`. Whole numbers only."""
        images, flops = index(images), index(flops)
        if images < 0 or flops < 0:
            raise ValueError(f"train cost of images={images}, flops={flops}: expected zero or more")
        self.spent += images * flops

    @property
    def baseline_cost(self) -> int:
        """FLOPs of training the full backbone for the baseline's epochs."""
        return self.cost_of(self.full_flops)

    def cost_of(self, flops: int) -> int:
        """FLOPs of training a network of `flops` FLOPs per image for the baseline's epochs."""
        return index(flops) * self.baseline_epochs * self.images_per_epoch

    def percent_of_baseline(self) -> float:
        """(a) Spent so far, in percent of the full backbone trained for the baseline's epochs."""
        return 100 * self.spent / self.baseline_cost

    def percent_of_final(self, final_flops: int) -> float:
        """(b) Spent so far, in percent of a network of `final_flops` trained for the baseline's epochs."""
        return 100 * self.spent / self.cost_of(_positive("final_flops", final_flops))

    def state_dict(self) -> dict[str, int | float]:
        """What was recorded, as plain numbers."""
        return {
            "spent": self.spent,
            "teacher": self.teacher,
            "compile_seconds": self.compile_seconds,
            "growth_seconds": self.growth_seconds,
        }

    def load_state_dict(self, state: Mapping[str, int | float]) -> None:
        """Continue from `state_dict()`."""
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
