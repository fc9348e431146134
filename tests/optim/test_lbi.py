"""LBI takes the steps of its equations: those of SGD, of the authors, and of closed forms."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from steps import assert_close, gradients, groups_of, parameters, take_steps
from torch import Tensor, nn

from budgetnet.errors import UsageError
from budgetnet.optim import LBI

# Against torch.optim.SGD


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("weight_decay", [0.0, 5e-4])
def test_without_a_sparse_set_it_is_torch_sgd(momentum: float, weight_decay: float) -> None:
    ours, theirs = parameters(), parameters()
    lbi = LBI(ours, lr=0.05, momentum=momentum, weight_decay=weight_decay)
    sgd = torch.optim.SGD(theirs, lr=0.05, momentum=momentum, weight_decay=weight_decay)
    take_steps(lbi, ours, 0, 100)
    take_steps(sgd, theirs, 0, 100)
    for a, b in zip(ours, theirs, strict=True):
        assert_close(a, b)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("weight_decay", [0.0, 5e-4])
def test_infinite_nu_is_torch_sgd_and_z_never_moves(momentum: float, weight_decay: float) -> None:
    ours, theirs = parameters(), parameters()
    lbi = LBI(groups_of(ours), lr=0.05, nu=math.inf, threshold=0.0, momentum=momentum, weight_decay=weight_decay)
    sgd = torch.optim.SGD(theirs, lr=0.05, momentum=momentum, weight_decay=weight_decay)
    take_steps(lbi, ours, 0, 100)
    take_steps(sgd, theirs, 0, 100)
    for a, b in zip(ours, theirs, strict=True):
        assert_close(a, b)
    for param in ours[:3]:
        assert not lbi.state[param]["z"].any()
        assert not lbi.support(param).any()


# Against the authors' update, written out for one tensor


class AuthorsUpdate:
    """One tensor's split linearised Bregman iteration, filter by filter and entry by entry."""

    def __init__(self, w: Tensor, sparse: str | None, lr: float, nu: float, kappa: float, threshold: float) -> None:
        self.w, self.sparse = w.clone(), sparse
        self.lr, self.nu, self.kappa, self.threshold = lr, nu, kappa, threshold
        self.m: Tensor | None = None
        self.z, self.gamma = torch.zeros_like(w), torch.zeros_like(w)

    def step(self, g: Tensor, momentum: float, weight_decay: float) -> None:
        old = self.w.clone()
        decayed = g + weight_decay * old
        self.m = decayed if self.m is None else momentum * self.m + decayed
        self.w = old - self.lr * self.kappa * self.m
        if self.sparse is None:
            return
        self.w = self.w - self.lr * self.kappa / self.nu * (old - self.gamma)
        self.z = self.z - self.lr / self.nu * (self.gamma - old)
        for o in range(len(self.z)):
            if self.sparse == "filter":
                norm = math.sqrt(sum(float(v) ** 2 for v in self.z[o].flatten()))
                shrink = max(0.0, 1 - self.threshold / norm) if norm > 0 else 0.0
                self.gamma[o] = self.kappa * shrink * self.z[o]
            else:
                for i, value in enumerate(self.z[o].tolist()):
                    size = max(abs(value) - self.threshold, 0.0)
                    self.gamma[o, i] = self.kappa * math.copysign(size, value)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("kappa", [1.0, 0.5])
def test_steps_equal_the_authors_update(momentum: float, kappa: float) -> None:
    params = parameters()
    settings_of_group = [
        {"lr": 0.02, "nu": 5.0, "kappa": kappa, "threshold": 0.6},
        {"lr": 0.03, "nu": 8.0, "kappa": kappa, "threshold": 0.1},
        {"lr": 0.05, "nu": 1.0, "kappa": kappa, "threshold": 1.0},
    ]
    groups = groups_of(params)
    for group, values in zip(groups, settings_of_group, strict=True):
        group.update(values)
    kinds = ["filter", "filter", "entry", None]
    of_param = [settings_of_group[0], *settings_of_group]
    references = [
        AuthorsUpdate(param.detach(), kind, **values)
        for param, kind, values in zip(params, kinds, of_param, strict=True)
    ]
    lbi = LBI(groups, lr=9.9, momentum=momentum, weight_decay=1e-3)
    partial = [False, False, False]
    for step in range(100):
        take_steps(lbi, params, step, step + 1)
        for reference, gradient in zip(references, gradients(params, step), strict=True):
            reference.step(gradient, momentum, weight_decay=1e-3)
        for i in range(3):
            support = lbi.support(params[i])
            partial[i] |= bool(support.any() and not support.all())
    assert all(partial), "the settings must show filters that are selected beside filters that are not"
    for param, reference in zip(params, references, strict=True):
        assert_close(param.detach(), reference.w)
        assert_close(lbi.state[param]["momentum_buffer"], reference.m)
        if reference.sparse is not None:
            assert_close(lbi.state[param]["z"], reference.z)
            assert_close(lbi.gamma(param), reference.gamma)


