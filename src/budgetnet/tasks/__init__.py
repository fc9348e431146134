"""Tasks that a network is trained for, one per file; `task.py` has their interface."""

from budgetnet.tasks.classification import Classification
from budgetnet.tasks.segmentation import IGNORED, Segmentation
from budgetnet.tasks.task import Metric, Output, Task, described, each_of

__all__ = [
    "IGNORED",
    "Classification",
    "Metric",
    "Output",
    "Segmentation",
    "Task",
    "described",
    "each_of",
]
