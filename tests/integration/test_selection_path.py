"""The path of a growth round: when which filter was selected."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from commands import TINY, run
from killed import At, rounds

PATH = (
    *TINY,
    "+callbacks.path._target_=budgetnet.training.callbacks.selection_path.SelectionPath",
    "+callbacks.path.every=2",
)
SHORTER = ("dataset.limit_train=80", "dataset.batch_size=8", "dataset.validation=60", "dataset.limit_test=60")


def paths(directory: Path) -> list[list[dict[str, str]]]:
    files = sorted((directory / "selection").glob("round_*.csv"))
    return [list(csv.DictReader(file.read_text().splitlines())) for file in files]


def test_a_path_ends_at_the_saturation_that_is_read_and_a_killed_run_has_the_same(tmp_path: Path) -> None:
    command = [*PATH, *SHORTER, "lbi.selection_norm=0.9", "budget.flops=60%", "growth.readout=support"]
    whole = run(*command, f"run.dir={tmp_path}/whole")
    assert whole.returncode == 0, whole.stderr
    entries, found = rounds(tmp_path / "whole"), paths(tmp_path / "whole")
    assert len(found) == len(entries) > 1
    initial = json.loads((tmp_path / "whole" / "summary.json").read_text())["seed_widths"]
    assert {row["layer"] for row in found[0]} == {"conv1", "conv2"} and len(found[0]) == sum(
        initial[name] for name in ("conv1", "conv2")
    )
    for entry, lines in zip(entries, found, strict=True):
        selected = [row for row in lines if row["step"]]
        for layer, share in entry["saturation"].items():
            own = [row for row in lines if row["layer"] == layer]
            assert sum(row in selected for row in own) / len(own) == pytest.approx(share)
        assert all(0 < int(row["step"]) <= 10 and int(row["step"]) % 2 == 0 for row in selected)
        below = [float(row["mean_norm"]) for row in lines if not row["step"]]
        assert max(below, default=0) <= min((float(row["mean_norm"]) for row in selected), default=9)  # one bar for all

    place = At("budgetnet.training.learner.Learner.training_step", 17)
    killed = run(*command, f"run.dir={tmp_path}/run", "checkpoint.every_n_steps=3", before=place)
    assert killed.returncode == -9
    continued = run(*command, f"run.dir={tmp_path}/run", "checkpoint.every_n_steps=3")
    assert continued.returncode == 0, continued.stderr
    assert paths(tmp_path / "run") == found
