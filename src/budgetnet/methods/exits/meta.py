"""How the loss of an updated network depends on the weights that the update gave its samples: exactly.

A pseudo-step takes the parameters θ to θ̂(w), with G(w) = ∇_θ Σ_k mean_i w_ik·l_ik(θ). What the loss of θ̂ on other
samples, L, owes to w is of second order, and there are two exact ways to it:

    "graph"   the graph of G is kept, and differentiated once more
    "jvp"     ∂L/∂w_ik = ⟨∇_θ l_ik(θ), ∂L/∂G⟩ / B: all of them are one forward-mode derivative of the losses

The second keeps no graph of a graph, and is the cheaper one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call

from budgetnet.methods.exits.weights import weighted_loss

Tensors = Mapping[str, Tensor]
Step = Callable[[Tensors, Tensors], Tensors]
"""From parameters and their gradients, by name, to parameters; differentiable by the gradients."""


def applied(network: nn.Module, params: Tensors, images: Tensor) -> Any:
    """What the network gives with other parameters, by name; its own running statistics do not change."""
    buffers = {name: buffer.clone() for name, buffer in network.named_buffers()}
    return functional_call(network, {**params, **buffers}, (images,))


def sgd_step(
    params: Tensors,
    gradients: Tensors,
    buffers: Tensors,
    lr: float,
    momentum: float = 0.0,
    dampening: float = 0.0,
    weight_decay: float = 0.0,
    nesterov: bool = False,
) -> dict[str, Tensor]:
    """θ − lr·v, v = momentum·buffer + (1 − dampening)(G + weight_decay·θ), as torch.optim.SGD has it, out of place.

    buffers: of the momentum, by name; where there is none yet, v = G + weight_decay·θ.
    """
    stepped = {}
    for name, value in params.items():
        step = gradients[name] + weight_decay * value
        if momentum:
            buffer = buffers.get(name)
            velocity = step if buffer is None else momentum * buffer + (1 - dampening) * step
            step = step + momentum * velocity if nesterov else velocity
        stepped[name] = value - lr * step
    return stepped


def step_of(optimizer: torch.optim.SGD, network: nn.Module) -> Step:
    """The step that the optimizer would take next with the network's parameters, as a function of their gradients.

    Learning rates, momentum buffers and weight decays are read when it is called, and nothing is changed.
    """
    names = {parameter: name for name, parameter in network.named_parameters()}
    options = ("lr", "momentum", "dampening", "weight_decay", "nesterov")

    def step(params: Tensors, gradients: Tensors) -> Tensors:
        stepped = dict(params)
        for group in optimizer.param_groups:
            here = {names[parameter]: parameter for parameter in group["params"] if names.get(parameter) in params}
            buffers = {
                name: buffer
                for name, parameter in here.items()
                if (buffer := optimizer.state.get(parameter, {}).get("momentum_buffer")) is not None
            }
            settings = {option: group[option] for option in options}
            stepped.update(sgd_step({name: params[name] for name in here}, gradients, buffers, **settings))
        return stepped

    return step


class MetaGradient(NamedTuple):
    """weights: w, (batch, exits), as they were given. gradient: ∂L/∂w, (batch, exits). loss: L, ()."""

    weights: Tensor
    gradient: Tensor
    loss: Tensor


def meta_gradient(
    losses_fn: Callable[[Tensors], Tensor],
    meta_loss_fn: Callable[[Tensors], Tensor],
    params: Tensors,
    weights: Tensor | Callable[[Tensor], Tensor],
    step: Step,
    way: Literal["jvp", "graph"] = "jvp",
    average: Callable[[dict[str, Tensor]], dict[str, Tensor]] | None = None,
) -> MetaGradient:
    """What the loss L of the parameters that a step with weights w leads to owes to w.

    losses_fn: from parameters to the losses of the samples at the exits, (batch, exits). meta_loss_fn: from parameters
    to a loss, (). params: θ, by name; they are constants here. weights: w, (batch, exits), or what
    gives it from the losses, detached. step: from θ and G to θ̂.

    average: the mean of gradients over processes, each with as many samples of its own, where L is the mean of what
    they find. Then the mean over processes of what follows from each one's ∂L/∂w is that of one process with all
    samples. It goes with way="jvp" alone.
    """
    theta = {name: value.detach().requires_grad_() for name, value in params.items()}
    losses = losses_fn(theta)
    given = weights(losses.detach()) if callable(weights) else weights
    w = given.detach().requires_grad_(way == "graph")
    total = weighted_loss(losses, w)
    found = torch.autograd.grad(
        total, list(theta.values()), create_graph=way == "graph", allow_unused=True, materialize_grads=True
    )
    gradients = dict(zip(theta, found, strict=True))
    theta = {name: value.detach() for name, value in theta.items()}
    if way == "graph":
        loss = meta_loss_fn(step(theta, gradients))
        return MetaGradient(given, torch.autograd.grad(loss, w)[0], loss.detach())
    if average is not None:
        gradients = average(gradients)
    gradients = {name: gradient.detach().requires_grad_() for name, gradient in gradients.items()}
    loss = meta_loss_fn(step(theta, gradients))
    found = torch.autograd.grad(loss, list(gradients.values()), allow_unused=True, materialize_grads=True)
    direction = dict(zip(gradients, found, strict=True))
    if average is not None:
        direction = average(direction)
    return MetaGradient(given, _directional(losses_fn, theta, direction) / len(w), loss.detach())


def _directional(losses_fn: Callable[[Tensors], Tensor], theta: Tensors, direction: Tensors) -> Tensor:
    """⟨∇_θ l, direction⟩ of every loss, (batch, exits), by forward-mode differentiation."""
    with torch.no_grad(), forward_ad.dual_level():
        dual = {name: forward_ad.make_dual(value, direction[name]) for name, value in theta.items()}  # type: ignore[no-untyped-call]
        tangent: Tensor = forward_ad.unpack_dual(losses_fn(dual)).tangent  # type: ignore[no-untyped-call]
        return tangent.clone()
