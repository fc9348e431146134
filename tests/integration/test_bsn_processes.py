"""A search for edges on two processes: the same choices, one decision, and the same bits after a kill."""

from __future__ import annotations

from pathlib import Path

import pytest
from killed import learned, rounds
from several import DDP, forked, launched, of_each_rank

COMMAND = (
    "method=bsn", "backbone=cnf", "backbone.columns=2", "backbone.channels=4", "dataset=digits",
    "dataset.limit_train=32", "dataset.batch_size=16", "dataset.validation=0", "budget.flops=40%",
    "method.warmup_epochs=1", "method.lr=20", "method.search_epochs=3", "method.images=32", "finetune.epochs=1",
    "epochs=4", "optim.lr=0.02", "export=false", "logger=csv", *DDP,
)  # fmt: skip


def test_two_processes_learn_the_same_probabilities_and_keep_the_same_edges(tmp_path: Path) -> None:
    """Without validation, which would give both the running statistics of the first."""
    searching = "+callbacks.searching._target_=ranks.Searching"
    for ended in forked(tmp_path / "notes", *COMMAND, searching, f"run.dir={tmp_path}/run"):
        assert ended.code == 0, ended.errors
    epochs = of_each_rank(tmp_path / "notes", "epoch")
    assert len(epochs) == 4 and all(first == second for first, second in epochs)
    assert [first["moved"] for first, _ in epochs] == [False, True, True, True]
    (round,) = rounds(tmp_path / "run")
    assert round["stop"] == "flops" and 0 < len(round["edges"]) < 26


@pytest.mark.soak
@pytest.mark.parametrize(
    "options",
    [(), ("method.samples=4",), ("checkpoint.every_n_steps=1",), ("budget.latency=1s", "method.baseline=ema")],
    ids=" ".join,
)
def test_they_go_on_after_a_kill_to_the_same_bits(options: tuple[str, ...], tmp_path: Path) -> None:
    """With a limit on latency, which the first process measures, the two runs have times of their own."""
    command = (*COMMAND, *options, "+callbacks.trouble._target_=ranks.Trouble")
    whole = forked(tmp_path / "a", *command, f"run.dir={tmp_path}/whole")
    assert [ended.code for ended in whole] == [0, 0], whole[0].errors
    killed = launched(tmp_path / "b", *command, f"run.dir={tmp_path}/run", trouble="SIGKILL:1:2:1")
    assert killed.code != 0
    again = forked(tmp_path / "b", *command, f"run.dir={tmp_path}/run")
    assert [ended.code for ended in again] == [0, 0], again[0].errors
    if "budget.latency=1s" not in options:
        assert learned(tmp_path / "run") == learned(tmp_path / "whole")
