"""Growth by trained candidates, as whole runs."""

from __future__ import annotations

import json
from pathlib import Path

from commands import SHORT, run
from killed import At, learned, rounds
from several import DDP, WATCHED, forked, of_each_rank

REPLAYED = (*(o for o in SHORT if not o.startswith(("growth.", "lbi."))), "growth.init=firefly", "finetune.epochs=1")
FIREFLY = (*SHORT, "growth.policy=firefly", "growth.init=firefly", "finetune.epochs=1", "trainer.progress=false")


def test_it_meets_its_budget_is_continued_to_the_same_bits_and_can_be_replayed(tmp_path: Path) -> None:
    whole = run(*FIREFLY, f"run.dir={tmp_path}/whole")
    assert whole.returncode == 0, whole.stderr
    summary = json.loads((tmp_path / "whole" / "summary.json").read_text())
    assert 99 <= summary["budget"]["flops"]["percent"] <= 100
    assert all(
        record["candidates"] == list(record["plan"]) for record in rounds(tmp_path / "whole") if not record["stop"]
    )

    killed = run(
        *FIREFLY,
        f"run.dir={tmp_path}/run",
        before=At("budgetnet.methods.method.Training.resize", 2, after=True),
    )
    assert killed.returncode == -9
    continued = run(*FIREFLY, f"run.dir={tmp_path}/run")
    assert continued.returncode == 0, continued.stderr
    assert learned(tmp_path / "run") == learned(tmp_path / "whole")

    replayed = run(*REPLAYED, "method=replay", f"method.schedule_from={tmp_path}/whole", f"run.dir={tmp_path}/replayed")
    assert replayed.returncode == 0, replayed.stderr
    assert rounds(tmp_path / "replayed")[-1]["widths"] == summary["widths"]


def test_two_processes_grow_the_same_network(tmp_path: Path) -> None:
    more = ("epochs=4", "growth.max_rounds=2", "finetune.epochs=1", f"run.dir={tmp_path}/run")
    for ended in forked(tmp_path / "notes", *FIREFLY, *DDP, *WATCHED, *more):
        assert ended.code == 0, ended.errors
    assert len(rounds(tmp_path / "run")) == 2
    for event in ("round", "epoch", "end"):
        found = of_each_rank(tmp_path / "notes", event)
        assert found and all(first == second for first, second in found)
