"""What lwdna and dhp leave behind: weights, costs, optimizer."""

from __future__ import annotations

from pathlib import Path

import torch
from short_run import SHORT, Fit

from budgetnet.command.build import Components, build
from budgetnet.command.compose import composed
from budgetnet.methods.hypernet.dhp import DHP
from budgetnet.methods.hypernet.hypernetwork import generation_flops
from budgetnet.methods.hypernet.lwdna import LWDNA
from budgetnet.methods.hypernet.widened import Selected

SMALL = tuple(option for option in SHORT if not option.startswith(("growth", "lbi", "finetune")))


def before_training(tmp_path: Path, *overrides: str) -> tuple[Components, LWDNA, tuple[torch.Tensor, torch.Tensor]]:
    """lwdna just before its search, and the images that it asks for."""
    parts = build(composed([*SMALL, "method=lwdna", *overrides]), tmp_path)
    method = parts.method
    assert isinstance(method, LWDNA)
    method.training.optimizers = method.optimizers()
    generator = torch.Generator().manual_seed(0)
    number = method.images(0)
    images = torch.randn(number, *method.training.input_shape, generator=generator)
    return parts, method, (images, torch.randint(10, (number,), generator=generator))


def selected(method: LWDNA, batch: tuple[torch.Tensor, torch.Tensor]) -> Selected:
    plan = method.plan(0, batch)
    assert plan is not None
    return plan


def test_percentages_are_of_the_backbone_and_the_search_costs_what_the_wide_network_and_its_weights_do(
    tmp_path: Path,
) -> None:
    parts, method, batch = before_training(tmp_path)
    training, wide = method.training, method.training.pricing.flops
    assert training.budget.limits["flops"] == int(0.7 * parts.full["full_flops"]) < wide
    assert method.graph.widths == {**parts.full["full_widths"], "conv1": 12, "conv2": 32}
    made = generation_flops(method.graph)
    assert made == 12 * 1 * (1 + 8 + 25 * 8) + 32 * 12 * (1 + 8 + 25 * 8)
    method.apply(selected(method, batch), batch)
    assert len(batch[0]) == 2 * 8 and training.ledger.spent == 16 * wide + 2 * made
    assert training.pricing.flops <= training.budget.limits["flops"]


def test_what_stays_has_the_weights_that_were_made_for_it_and_a_fresh_optimizer(tmp_path: Path) -> None:
    _, method, batch = before_training(tmp_path)
    plan = selected(method, batch)
    made = method.net.get_parameter("conv2.weight").detach().clone()
    method.apply(plan, batch)
    weight = method.net.get_parameter("conv2.weight")
    assert torch.equal(weight, made[list(plan.keep["conv2"])][:, list(plan.keep["conv1"])])
    assert all(p.grad is None for p in method.net.parameters())
    assert not method.training.optimizer.state
    optimized = [p for group in method.training.optimizer.param_groups for p in group["params"]]
    assert {id(p) for p in optimized} == {id(p) for p in method.net.parameters()}


def test_the_controls_cost_as_much_and_choose_otherwise(tmp_path: Path) -> None:
    chosen, spent = set(), set()
    for score in ("gradient", "magnitude", "random"):
        _, method, batch = before_training(tmp_path, f"method.score={score}")
        plan = selected(method, batch)
        method.apply(plan, batch)
        chosen.add(str(plan.keep))
        spent.add(method.training.ledger.spent)
    assert len(chosen) == 3 and len(spent) == 1


def test_a_search_of_latents_ends_in_a_plain_network_trained_by_a_fresh_optimizer(fit: Fit) -> None:
    short = ("method.search_epochs=2", "finetune.epochs=1", "epochs=3")
    parts = fit("method=dhp", "method.sparsity=2", *short)
    method = parts.method
    assert isinstance(method, DHP) and method.hypernetwork is None and not len(parts.learner.own)
    assert all(p.requires_grad for p in method.net.parameters())
    optimized = [p for group in method.training.optimizer.param_groups for p in group["params"]]
    assert {id(p) for p in optimized} == {id(p) for p in method.net.parameters()}
    spent, full = method.training.ledger.spent, parts.full["full_flops"]
    made = 6 * 1 * (1 + 8 + 25 * 8) + 16 * 6 * (1 + 8 + 25 * 8)
    images, steps = 40, 5
    assert spent == 2 * (images * full + steps * made) + images * method.training.pricing.flops


def test_convolutions_rest_while_their_weights_are_made(tmp_path: Path) -> None:
    parts = build(composed([*SMALL, "method=dhp", "method.search_epochs=9", "finetune.epochs=3"]), tmp_path)
    resting = {name for name, p in parts.learner.net.named_parameters() if not p.requires_grad}
    assert resting == {"conv1.weight", "conv2.weight"}
    parts.method.forward(torch.randn(2, 1, 28, 28)).square().sum().backward()  # type: ignore[union-attr]
    assert all(p.grad is not None for p in parts.learner.parameters() if p.requires_grad)
