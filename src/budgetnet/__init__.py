"""State a budget, get the best network that fits it: widths and weights learned in one run.

from budgetnet import Budget, ChannelGraph, CostModel, LBI, backbones, load, resize
net = backbones.build("resnet20", num_classes=10, seed_width=8)
graph = ChannelGraph.trace(net, torch.randn(1, 3, 32, 32))
resize(net, {"layer1.0.conv1": 20}, init="zero_out")
load("runs/default/mine").predict("cat.jpg")
"""

from typing import TYPE_CHECKING

from budgetnet.errors import RunError, UsageError
from budgetnet.lazy import imported

if TYPE_CHECKING:
    from budgetnet import backbones
    from budgetnet.channels import ChannelGraph, WidthGroup, resize
    from budgetnet.command.load import load
    from budgetnet.costs import Budget, CostModel, TrainCostLedger
    from budgetnet.optim import LBI

__all__ = [
    "LBI", "Budget", "ChannelGraph", "CostModel", "RunError", "TrainCostLedger", "UsageError", "WidthGroup",
    "backbones", "load", "resize",
]  # fmt: skip

__getattr__ = imported(
    __name__,
    {
        "": "backbones",
        "channels": "ChannelGraph WidthGroup resize",
        "command.load": "load",
        "costs": "Budget CostModel TrainCostLedger",
        "optim": "LBI",
    },
)
