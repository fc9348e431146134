"""A task and a method of one file each go all the way: from the command to the table and the page, killed and on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from commands import run
from killed import At, learned, rows
from several import DDP, launched

from budgetnet.reports.page import page
from budgetnet.reports.tables import as_csv, as_markdown, final_row
from budgetnet.runs.directory import RunDirectory

TOYS = (
    "task=own", "task._target_=tests.toys.regression.Regression", "method=own",
    "method._target_=tests.toys.weakest.WeakestFilter", "dataset=digits", "backbone=lenet5", "budget.flops=75%",
    "epochs=4", "dataset.limit_train=160", "dataset.batch_size=16", "optim.lr=0.01", "threads=1", "logger=csv",
    "export=false", "trainer.progress=false", "+method.filters=3",
)  # fmt: skip
STEP = "budgetnet.training.learner.Learner.training_step"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("toys") / "run"
    finished = run(*TOYS, f"run.dir={directory}", figures=True)
    assert finished.returncode == 0, finished.stderr
    assert "Test mean absolute error" in finished.stdout and "top-1" not in finished.stdout
    return directory


def test_the_smallest_error_on_the_validation_set_selects_the_network(whole: Path) -> None:
    summary = json.loads((whole / "summary.json").read_text())
    errors = {
        int(row["epoch"]): float(row["val_mae"]) for row in rows(whole / "metrics.csv") if row["phase"] == "train"
    }
    assert summary["best_epoch"] == min(errors, key=errors.__getitem__)
    assert summary["val_mae"] == min(errors.values())


def test_the_first_filter_goes_before_the_first_step_and_the_last_when_the_budget_fits(whole: Path) -> None:
    rounds = [json.loads(line) for line in (whole / "growth.jsonl").read_text().splitlines()]
    assert [round["epoch"] for round in rounds] == list(range(len(rounds))) and rounds[0]["step"] == 0
    limit = json.loads((whole / "summary.json").read_text())["budget"]["flops"]["limit"]
    assert rounds[-1]["flops"] <= limit < rounds[-2]["flops"] and rounds[-1]["stop"] == "flops"
    assert [len(round["plan"]) for round in rounds] == [1] * len(rounds)


def test_the_report_the_table_and_the_page_name_the_metric_and_no_other(whole: Path) -> None:
    run_directory = RunDirectory(whole)
    row = final_row(run_directory)
    for text in (as_markdown([row]), as_csv([row]), (whole / "report.md").read_text(), page([run_directory])):
        assert "mae" in text or "mean absolute error" in text
        assert "top-1" not in text and "top1" not in text.replace("topojson", "")


def test_killed_anywhere_it_is_continued_to_the_same_bits(whole: Path, tmp_path: Path) -> None:
    command = (*TOYS, f"run.dir={tmp_path}/run", "checkpoint.every_n_steps=1")
    for before in (At(STEP, 7), At("budgetnet.methods.method.Training.resize", 2, after=True)):
        assert run(*command, before=before).returncode == -9
    finished = run(*command)
    assert finished.returncode == 0, finished.stderr
    assert learned(tmp_path / "run") == learned(whole)


def test_two_processes_killed_and_continued_end_in_the_bits_of_two_that_were_not(tmp_path: Path) -> None:
    ended = {}
    for name, trouble in (("whole", None), ("killed", "SIGKILL:1:1:3")):
        command = (*TOYS, *DDP, f"run.dir={tmp_path}/{name}/run", "checkpoint.every_n_steps=1",
                   "+callbacks.trouble._target_=ranks.Trouble")  # fmt: skip
        first = launched(tmp_path / name, *command, trouble=trouble)
        assert first.code == (0 if trouble is None else 1), first.errors
        again = launched(tmp_path / name, *command)
        assert again.code == 0, again.errors
        ended[name] = learned(tmp_path / name / "run")
    assert ended["whole"] == ended["killed"]
