"""The backward pass of zeros by which several processes agree on the order of their sums."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from budgetnet.processes.group import order_buckets
from tests.toys.heads import TwoHeads


@pytest.fixture
def group(tmp_path: Path) -> Iterator[None]:
    """A process group of this process alone."""
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("heads", [1, 2])
def test_it_leaves_nothing_behind_however_many_heads_a_network_has(heads: int, group: None) -> None:
    net: nn.Module = TwoHeads(10, 1)
    if heads == 1:
        net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 26 * 26, 10))
    before = {name: value.clone() for name, value in net.state_dict().items()}
    random = torch.get_rng_state()
    order_buckets(DistributedDataParallel(net), (1, 28, 28))
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(parameter.grad is None for parameter in net.parameters())
    assert torch.equal(torch.get_rng_state(), random)
