"""What LBI keeps between steps: momentum and Z, saved, copied, carried over to larger parameters, and reset."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from steps import SHAPES, assert_close, assert_same_bits, gradients, groups_of, parameters, take_steps
from torch import Tensor, nn

from budgetnet.errors import UsageError
from budgetnet.optim import LBI


def test_state_is_momentum_and_for_sparse_parameters_z() -> None:
    params = parameters()
    lbi = LBI(groups_of(params), lr=0.05)
    take_steps(lbi, params, 0, 1)
    for param in params[:3]:
        assert set(lbi.state[param]) == {"momentum_buffer", "z"}
        assert all(tensor.shape == param.shape for tensor in lbi.state[param].values())
        assert lbi.gamma(param).shape == param.shape
    assert set(lbi.state[params[3]]) == {"momentum_buffer"}


def test_channels_last_parameters_keep_their_strides_in_the_state_and_take_the_same_steps() -> None:
    plain, other = parameters(), parameters()
    for i in range(2):
        other[i] = nn.Parameter(other[i].detach().to(memory_format=torch.channels_last))
    strides = [param.stride() for param in other]
    for params in (plain, other):
        take_steps(LBI(groups_of(params), lr=0.05, nu=5.0, threshold=0.5), params, 0, 20)
    for a, b in zip(plain, other, strict=True):
        assert_close(a, b)
    assert [param.stride() for param in other] == strides

    lbi = LBI(groups_of(other), lr=0.05)
    take_steps(lbi, other, 0, 3)
    for param in other:
        assert all(tensor.stride() == param.stride() for tensor in lbi.state[param].values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_saved_state_continues_bit_for_bit(dtype: torch.dtype) -> None:
    def build() -> tuple[list[nn.Parameter], LBI]:
        params = [nn.Parameter(param.detach().to(dtype)) for param in parameters()]
        params[0] = nn.Parameter(params[0].detach().to(memory_format=torch.channels_last))
        return params, LBI(groups_of(params), lr=0.05, nu=5.0, threshold=0.3, weight_decay=1e-3)

    params, lbi = build()
    take_steps(lbi, params, 0, 20)
    file = io.BytesIO()
    torch.save({"params": [p.detach() for p in params], "optimizer": lbi.state_dict()}, file)
    take_steps(lbi, params, 20, 40)

    resumed, other = build()
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    with torch.no_grad():
        for param, value in zip(resumed, saved["params"], strict=True):
            param.copy_(value)
    other.load_state_dict(saved["optimizer"])
    take_steps(other, resumed, 20, 40)
    assert_same_bits(params, resumed)
    for a, b in zip(params, resumed, strict=True):
        for key, tensor in lbi.state[a].items():
            assert torch.equal(tensor, other.state[b][key]) and tensor.dtype == other.state[b][key].dtype
            assert tensor.stride() == other.state[b][key].stride()


def test_a_deep_copy_continues_alike_and_apart() -> None:
    params = parameters()
    lbi = LBI(groups_of(params), lr=0.05, nu=5.0, threshold=0.3)
    take_steps(lbi, params, 0, 10)
    twins, twin = copy.deepcopy((params, lbi))
    before = [param.detach().clone() for param in twins]
    take_steps(lbi, params, 10, 20)
    assert_same_bits(before, twins)
    take_steps(twin, twins, 10, 20)
    assert_same_bits(params, twins)


def test_a_larger_parameter_in_the_same_slot_continues_from_the_migrated_state() -> None:
    """Old filters of a widened parameter take the very steps that they would have taken without it."""
    (small,), (twin,) = parameters([(4, 3, 3, 3)]), parameters([(4, 3, 3, 3)])
    lbi = LBI([{"params": [small], "sparse": "filter"}], lr=0.05, nu=5.0, threshold=0.3)
    reference = LBI([{"params": [twin], "sparse": "filter"}], lr=0.05, nu=5.0, threshold=0.3)
    take_steps(lbi, [small], 0, 10)
    take_steps(reference, [twin], 0, 10)

    def widen(tensor: Tensor) -> Tensor:
        return torch.cat([tensor, torch.zeros(2, 3, 3, 3, dtype=tensor.dtype)])

    large = nn.Parameter(widen(small.detach()))
    lbi.state[large] = {key: widen(value) for key, value in lbi.state.pop(small).items()}
    lbi.param_groups[0]["params"][0] = large
    for step in range(10, 30):
        (gradient,) = gradients([twin], step)
        twin.grad, large.grad = gradient, widen(gradient)
        lbi.step()
        reference.step()
    assert_same_bits([large[:4]], [twin])
    assert lbi.support(large).tolist() == [*reference.support(twin).tolist(), False, False]


def test_a_parameter_without_gradient_is_left_alone() -> None:
    params = parameters()
    lbi = LBI(groups_of(params), lr=0.05, weight_decay=0.1)
    before = params[0].detach().clone()
    for param in params[1:]:
        param.grad = torch.ones_like(param)
    lbi.step()
    assert torch.equal(params[0], before)
    assert params[0] not in lbi.state
    assert all(param in lbi.state for param in params[1:])


def test_reset_state_makes_the_next_step_a_first_step() -> None:
    params = parameters()
    lbi = LBI(groups_of(params), lr=0.05, nu=5.0, threshold=0.0)
    take_steps(lbi, params, 0, 10)
    lbi.reset_state([params[0]])
    assert params[0] not in lbi.state
    assert not lbi.support(params[0]).any() and lbi.support(params[1]).all()
    lbi.reset_state()
    assert not any(lbi.support(param).any() for param in params[:3])

    fresh = [nn.Parameter(param.detach().clone()) for param in params]
    take_steps(LBI(groups_of(fresh), lr=0.05, nu=5.0, threshold=0.0), fresh, 10, 12)
    take_steps(lbi, params, 10, 12)
    assert_same_bits(params, fresh)
    with pytest.raises(UsageError, match="is not in this optimizer"):
        lbi.reset_state([torch.zeros(3)])


def test_a_half_precision_parameter_is_selected_when_its_float32_twin_is() -> None:
    """Increments of 1e-4 of Z would be lost in a bfloat16 sum long before it reaches the threshold."""
    steps = {}
    for dtype in (torch.float32, torch.bfloat16):
        param = nn.Parameter(torch.full((2, 25), 0.25, dtype=dtype))
        lbi = LBI([{"params": [param], "sparse": "filter"}], lr=0.05, nu=100.0, threshold=0.5)
        steps[dtype] = 0
        while not lbi.support(param).all() and steps[dtype] < 2000:
            param.grad = torch.zeros_like(param)
            lbi.step()
            param.data.fill_(0.25)
            steps[dtype] += 1
    assert steps[torch.float32] == steps[torch.bfloat16] == 801


def test_a_step_never_waits_for_the_device() -> None:
    """A meta tensor has no values, so that reading one on the host is an error."""
    params = [nn.Parameter(torch.empty(shape, device="meta")) for shape in SHAPES]
    lbi = LBI(groups_of(params), lr=0.05, weight_decay=1e-3)
    for param in params:
        param.grad = torch.empty_like(param)
    lbi.step()
    lbi.step()
    assert lbi.support(params[0]).shape == (6,)


def test_parameters_of_several_dtypes_share_a_group() -> None:
    params = parameters([(4, 3), (4, 3)])
    params[1] = nn.Parameter(params[0].detach().float())
    lbi = LBI([{"params": params, "sparse": "filter"}], lr=0.05, nu=5.0, threshold=0.1)
    for step in range(20):
        (gradient,) = gradients(params[:1], step)
        params[0].grad, params[1].grad = gradient, gradient.float()
        lbi.step()
    assert_close(params[0].float(), params[1], atol=1e-5)


def test_a_closure_gives_the_gradients_and_its_loss_is_returned() -> None:
    (param,) = parameters([(4, 3)])
    lbi = LBI([param], lr=0.1, momentum=0.0)
    before = param.detach().clone()

    def closure() -> float:
        lbi.zero_grad()
        loss = param.square().sum() / 2
        loss.backward()
        return loss.item()

    assert lbi.step(closure) == pytest.approx(float(before.square().sum()) / 2)
    assert_close(param.detach(), 0.9 * before)
    assert lbi.step() is None
