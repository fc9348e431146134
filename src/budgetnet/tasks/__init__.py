"""Tasks that a network is trained for, one per file; `task.py` has their interface."""

from budgetnet.tasks.classification import Classification
from budgetnet.tasks.restoration import Denoising, SuperResolution
from budgetnet.tasks.segmentation import IGNORED, Segmentation
from budgetnet.tasks.task import Metric, Output, Task, described, each_of

__all__ = [
    "IGNORED",
    "Classification",
    "Denoising",
    "Metric",
    "Output",
    "Segmentation",
    "SuperResolution",
    "Task",
    "described",
    "each_of",
]
