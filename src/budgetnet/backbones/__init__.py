"""Backbones: plain modules that are built by name and take every width as an argument.

For example, `build("resnet20", seed_width=8)` is a ResNet-20 with 8 filters in every convolution.
"""

from budgetnet.backbones.common import match_channels
from budgetnet.backbones.registry import NAMES, build, full_widths

__all__ = ["NAMES", "build", "full_widths", "match_channels"]
