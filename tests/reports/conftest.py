"""Run directories made by a small simulation: every file agrees with every other."""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from pages import EVIL, all_poisoned

from budgetnet.reports import report
from budgetnet.runs.directory import RunDirectory
from budgetnet.tasks import Classification, Metric

IMAGES, IMAGE_AREA = 1000, 100


def costs(widths: dict[str, int]) -> dict[str, int]:
    """Params, FLOPs and macs of a chain of 3x3 convolutions with these widths."""
    channels = [3, *widths.values()]
    params = sum(9 * left * right for left, right in pairwise(channels))
    return {"params": params, "flops": params * IMAGE_AREA + sum(channels), "macs": params * IMAGE_AREA}


def scores(metrics: Sequence[Metric], kind: str, quality: float, suffix: str = "") -> dict[str, float]:
    """Each metric's score of a network: percent grow with its quality (0 to 100), decibels too, an error falls."""
    found = {}
    for number, metric in enumerate(metrics):
        percent = (quality + 100 * number) / (number + 1)
        value = percent if metric.unit == "%" else 20 + percent / 10 if metric.unit else 0.002 * (100 - percent)
        found[f"{kind}_{metric.name}{suffix}"] = value
    return found


def write_run(
    path: Path,
    names: Sequence[str] = ("conv1", "conv2", "fc1"),
    full: Sequence[int] = (20, 50, 100),
    *,
    backbone: str = "lenet",
    dataset: str = "mnist",
    method: str = "adenel",
    seed: int = 0,
    rounds: int = 4,
    epochs_per_round: int = 3,
    finetune: int = 8,
    ratio: float = 0.5,
    finished: bool = True,
    test_every_epoch: bool = False,
    metrics: tuple[Metric, ...] = Classification.metrics,
) -> Path:
    """Write the run directory of a network that grows by `ratio` for `rounds` rounds and is then fine-tuned.

    Unfinished runs stop one epoch before the end. Method "train" is the full backbone for `finetune` epochs.
    metrics: of its task; the network gets better and better by all of them.
    """
    path.mkdir(parents=True)
    chance = random.Random(f"{path.name}/{seed}")
    full_widths = dict(zip(names, full, strict=True))
    growing = method != "train"
    seed_widths = {name: 8 if growing else width for name, width in full_widths.items()}
    widths, spent, epoch, val = dict(seed_widths), 0, 0, 10.0
    baseline_epochs = rounds * epochs_per_round + finetune
    baseline = costs(full_widths)["flops"] * baseline_epochs * IMAGES
    most = 8
    for _ in range(rounds):
        most = int(most * (1 + ratio))
    limit = costs({name: most if growing else width for name, width in full_widths.items()})["flops"]
    first = metrics[0].name
    tested = (f"test_{first}_best", f"test_{first}_best_epoch")
    qualities: list[float] = []
    epochs: list[dict[str, Any]] = []
    saturations: list[dict[str, Any]] = []
    records: list[dict[str, Any]] = []
    phases = ["grow"] * (rounds * epochs_per_round if growing else 0)
    phases += [("finetune" if growing else "train")] * finetune
    if not finished:
        phases.pop()
    done = 0
    for phase in phases:
        epoch += 1
        spent += costs(widths)["flops"] * IMAGES
        val += (95 - val) * 0.15 + chance.uniform(-1, 1)
        qualities.append(val)
        epochs.append({
            "epoch": epoch, "phase": phase, "round": done + 1, "step": epoch * 10, "lr": 0.05,
            "train_loss": 2.3 * 0.9**epoch, **scores(metrics[:1], "train", val - 1), "val_loss": 2.3 * 0.92**epoch,
            **scores(metrics, "val", val),
            **(scores(metrics[:1], "test", val - 0.5) if test_every_epoch else {f"test_{first}": ""}), **costs(widths),
            "train_cost_flops": spent, "train_cost_baseline_percent": 100 * spent / baseline, "seconds": 1.5,
        })  # fmt: skip
        if phase != "grow":
            continue
        part = ((epoch - 1) % epochs_per_round + 1) / epochs_per_round
        s = {name: min(1.0, part * chance.uniform(0.6, 1.3)) for name in names}
        saturations.append({"epoch": epoch, "round": done + 1, **s})
        if part == 1:
            done += 1
            candidates = [name for name in names if s[name] > 0.8]
            plan = {name: [widths[name], int(widths[name] * (1 + ratio))] for name in candidates}
            stop = "flops" if done == rounds else None
            widths = {**widths, **{name: new for name, (_, new) in plan.items()}}
            records.append({
                "round": done, "epoch": epoch, "step": epoch * 10, "saturation": s, "candidates": candidates,
                "plan": plan, "widths": widths, **costs(widths), "train_cost_flops": spent,
                "clipped": stop is not None, "stop": stop, "pause_ms": 12.3,
            })  # fmt: skip
    config = {
        "method": method, "backbone": backbone, "dataset": dataset, "seed": seed, "epochs": baseline_epochs,
        "budget": {"flops": limit}, "growth": {"threshold": 0.8, "seed": seed, "ratio": ratio},
        "run": {"dir": str(path)}, "optim": {"lr": 0.05},
    }  # fmt: skip
    (path / "config.yaml").write_text(json.dumps(config))  # JSON is YAML
    (path / "task.json").write_text(json.dumps({"name": "any", "metrics": [asdict(metric) for metric in metrics]}))
    for name, rows in (("metrics.csv", epochs), ("saturation.csv", saturations)):
        if rows:
            with open(path / name, "w", newline="") as file:
                writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
                writer.writeheader()
                writer.writerows(rows)
    if records:
        (path / "growth.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    if finished:
        now = costs(widths)
        best = max(qualities)
        best_epoch = 1 + qualities.index(best)
        at_best = (*scores(metrics[:1], "test", best + 0.4).values(), best_epoch) if test_every_epoch else (None, None)
        summary = {
            "format": 1, "name": path.name, "experiment": "tests", "method": method, "backbone": backbone,
            "dataset": dataset, "seed": seed, **scores(metrics, "test", best - 0.5),
            **scores(metrics, "test", qualities[-1] - 0.7, "_last"), **scores(metrics, "val", best),
            "best_epoch": best_epoch, "epochs": epoch, **dict(zip(tested, at_best, strict=True)), **now,
            "budget": {"flops": {"limit": limit, "used": now["flops"], "percent": 100 * now["flops"] / limit}},
            "train_cost_flops": spent, "train_cost_baseline_percent": 100 * spent / baseline,
            "train_cost_final_percent": 100 * spent / (now["flops"] * baseline_epochs * IMAGES),
            "widths": widths, "seed_widths": seed_widths, "full_widths": full_widths,
            "full_params": costs(full_widths)["params"], "full_flops": costs(full_widths)["flops"],
            "stop_reason": "flops" if growing else None, "rounds": done, "seconds": 1.5 * epoch,
            "growth_seconds": 0.0123 * done, "compile_seconds": 0.0,
            "versions": {"python": "3.11.2", "torch": "2.13.0"}, "hardware": {"device": "cpu", "cores": 2},
            "command": f"python -m src.run backbone={backbone} budget.flops={limit} seed={seed}",
        }  # fmt: skip
        (path / "summary.json").write_text(json.dumps(summary))
        (path / "done.json").write_text("{}")
    return path


@pytest.fixture(scope="session")
def write() -> Callable[..., Path]:
    """write_run(path, ...)."""
    return write_run


@pytest.fixture(scope="session")
def several(write: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> list[RunDirectory]:
    """Repetitions, a full backbone that was tested after every epoch, an unfinished run, and names that do harm."""
    folder = tmp_path_factory.mktemp("several")
    paths = [write(folder / f"seed{seed}", seed=seed) for seed in range(3)]
    paths += [write(folder / "full", method="train", test_every_epoch=True)]
    paths += [write(folder / "killed", finished=False, seed=7)]
    paths += [write(folder / "<b>&'bold\"", backbone=EVIL, names=("<i>1", "a&b", 'c"d'), ratio=0.8)]
    return [RunDirectory(path) for path in paths]


@pytest.fixture(scope="session")
def poisoned_runs(write: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> list[RunDirectory]:
    return all_poisoned(write, tmp_path_factory.mktemp("poisoned"))


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    """write_run(name, ...) below tmp_path."""
    return lambda name="run", **options: write_run(tmp_path / name, **options)


@pytest.fixture
def not_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are made and their files are empty: to draw them takes most of the time of a report."""

    def save(figure: object, path: Path) -> Path:
        path.write_bytes(b"")
        return path

    monkeypatch.setattr("budgetnet.reports.drawing.save", save)


@pytest.fixture
def drawn_alone(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Called with the names of figures, it leaves the others out of reports."""

    def keep(*names: str) -> None:
        monkeypatch.setattr(report, "_FIGURES", {name: report._FIGURES[name] for name in names})

    return keep
