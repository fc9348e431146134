"""AutoGrow on two processes: one decision, the same blocks, and the same bits after a kill."""

from __future__ import annotations

from pathlib import Path

import pytest
from killed import learned, rounds
from several import DDP, forked, launched

from budgetnet.runs.checkpoints import load_checkpoint

COMMAND = (
    "method=autogrow", "method.threshold=-100", "backbone=own", "backbone._target_=nets.Stages", "dataset=digits",
    "dataset.limit_train=64", "dataset.batch_size=16", "budget.flops=150%", "growth.epochs_per_round=1",
    "finetune.epochs=1", "epochs=6", "optim.lr=0.02", "export=false", "logger=csv", *DDP,
    "+callbacks.trouble._target_=ranks.Trouble",
)  # fmt: skip


@pytest.mark.soak
def test_two_processes_add_the_same_blocks_and_go_on_after_a_kill_to_the_same_bits(tmp_path: Path) -> None:
    whole = forked(tmp_path / "a", *COMMAND, f"run.dir={tmp_path}/whole")
    assert [ended.code for ended in whole] == [0, 0], whole[0].errors
    depths = [record["depths"] for record in rounds(tmp_path / "whole")]
    assert depths[1] == {"body.wide": [2, 2], "body.deep": [1, 2], "body.joined": [1, 1], "body.plain": [1, 1]}
    killed = launched(tmp_path / "b", *COMMAND, f"run.dir={tmp_path}/run", trouble="SIGKILL:1:2:2")
    assert killed.code != 0
    assert load_checkpoint(tmp_path / "run" / "last.ckpt")["budgetnet"]["method"]["depths"] == {
        name: after for name, (_, after) in depths[1].items()
    }
    again = forked(tmp_path / "b", *COMMAND, f"run.dir={tmp_path}/run")
    assert [ended.code for ended in again] == [0, 0], again[0].errors
    assert learned(tmp_path / "run") == learned(tmp_path / "whole")