# Closed forms


def test_without_a_gradient_weights_decay_geometrically_until_the_predicted_step_selects_them() -> None:
    lr, nu, kappa, threshold = 0.1, 20.0, 0.8, 0.2
    (param,) = parameters([(4, 3, 3, 3)])
    start = param.detach().clone()
    ratio = 1 - lr * kappa / nu
    norms: list[float] = torch.linalg.vector_norm(start, dim=(1, 2, 3)).tolist()

    def z_norm(filter_norm: float, steps: int) -> float:
        return lr / nu * filter_norm * (1 - ratio**steps) / (1 - ratio)

    lbi = LBI([{"params": [param], "sparse": "filter"}], lr, nu, kappa, threshold)
    param.grad = torch.zeros_like(param)
    selected_at = [0] * 4
    for step in range(1, 101):
        lbi.step()
        for o in range(4):
            if not selected_at[o]:
                expected = start[o] * ratio**step
                assert_close(param[o].detach(), expected)
                z = lr / nu * start[o] * (1 - ratio**step) / (1 - ratio)
                assert_close(lbi.state[param]["z"][o], z)
                if lbi.support(param)[o]:
                    selected_at[o] = step
    first = [next(t for t in range(1, 101) if z_norm(norm, t) > threshold) for norm in norms]
    assert selected_at == first
    assert len(set(first)) > 1


def test_without_coupling_to_the_weights_the_clock_is_threshold_times_nu_over_lr() -> None:
    """W held fixed: Z_T = T·(lr/nu)·W, so a filter is selected at floor(nu·threshold/(lr·||W||)) + 1."""
    lr, nu, threshold = 0.1, 20.0, 0.7
    (param,) = parameters([(4, 3, 3, 3)])
    start = param.detach().clone()
    lbi = LBI([{"params": [param], "sparse": "filter"}], lr, nu, threshold=threshold)
    param.grad = torch.zeros_like(param)
    norms = torch.linalg.vector_norm(start, dim=(1, 2, 3)).tolist()
    predicted = [math.floor(nu * threshold / (lr * norm)) + 1 for norm in norms]
    selected_at = [0] * 4
    for step in range(1, max(predicted) + 1):
        lbi.step()
        for o in lbi.support(param).nonzero().flatten().tolist():
            selected_at[o] = selected_at[o] or step
        with torch.no_grad():
            param.copy_(start)
    assert selected_at == predicted


def test_before_selection_z_is_the_scaled_sum_of_the_weights_seen_in_training() -> None:
    torch.manual_seed(0)
    convolution, classifier = nn.Conv2d(2, 5, 3).double(), nn.Linear(5 * 16, 3).double()
    model = nn.Sequential(convolution, nn.ReLU(), nn.Flatten(), classifier)
    images, labels = torch.randn(16, 2, 6, 6, dtype=torch.float64), torch.arange(16) % 3
    weight = convolution.weight
    dense = [param for param in model.parameters() if param is not weight]
    groups: list[dict[str, Any]] = [{"params": [weight], "sparse": "filter"}, {"params": dense}]
    lbi = LBI(groups, lr=0.05, threshold=100.0)
    total, losses = torch.zeros_like(weight), []
    for _ in range(100):
        lbi.zero_grad()
        loss = nn.functional.cross_entropy(model(images), labels)
        loss.backward()
        total += weight.detach()
        losses.append(loss.item())
        lbi.step()
    assert_close(lbi.state[weight]["z"], 0.05 / 100.0 * total)
    assert not lbi.support(weight).any()
    assert losses[-1] < 0.2 * losses[0]


def test_z_slows_down_with_the_learning_rate() -> None:
    (param,) = parameters([(4, 3)])
    lbi = LBI([{"params": [param], "sparse": "filter"}], lr=0.1, nu=10.0, momentum=0.0, threshold=50.0)
    schedule = torch.optim.lr_scheduler.StepLR(lbi, step_size=1, gamma=0.5)
    expected = torch.zeros_like(param)
    for step in range(5):
        expected += 0.1 * 0.5**step / 10.0 * param.detach()
        take_steps(lbi, [param], step, step + 1)
        schedule.step()
    assert_close(lbi.state[param]["z"], expected)


# Support


