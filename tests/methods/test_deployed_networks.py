"""Growth, pruning and scaling end at their budgets on networks that people deploy."""

from __future__ import annotations

import pytest
from short_run import Fit

METHODS = {
    "width": ("method=width", "epochs=1"),
    "l1": ("method=l1", "epochs=2", "prune.epochs=1", "prune.steps=1", "finetune.epochs=1"),
    "adenel": (
        "method=adenel", "epochs=8", "growth.seed_width=2", "growth.seed_shape=proportional", "finetune.epochs=1",
        "growth.policy=cost_aware", "growth.readout=path", "growth.cost_ratio=1",
    ),
}  # fmt: skip
NETWORKS = {"mobilenet_v2": 0.25, "regnet_y_200mf": 0.25, "densenet40": 0.35}
"""With the multipliers at which they are small."""
NARROWEST = {"regnet_y_200mf": 1}
"""Its squeezes have two filters at that multiplier, to which a seed of its proportions must have one."""
QUICK = {("width", "regnet_y_200mf"), ("l1", "densenet40"), ("adenel", "mobilenet_v2")}


@pytest.mark.parametrize(
    ("method", "network"),
    [
        pytest.param(method, network, marks=[] if (method, network) in QUICK else [pytest.mark.soak])
        for method in METHODS
        for network in NETWORKS
    ],
)
def test_a_deployed_network_ends_at_its_budget(method: str, network: str, fit: Fit) -> None:
    parts = fit(
        f"backbone={network}", f"backbone.multiplier={NETWORKS[network]}", "budget.flops=50%",
        "dataset.limit_train=32", "dataset.limit_test=16", "dataset.validation=16", "dataset.batch_size=16",
        *METHODS[method],
        *([f"growth.seed_width={NARROWEST[network]}"] if method == "adenel" and network in NARROWEST else []),
    )  # fmt: skip
    training = parts.method.training
    limit, flops = training.budget.limits["flops"], training.pricing.flops
    least = 0.5 if method == "width" else 0.9  # four filters a layer: one multiplier cannot come near
    assert least * limit < flops <= limit
    assert training.phase.final
