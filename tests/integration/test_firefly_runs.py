"""Growth by trained candidates, as whole runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from commands import SHORT, run
from killed import At, learned, rounds
from several import DDP, WATCHED, forked, of_each_rank

REPLAYED = (*(o for o in SHORT if not o.startswith(("growth.", "lbi."))), "growth.init=firefly", "finetune.epochs=1")
FIREFLY = (*SHORT, "growth.policy=firefly", "growth.init=firefly", "finetune.epochs=1", "trainer.progress=false")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("firefly") / "whole"
    finished = run(*FIREFLY, f"run.dir={directory}")
    assert finished.returncode == 0, finished.stderr
    return directory


def test_it_meets_its_budget_and_can_be_replayed(whole: Path, tmp_path: Path) -> None:
    summary = json.loads((whole / "summary.json").read_text())
    assert 99 <= summary["budget"]["flops"]["percent"] <= 100
    assert all(record["candidates"] == list(record["plan"]) for record in rounds(whole) if not record["stop"])
    replayed = run(*REPLAYED, "method=replay", f"method.schedule_from={whole}", f"run.dir={tmp_path}/replayed")
    assert replayed.returncode == 0, replayed.stderr
    assert rounds(tmp_path / "replayed")[-1]["widths"] == summary["widths"]


@pytest.mark.soak
def test_a_killed_run_is_continued_to_the_same_bits(whole: Path, tmp_path: Path) -> None:
    killed = run(
        *FIREFLY,
        f"run.dir={tmp_path}/run",
        before=At("budgetnet.methods.method.Training.resize", 2, after=True),
    )
    assert killed.returncode == -9
    continued = run(*FIREFLY, f"run.dir={tmp_path}/run")
    assert continued.returncode == 0, continued.stderr
    assert learned(tmp_path / "run") == learned(whole)


@pytest.mark.soak
def test_two_processes_grow_the_same_network(tmp_path: Path) -> None:
    more = ("epochs=4", "growth.max_rounds=2", "finetune.epochs=1", f"run.dir={tmp_path}/run")
    for ended in forked(tmp_path / "notes", *FIREFLY, *DDP, *WATCHED, *more):
        assert ended.code == 0, ended.errors
    assert len(rounds(tmp_path / "run")) == 2
    for event in ("round", "epoch", "end"):
        found = of_each_rank(tmp_path / "notes", event)
        assert found and all(first == second for first, second in found)
