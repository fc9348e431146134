"""The optimizers of networks decay weights alone."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from budgetnet.errors import UsageError
from budgetnet.methods.options import OPTIMIZERS, Optimization
from budgetnet.optim import sgd


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_weights_decay_and_vectors_do_not(name: str) -> None:
    net = nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3))
    before = {key: value.detach().clone() for key, value in net.named_parameters()}
    optimizer = getattr(sgd, name)(net, 0.1, 0.9, 0.5)
    for parameter in net.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    assert {key for key, value in net.named_parameters() if not torch.equal(value, before[key])} == {"0.weight"}
    assert optimizer.param_groups[0]["lr"] == 0.1


def test_momentum_is_the_first_beta_of_adam_and_another_name_is_refused() -> None:
    assert sgd.adam(nn.Linear(2, 2), 0.1, 0.7, 0.0).defaults["betas"] == (0.7, 0.999)
    with pytest.raises(UsageError, match=r"optim\.optimizer='adm' is unknown; did you mean 'adam'\?"):
        Optimization(lr=0.1, optimizer="adm")
