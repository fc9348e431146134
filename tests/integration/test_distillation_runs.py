"""A run with a teacher: its loss, its cost, and what cannot be one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from commands import refusal, run
from killed import At, learned, rows

from budgetnet import backbones
from budgetnet.runs.export import export_model

STUDENT = (
    "method=train", "dataset=digits", "dataset.limit_train=80", "dataset.batch_size=16", "backbone=lenet5",
    "backbone.multiplier=0.5", "epochs=2", "optim.lr=0.02", "threads=1", "logger=csv", "export=false",
    "trainer.progress=false", "checkpoint.every_n_steps=1",
)  # fmt: skip
FLOPS = 1_000


def as_run(network: torch.nn.Module, directory: Path, *shape: int) -> Path:
    """What a finished run leaves that a teacher is made of."""
    export_model(network, shape, directory)
    (directory / "summary.json").write_text(json.dumps({"flops": FLOPS}))
    return directory


@pytest.fixture(scope="module")
def teachers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("teachers")
    torch.manual_seed(0)
    as_run(backbones.build("lenet5", num_classes=10, in_channels=1), root / "right", 1, 28, 28)
    as_run(backbones.build("lenet5", num_classes=5, in_channels=1), root / "five", 1, 28, 28)
    as_run(backbones.build("lenet5", num_classes=10, in_channels=3), root / "colour", 3, 28, 28)
    return root


@pytest.fixture(scope="module")
def taught(teachers: Path) -> Path:
    finished = run(*STUDENT, f"distill.teacher={teachers}/right", f"run.dir={teachers}/whole")
    assert finished.returncode == 0, finished.stderr
    return teachers / "whole"


@pytest.mark.soak
def test_a_killed_student_goes_on_to_the_same_bits(taught: Path, teachers: Path, tmp_path: Path) -> None:
    command = (*STUDENT, f"distill.teacher={teachers}/right", f"run.dir={tmp_path}/killed")
    step = At("budgetnet.training.learner.Learner.training_step", 7)
    assert run(*command, before=step).returncode == -9
    continued = run(*command)
    assert continued.returncode == 0, continued.stderr
    assert learned(tmp_path / "killed") == learned(taught)


def test_what_a_teacher_costs_has_a_column_of_its_own(taught: Path) -> None:
    table, summary = rows(taught / "metrics.csv"), json.loads((taught / "summary.json").read_text())
    assert [int(row["teacher_cost_flops"]) for row in table] == [80 * FLOPS, 160 * FLOPS]
    assert summary["teacher_cost_flops"] == 160 * FLOPS
    assert summary["train_cost_flops"] == 160 * summary["flops"]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (("distill.teacher={}/none",), "expected the directory of a finished run with its model.pt2 (export=true)"),
        (("distill.teacher={}/five",), "it gives (2, 5) for two images: expected a tensor of shape (2, 10)"),
        (("distill.teacher={}/colour",), "it does not take images of shape (1, 28, 28): choose one trained on such"),
        (("dataset=shapes", "backbone=cnf", "backbone.multiplier=null", "distill.teacher={}/right"),
         "task=segmentation has no classes for an image: leave it out"),
    ],
)  # fmt: skip
def test_what_cannot_be_a_teacher_is_one_line_before_training(
    options: tuple[str, ...], text: str, teachers: Path, tmp_path: Path
) -> None:
    assert text in refusal(tmp_path / "run", *STUDENT, *(option.format(teachers) for option in options))
