"""Growth where the loss says that channels are missing, as whole runs."""

from __future__ import annotations

from pathlib import Path

import pytest
from commands import SHORT, run
from killed import At, learned, rounds
from several import DDP, WATCHED, forked, of_each_rank

UNREAD = ("growth.threshold=", "growth.number=", "growth.ratio=")
IMPORTANCE = (
    *(each for each in SHORT if not each.startswith(UNREAD)),
    "growth.policy=cost_aware", "growth.readout=importance", "finetune.epochs=1", "trainer.progress=false",
)  # fmt: skip


@pytest.mark.soak
def test_a_killed_run_is_continued_to_the_same_bits(tmp_path: Path) -> None:
    whole = run(*IMPORTANCE, f"run.dir={tmp_path}/whole")
    assert whole.returncode == 0, whole.stderr
    step = At("budgetnet.methods.growth.adenel.channel_importance", 2)
    assert run(*IMPORTANCE, f"run.dir={tmp_path}/run", before=step).returncode == -9
    continued = run(*IMPORTANCE, f"run.dir={tmp_path}/run")
    assert continued.returncode == 0, continued.stderr
    assert learned(tmp_path / "run") == learned(tmp_path / "whole")


@pytest.mark.soak
def test_two_processes_grow_the_same_network(tmp_path: Path) -> None:
    more = ("epochs=4", "growth.max_rounds=2", f"run.dir={tmp_path}/run")
    for ended in forked(tmp_path / "notes", *IMPORTANCE, *DDP, *WATCHED, *more):
        assert ended.code == 0, ended.errors
    assert len(rounds(tmp_path / "run")) == 2
    for event in ("round", "epoch", "end"):
        found = of_each_rank(tmp_path / "notes", event)
        assert found and all(first == second for first, second in found)
