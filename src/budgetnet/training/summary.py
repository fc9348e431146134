"""The entries of summary.json beside the metrics: configuration, costs of the network, versions and hardware."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from budgetnet.tasks import Metric, Task
from budgetnet.training.learner import Learner


def describe(
    config: Mapping[str, Any], directory: Path, learner: Learner, full: Mapping[str, Any], command: str
) -> dict[str, Any]:
    """All entries of summary.json except the metrics. full: entries about the full backbone."""
    method, training = learner.method, learner.method.training
    costs, ledger, budget = method.costs(), training.ledger, training.budget
    spent = {**costs, "train_cost": ledger.spent}
    used = budget.used(spent)
    return {
        "format": 1,
        "name": directory.name,
        "experiment": config["run"]["experiment"],
        "method": config["method"]["name"],
        "backbone": config["backbone"].get("name", config["backbone"]["_target_"]),
        "dataset": config["dataset"]["name"],
        "seed": config["seed"],
        **costs,
        "budget": {
            kind: {"limit": limit, "used": spent[kind], "percent": 100 * used[kind]}
            for kind, limit in budget.limits.items()
        },
        "train_cost_flops": ledger.spent,
        "train_cost_baseline_percent": ledger.percent_of_baseline(),
        "train_cost_final_percent": ledger.percent_of_final(costs["flops"]),
        **({"teacher_cost_flops": ledger.teacher} if training.task.teacher_flops else {}),
        "widths": training.graph.widths,
        **full,
        **method.facts(),
        "stop_reason": learner.stop_reason,
        "rounds": training.round,
        "growth_seconds": round(ledger.growth_seconds, 3),
        "compile_seconds": round(ledger.compile_seconds, 3),
        "versions": {name: metadata.version(name) for name in ("torch", "pytorch-lightning", "hydra-core", "numpy")}
        | {"python": platform.python_version()},
        "hardware": _hardware(learner),
        "command": command,
    }


def best_test_epoch(metrics: Sequence[Mapping[str, Any]], first: int, metric: Metric) -> dict[str, Any]:
    """The best test value and its epoch, the last among equals, in the rows of metrics.csv from epoch `first` on.

    Both are None if the test set was not evaluated. first: the first epoch of the final network, since earlier networks
    may exceed the budget.
    """
    name = f"test_{metric.name}"
    tested = [(row[name], row["epoch"]) for row in metrics if row["epoch"] >= first and row[name] is not None]
    best, epoch = max(tested, key=lambda pair: (metric.gain(pair[0]), pair[1]), default=(None, None))
    return {f"{name}_best": best, f"{name}_best_epoch": epoch}


def validation_at(metrics: Sequence[Mapping[str, Any]], epoch: int, task: Task) -> dict[str, Any]:
    """The validation metrics of an epoch of metrics.csv, by name; None without a validation."""
    row: Mapping[str, Any] = next((row for row in metrics if row["epoch"] == epoch), {})
    return {f"val_{metric.name}": row.get(f"val_{metric.name}") for metric in task.metrics}


def _hardware(learner: Learner) -> dict[str, Any]:
    root = learner.trainer.strategy.root_device
    device = torch.cuda.get_device_name(root) if root.type == "cuda" else f"{root.type} {platform.machine()}"
    return {"device": device, "threads": torch.get_num_threads(), "devices": learner.trainer.world_size}