def test_a_filter_is_in_the_support_exactly_when_its_z_is_longer_than_the_threshold() -> None:
    params = parameters()
    lbi = LBI(groups_of(params), lr=0.05, nu=5.0, threshold=0.5)
    for step in range(60):
        take_steps(lbi, params, step, step + 1)
        for param in params[:2]:
            norm = torch.linalg.vector_norm(lbi.state[param]["z"], dim=(1, 2, 3))
            assert torch.equal(lbi.support(param), norm > 0.5)
        assert torch.equal(lbi.support(params[2]), lbi.state[params[2]]["z"].abs() > 0.5)


def test_support_is_a_mask_of_filters_or_of_entries_and_empty_before_the_first_step() -> None:
    params = parameters()
    lbi = LBI(groups_of(params), lr=0.05, threshold=0.0)
    shapes = [(6,), (4,), (5, 7)]
    for param, shape in zip(params, shapes, strict=False):
        support = lbi.support(param)
        assert support.dtype == torch.bool and support.shape == shape and not support.any()
    take_steps(lbi, params, 0, 1)
    for param, shape in zip(params, shapes, strict=False):
        support = lbi.support(param)
        assert support.dtype == torch.bool and support.shape == shape and support.all()


def test_a_filter_with_some_zero_weights_is_selected_as_a_whole() -> None:
    param = nn.Parameter(torch.zeros(2, 3, 1, 1))
    with torch.no_grad():
        param[0, 1] = 1.0
    lbi = LBI([{"params": [param], "sparse": "filter"}], lr=1.0, nu=2.0, threshold=0.1)
    param.grad = torch.zeros_like(param)
    lbi.step()
    assert lbi.support(param).tolist() == [True, False]


def test_support_of_a_dense_or_foreign_parameter_is_an_error() -> None:
    params = parameters()
    lbi = LBI(groups_of(params), lr=0.05)
    with pytest.raises(UsageError, match=r"shape \(6,\) is dense"):
        lbi.support(params[3])
    with pytest.raises(UsageError, match=r"shape \(2, 2\) is not in this optimizer"):
        lbi.support(torch.zeros(2, 2))


def test_threshold_zero_gives_gamma_equal_to_kappa_z() -> None:
    params = parameters()
    lbi = LBI(groups_of(params), lr=0.05, nu=5.0, kappa=0.7, threshold=0.0)
    take_steps(lbi, params, 0, 20)
    for param in params[:3]:
        assert_close(lbi.gamma(param), 0.7 * lbi.state[param]["z"])


@pytest.mark.parametrize("threshold", [0.0, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_zero_filter_without_gradient_stays_zero(threshold: float, dtype: torch.dtype) -> None:
    param = nn.Parameter(torch.ones(3, 2, 1, 1, dtype=dtype))
    with torch.no_grad():
        param[1] = 0
    group = {"params": [param], "sparse": "filter"}
    lbi = LBI([group], lr=1.0, nu=1.0, threshold=threshold, weight_decay=1e-2)
    param.grad = torch.zeros_like(param)
    for _ in range(5):
        lbi.step()
    for tensor in (param.detach(), lbi.gamma(param), *lbi.state[param].values()):
        assert not tensor[1].any() and tensor.isfinite().all()
    assert lbi.support(param).tolist() == [True, False, True]


# What is refused


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"lr": -0.1}, "lr=-0.1"),
        ({"lr": math.nan}, "lr=nan"),
        ({"lr": math.inf}, "lr=inf"),
        ({"nu": 0.0}, "nu=0.0"),
        ({"nu": math.nan}, "nu=nan"),
        ({"kappa": 0.0}, "kappa=0.0"),
        ({"kappa": math.inf}, "kappa=inf"),
        ({"threshold": -1.0}, "threshold=-1.0"),
        ({"momentum": -0.9}, "momentum=-0.9"),
        ({"weight_decay": -1e-4}, "weight_decay=-0.0001"),
        ({"sparse": "filters"}, "sparse='filters'"),
    ],
)
def test_a_hyper_parameter_out_of_range_is_refused_in_one_line(wrong: dict[str, float], named: str) -> None:
    (param,) = parameters([(4, 3)])
    with pytest.raises(UsageError, match=named) as error:
        LBI([{"params": [param], **wrong}], lr=0.1)
    assert "\n" not in str(error.value)
    lbi = LBI([param], lr=0.1)
    with pytest.raises(UsageError, match=named):
        lbi.add_param_group({"params": parameters([(2, 2)]), **wrong})
    assert len(lbi.param_groups) == 1


def test_a_vector_has_no_filters_but_has_entries() -> None:
    (param,) = parameters([(6,)])
    with pytest.raises(UsageError, match=r"shape \(6,\) has no filters"):
        LBI([{"params": [param], "sparse": "filter"}], lr=0.1)
    lbi = LBI([{"params": [param], "sparse": "entry"}], lr=0.1, threshold=0.0)
    take_steps(lbi, [param], 0, 1)
    assert lbi.support(param).all()
