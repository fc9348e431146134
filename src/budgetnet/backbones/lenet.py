"""LeNet-5 (LeCun et al. 1998) for 28×28 images, with ReLU and max pooling."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import nn

from budgetnet.backbones.common import initialise

FULL_WIDTHS = {"conv1": 6, "conv2": 16, "fc1": 120, "fc2": 84}


class LeNet5(nn.Module):
    """Two convolutions and three linear layers, from (batch, in_channels, 28, 28) to (batch, num_classes).

    widths: the filters of conv1 and conv2, and the units of fc1 and fc2.
    """

    def __init__(self, widths: Mapping[str, int], num_classes: int, in_channels: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, widths["conv1"], 5, padding=2)
        self.conv2 = nn.Conv2d(widths["conv1"], widths["conv2"], 5)
        self.pool = nn.MaxPool2d(2)
        self.fc1 = nn.Linear(widths["conv2"] * 5 * 5, widths["fc1"])
        self.fc2 = nn.Linear(widths["fc1"], widths["fc2"])
        self.fc3 = nn.Linear(widths["fc2"], num_classes)
        initialise(self, classifier=self.fc3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.pool(F.relu(self.conv1(x)))
        x = self.pool(F.relu(self.conv2(x)))
        x = F.relu(self.fc1(torch.flatten(x, 1)))
        logits: torch.Tensor = self.fc3(F.relu(self.fc2(x)))
        return logits
