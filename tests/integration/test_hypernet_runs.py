"""Whole runs of networks whose weights are made from latents, killed within the search and on two processes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from commands import refusal, run
from killed import At, learned, rounds, rows
from several import DDP, launched

DIGITS = (
    "dataset=digits", "dataset.limit_train=160", "dataset.batch_size=16", "dataset.validation=60",
    "dataset.limit_test=60", "budget.flops=50%", "optim.lr=0.02",
    "threads=1", "logger=csv", "export=false", "trainer.progress=false", "checkpoint.every_n_steps=1",
)  # fmt: skip
COMMANDS = {
    "lwdna": (*DIGITS, "method=lwdna", "backbone=resnet20", "backbone.multiplier=0.25", "epochs=2"),
    "dhp": (
        *DIGITS, "method=dhp", "backbone=lenet5", "epochs=4", "method.search_epochs=3", "finetune.epochs=1",
        "method.multiplier=1.5", "method.sparsity=5", "method.check_every=2",
    ),
}  # fmt: skip


def test_a_search_that_is_killed_within_an_epoch_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    """The search ends before its last epoch: what is left fits, and from then on nothing shrinks."""
    command, whole, killed = COMMANDS["dhp"], tmp_path / "whole", tmp_path / "killed"
    assert run(*command, f"run.dir={whole}").returncode == 0
    step = At("budgetnet.training.learner.Learner.training_step", 5)
    assert run(*command, f"run.dir={killed}", before=step).returncode == -9
    finished = run(*command, f"run.dir={killed}")
    assert finished.returncode == 0, finished.stderr
    assert learned(killed) == learned(whole)
    assert rows(killed / "latents.csv") == rows(whole / "latents.csv")
    [search] = rounds(whole)
    assert search["epoch"] < 3 and search["threshold"] is not None
    left, summary = rows(whole / "latents.csv"), json.loads((whole / "summary.json").read_text())
    assert int(left[0]["flops"]) <= summary["budget"]["flops"]["limit"]


@pytest.mark.soak
@pytest.mark.parametrize("method", COMMANDS)
def test_two_processes_killed_and_continued_end_in_the_bits_of_two_that_were_not(method: str, tmp_path: Path) -> None:
    ended = {}
    for name, trouble in (("whole", None), ("killed", "SIGKILL:1:1:3")):
        command = (*COMMANDS[method], *DDP, f"run.dir={tmp_path}/{name}/run",
                   "+callbacks.trouble._target_=ranks.Trouble")  # fmt: skip
        if trouble is not None:
            assert launched(tmp_path / name, *command, trouble=trouble).code == 1
        finished = launched(tmp_path / name, *command)
        assert finished.code == 0, finished.errors
        ended[name] = learned(tmp_path / name / "run")
    assert ended["whole"] == ended["killed"]


@pytest.mark.parametrize(
    ("method", "options", "text"),
    [
        ("lwdna", ("method.multiplier=0.5",), "method.multiplier=0.5: expected a number above 1"),
        ("lwdna", ("method.batches=1",), "method.batches=1: expected 2 or more"),
        ("lwdna", ("method.batches=11",), "method.batches=11: an epoch has only 10"),
        ("lwdna", ("method.score=gradints",), "method.score='gradints' is unknown; did you mean 'gradient'?"),
        ("lwdna", ("budget.flops=3%",), "of the channels that the floors keep: raise it or lower the floors"),
        ("lwdna", ("budget.flops=900%",), "holds the network that is narrowed (7,877,952): lower"),
        ("lwdna", ("budget.train_cost=10%",), "budget.train_cost is not kept by method=lwdna"),
        ("dhp", ("method.floor=0",), "method.floor=0: expected a number of channels, 1 or more"),
        (
            "dhp",
            ("budget.flops=900%",),
            "holds the network that is narrowed (799,320): lower it or",
        ),
        ("dhp", ("epochs=3",), "method.search_epochs=3 and finetune.epochs=1 do not fit into epochs=3"),
    ],
)
def test_bad_input_is_one_line_before_anything_is_written(
    method: str, options: tuple[str, ...], text: str, tmp_path: Path
) -> None:
    assert text in refusal(tmp_path / "run", *COMMANDS[method], *options)
