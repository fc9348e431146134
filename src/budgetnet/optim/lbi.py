"""LBI: the split linearised Bregman iteration, a discretised inverse scale space, as a torch optimizer.

Equations 5-8 of Zhong, Liu, Fu, "Adaptive End-to-End Budgeted Network Learning via Inverse Scale Space"
(BMVC 2021), with the momentum and damping factor kappa of the authors' code, and without the misprint of
equation 8.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, overload

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from budgetnet.errors import UsageError


def prox_filters(z: Tensor, threshold: float) -> Tensor:
    """Group soft threshold per output filter, equation 8: max(0, 1 - threshold / ||Z_o||_2) * Z_o.

    z: (filters, ...) with at least two dimensions; the result has its shape, and a zero filter stays zero.
    """
    return z * _per_filter(_shrinkage(_filter_norms(z), threshold), z)


def prox_entries(z: Tensor, threshold: float) -> Tensor:
    """Soft threshold of every entry: sign(z) * max(0, |z| - threshold). The result has the shape of z."""
    return torch.nn.functional.softshrink(z, threshold)


class LBI(torch.optim.Optimizer):
    """Split linearised Bregman iteration: SGD with momentum that also learns which weights matter.

    For a weight W with task gradient g, and Z = Γ = 0 at the start, a step is

        m ← momentum·m + g + weight_decay·W
        W ← W - lr·kappa·m - (lr·kappa/nu)·(W - Γ)      the coupling stands outside momentum
        Z ← Z + (lr/nu)·(W - Γ)                         with W and Γ from before the step
        Γ ← kappa·Prox(Z)

    The support, which is the set of filters (or entries) with Γ ≠ 0, grows during training. Weights that are large
    over many steps enter it first.

    params: tensors or param groups. The group key `sparse` says what is selected: "filter" (slices of
        dimension 0, by `prox_filters`), "entry" (by `prox_entries`), or None (default: nothing; without Z and
        Γ this is torch.optim.SGD with learning rate lr·kappa). All hyper-parameters may differ by group.
    lr: learning rate, a float.
    nu: how loosely W follows Γ; infinity uncouples them, and Z never changes.
    kappa: damping factor of W and Γ.
    threshold: λ of Prox. Until filter o is selected Z_o = (lr/nu)·ΣW_o, so it is selected once the norm of
        ΣW_o exceeds nu·threshold/lr.

    State per parameter: `momentum_buffer` and, in sparse groups, `z`, both of the shape of the parameter. This is twice
    the state of SGD with momentum. Γ follows from Z and is not stored. Z of a half-precision parameter is float32,
    since half precision would round its increments to zero. Parameters without a gradient do not change.

    Raises UsageError for a hyper-parameter out of range.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float,
        nu: float = 100.0,
        kappa: float = 1.0,
        threshold: float = 1.0,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
    ) -> None:
        defaults = {
            "lr": lr,
            "nu": nu,
            "kappa": kappa,
            "threshold": threshold,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "sparse": None,
        }
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters with hyper-parameters of their own. Raises UsageError if one is out of range."""
        super().add_param_group(param_group)
        try:
            _check(self.param_groups[-1])
        except UsageError:
            self.param_groups.pop()
            raise

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Take one step. `closure`, if given, first computes the gradients, and the loss that is returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for params in _buckets(group["params"]):
                self._update(params, group)
        return loss

    @torch.no_grad()
    def gamma(self, param: Tensor) -> Tensor:
        """Γ = κ·Prox(Z), in the shape of the parameter; zero before the first step.

        Raises UsageError for a parameter in a dense group or outside this optimizer.
        """
        group = self._group_of(param)
        if group["sparse"] is None:
            raise UsageError(
                f"{_describe(param)} is dense and has no support: give its group sparse='filter' or 'entry'"
            )
        prox = prox_filters if group["sparse"] == "filter" else prox_entries
        z: Tensor | None = self.state.get(param, {}).get("z")
        if z is None:
            return torch.zeros_like(param, dtype=_state_dtype(param))
        return prox(z, group["threshold"]) * float(group["kappa"])

    def support(self, param: Tensor) -> Tensor:
        """Where Γ ≠ 0: bool, (filters,) for "filter" and in the shape of the parameter for "entry".

        All False before the first step. Raises UsageError for a parameter in a dense group or outside this optimizer.
        """
        selected = self.gamma(param) != 0
        return selected.flatten(1).any(dim=1) if self._group_of(param)["sparse"] == "filter" else selected

    @torch.no_grad()
    def path_norms(self, param: Tensor) -> Tensor:
        """‖Z_o‖ of each filter, (filters,); zero before the first step. Filters of larger norm are selected first."""
        z: Tensor | None = self.state.get(param, {}).get("z")
        return torch.zeros(len(param), device=param.device) if z is None else _filter_norms(z)

    def reset_state(self, params: Iterable[Tensor] | None = None) -> None:
        """Drop momentum and Z of `params` (default: all), as if no step had been taken.

        Raises UsageError for a parameter outside this optimizer.
        """
        if params is None:
            self.state.clear()
            return
        for param in params:
            self._group_of(param)
            self.state.pop(param, None)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore `state_dict()` exactly."""
        super().load_state_dict(state_dict)
        # torch casts the state to the dtype of the parameter, which would round Z of half-precision parameters.
        indices = [index for group in state_dict["param_groups"] for index in group["params"]]
        params = [param for group in self.param_groups for param in group["params"]]
        for index, param in zip(indices, params, strict=True):
            saved = state_dict["state"].get(index, {})
            if "z" in saved and _state_dtype(param) != param.dtype:
                self.state[param]["z"] = saved["z"].to(param.device, _state_dtype(param), copy=True)

    def _group_of(self, param: Tensor) -> dict[str, Any]:
        for group in self.param_groups:
            if any(param is other for other in group["params"]):
                return group
        raise UsageError(f"{_describe(param)} is not in this optimizer: pass one of its own parameters")

    def _state_of(self, param: Tensor, sparse: str | None) -> dict[str, Tensor]:
        state: dict[str, Tensor] = self.state[param]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(param)
        if sparse is not None and "z" not in state:
            state["z"] = torch.zeros_like(param, dtype=_state_dtype(param))
        return state

    def _update(self, params: list[Tensor], group: dict[str, Any]) -> None:
        """Take one step for a bucket of parameters of one group, without waiting for the device."""
        lr, nu, kappa, sparse = group["lr"], group["nu"], group["kappa"], group["sparse"]
        states = [self._state_of(param, sparse) for param in params]
        buffers = [state["momentum_buffer"] for state in states]
        # A tensor, because torch would convert a Python number again for every tensor in the list.
        momentum = torch.tensor(group["momentum"], dtype=_state_dtype(params[0]), device="cpu")
        torch._foreach_mul_(buffers, momentum)
        torch._foreach_add_(buffers, [param.grad for param in params if param.grad is not None])
        if group["weight_decay"] != 0:
            torch._foreach_add_(buffers, params, alpha=group["weight_decay"])
        if sparse is None:
            torch._foreach_add_(params, buffers, alpha=-lr * kappa)
            return
        zs = [state["z"] for state in states]
        apart = _minus_gamma(params, zs, group)
        torch._foreach_add_(zs, apart, alpha=lr / nu)
        torch._foreach_add_(params, buffers, alpha=-lr * kappa)
        torch._foreach_add_(params, apart, alpha=-lr * kappa / nu)


