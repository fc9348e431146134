"""Networks of the user whose forward does not run on the meta device as it stands."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from budgetnet.channels import ChannelGraph
from budgetnet.command.made import make_network, own_files
from budgetnet.errors import UsageError
from budgetnet.tasks import Classification


class Digits:
    num_classes, input_shape = 10, (1, 8, 8)


class Constants(nn.Module):
    """Makes tensors on the CPU, whatever device its input is on."""

    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(in_channels, 6, 3), nn.Conv2d(6, 4, 3)
        self.head = nn.Linear(4, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = x * torch.linspace(0, 1, x.shape[-1])
        x = self.first(x) + torch.zeros(1)
        out: Tensor = self.head(self.second(x).mean((2, 3)))
        return out


class Looking(Constants):
    """Looks at its values in a module that is kept as it is."""

    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__(num_classes, in_channels)
        self.scale = Halved()

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.scale(x))


class Halved(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x / 2 if float(x.abs().max()) > 1 else x


class Wrong(Looking):
    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__(num_classes + 1, in_channels)


@pytest.mark.parametrize(("kind", "frozen"), [(Constants, []), (Looking, ["scale"])])
def test_a_network_that_runs_on_the_cpu_alone_is_made(kind: type[nn.Module], frozen: list[str]) -> None:
    backbone = {"_target_": f"{__name__}.{kind.__name__}", "frozen": frozen}
    net = make_network(backbone, Digits(), Classification())  # type: ignore[arg-type]
    assert ChannelGraph.of(net).widths == {"first": 6, "second": 4}


def test_its_output_is_checked_too() -> None:
    backbone = {"_target_": f"{__name__}.Wrong", "frozen": ["scale"]}
    with pytest.raises(UsageError, match="expected"):
        make_network(backbone, Digits(), Classification())  # type: ignore[arg-type]


class Lazy(ModuleType):
    def __getattr__(self, name: str) -> Any:
        raise ImportError(name)


def test_the_users_own_files_are_those_of_the_targets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lazy", Lazy("lazy"))
    own = {"_target_": f"{__name__}.Constants"}
    for config in ({"backbone": own}, {"dataset": {"source": {"_args_": [own]}}}):
        assert Path(__file__) in own_files(config)
    installed = (
        "budgetnet.methods.train.Train",
        "torch.nn.Linear",
        "pytest.Item",
        "json.JSONDecoder",
        "lazy.X",
        "gone.X",
    )
    assert own_files({"a": [{"_target_": target} for target in installed]}) == []
