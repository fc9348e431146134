"""A finished run is gone on from with another budget, method, dataset or length, and is continued by its directory."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from commands import SHORT, run

BRIEF = ("dataset.limit_train=160", "optim.lr=0.02", "export=false", "logger=csv", "threads=1")
GROWING = ("growth.epochs_per_round=1", "growth.readout=support", "finetune.epochs=1", "epochs=4")


def gone_on(source: Path, directory: Path, *overrides: str, said: str = "") -> dict[str, Any]:
    """summary.json of a run that starts from another one, whose report says so."""
    done = run(f"start.from={source}", *BRIEF, *overrides, f"run.dir={directory}")
    assert done.returncode == 0, done.stderr
    assert f"tensors from start.from={source}{said}" in done.stdout  # in the header
    chosen = "method   adenel, growth.policy=cost_aware: " in done.stdout  # which was left to the method
    assert chosen == (not any("method=" in override for override in overrides))
    assert f"| started from | {source} |" in (directory / "report.md").read_text()
    summary = json.loads((directory / "summary.json").read_text())
    assert summary["started_from"] == str(source) and summary["backbone"] == "lenet5"
    return dict(summary)


@pytest.fixture(scope="module")
def before(short_run: Path) -> dict[str, Any]:
    return dict(json.loads((short_run / "summary.json").read_text()))


def test_a_run_grows_on_to_a_larger_budget(short_run: Path, before: dict[str, Any], tmp_path: Path) -> None:
    after = gone_on(short_run, tmp_path / "run", "budget.flops=120%", *GROWING)
    assert after["seed_widths"] == before["widths"]  # not those of a new seed network
    assert before["flops"] < after["flops"] <= after["budget"]["flops"]["limit"]
    assert all(after["widths"][name] >= width for name, width in before["widths"].items())


def test_a_run_is_pruned_on_to_a_smaller_budget(short_run: Path, before: dict[str, Any], tmp_path: Path) -> None:
    pruned = ("method=l1", "budget.flops=40%", "prune.epochs=0", "finetune.epochs=1", "epochs=1")
    after = gone_on(short_run, tmp_path / "run", *pruned)
    assert after["flops"] <= after["budget"]["flops"]["limit"] < before["flops"]
    assert all(after["widths"][name] <= width for name, width in before["widths"].items())


def test_a_network_is_trained_for_more_epochs(short_run: Path, before: dict[str, Any], tmp_path: Path) -> None:
    after = gone_on(short_run, tmp_path / "run", "method=train", "epochs=1", "optim.lr=1e-9")
    assert after["widths"] == before["widths"]
    assert after["test_top1"] == pytest.approx(before["test_top1"], abs=3)  # batch norms are none, so little changes
    shown = run(f"run.dir={tmp_path}/run")
    assert shown.returncode == 0 and "was finished before" in shown.stdout  # by the rate that it began with


def test_other_classes_have_a_new_head_on_the_same_network(
    short_run: Path, before: dict[str, Any], tmp_path: Path
) -> None:
    five = ("dataset.source._target_=tests.few_digits.first_five", "dataset.name=five", "method=train", "epochs=1")
    after = gone_on(short_run, tmp_path / "run", *five, said="; fc3.weight and fc3.bias drawn anew")
    assert after["widths"] == before["widths"] and after["dataset"] == "five"
    assert len(json.loads((tmp_path / "run" / "preprocessing.json").read_text())["classes"]) == 5


def test_a_directory_alone_continues_its_run_as_it_was_configured_and_shows_it_when_it_is_done(
    short_run: Path, before: dict[str, Any], tmp_path: Path
) -> None:
    directory = tmp_path / "seed=0,epochs=16"  # as runs are called: no quotes are needed
    shutil.copytree(short_run, directory)
    for name in ("done.json", "summary.json"):
        (directory / name).unlink()
    again = run(f"run.dir={directory}")
    assert again.returncode == 0, again.stderr
    after = json.loads((directory / "summary.json").read_text())
    for name in ("widths", "epochs", "backbone", "dataset", "budget", "test_top1"):
        assert after[name] == before[name]
    shown = run(f"run.dir={directory}")
    assert shown.returncode == 0 and "lenet5" in shown.stdout and "epoch " not in shown.stderr
    other = run(f"run.dir={directory}", "optim.lr=0.5")
    assert other.returncode == 2 and "(differing: optim.lr); choose another run.dir or run.name, or con" in other.stderr
    none = run(f"run.dir={tmp_path}/none", "logger=csv")
    assert none.returncode == 2 and f"run.dir={tmp_path}/none holds no run to continue" in none.stderr


def test_what_is_no_finished_run_is_refused_in_one_line(short_run: Path, tmp_path: Path) -> None:
    unfinished = tmp_path / "unfinished"
    shutil.copytree(short_run, unfinished, ignore=shutil.ignore_patterns("done.json"))
    for source, reason in ((tmp_path, "with its config.yaml"), (unfinished, "it is not finished")):
        refused = run(f"start.from={source}", *SHORT, f"run.dir={tmp_path}/run")
        assert refused.returncode == 2 and len(refused.stderr.splitlines()) == 1
        assert f"start.from={source}: expected the directory of a finished run" in refused.stderr
        assert reason in refused.stderr and not (tmp_path / "run" / "config.yaml").exists()