def _minus_gamma(params: list[Tensor], zs: list[Tensor], group: dict[str, Any]) -> list[Tensor]:
    """W - Γ for each parameter of a sparse group."""
    kappa, threshold = group["kappa"], group["threshold"]
    if group["sparse"] == "entry":
        return [torch.sub(w, prox_entries(z, threshold), alpha=kappa) for w, z in zip(params, zs, strict=True)]
    # The factors of all layers are computed together, which takes a few operations instead of a few per layer.
    factors = _shrinkage(torch.cat([_filter_norms(z) for z in zs]), threshold)
    per_layer = torch.split(_per_filter(factors, zs[0]), [len(z) for z in zs])
    return list(torch._foreach_addcmul(params, zs, per_layer, value=-kappa))


def _filter_norms(z: Tensor) -> Tensor:
    norms: Tensor = torch.linalg.vector_norm(z, dim=tuple(range(1, z.dim())))
    return norms


def _shrinkage(norms: Tensor, threshold: float) -> Tensor:
    """max(0, 1 - threshold / norm), without 0/0 for a zero filter at threshold 0."""
    return (1 - threshold / norms.clamp_min(torch.finfo(norms.dtype).tiny)).clamp_min_(0)


def _per_filter(factors: Tensor, z: Tensor) -> Tensor:
    return factors.view(-1, *[1] * (z.dim() - 1))


def _buckets(params: list[Tensor]) -> Iterable[list[Tensor]]:
    """The parameters with a gradient, in buckets of equal device, dtype and dimensions for multi-tensor operations."""
    buckets: dict[tuple[torch.device, torch.dtype, int], list[Tensor]] = {}
    for param in params:
        if param.grad is not None:
            buckets.setdefault((param.device, param.dtype, param.dim()), []).append(param)
    return buckets.values()


def _state_dtype(param: Tensor) -> torch.dtype:
    return torch.promote_types(param.dtype, torch.float32)


def _describe(param: Tensor) -> str:
    return f"parameter of shape {tuple(param.shape)}"


def _check(group: dict[str, Any]) -> None:
    for name in ("lr", "threshold", "momentum", "weight_decay"):
        if not (group[name] >= 0 and math.isfinite(group[name])):
            raise UsageError(f"LBI {name}={group[name]}: expected a finite number, zero or more")
    if not group["nu"] > 0:
        raise UsageError(f"LBI nu={group['nu']}: expected a number above zero (infinity uncouples W and Γ)")
    if not (group["kappa"] > 0 and math.isfinite(group["kappa"])):
        raise UsageError(f"LBI kappa={group['kappa']}: expected a finite number above zero")
    if group["sparse"] not in ("filter", "entry", None):
        raise UsageError(f"LBI sparse={group['sparse']!r}: expected 'filter', 'entry' or None")
    if group["sparse"] == "filter":
        for param in group["params"]:
            if param.dim() < 2:
                raise UsageError(f"LBI sparse='filter': {_describe(param)} has no filters; use 'entry'")
