"""A task and a method of one file each go all the way: from the command to the table and the page, killed and on."""

from __future__ import annotations

import json
from pathlib import Path

import onnxruntime
import pytest
from commands import refusal, run
from killed import At, learned, rows
from several import DDP, WATCHED, launched, of_each_rank

from budgetnet.reports.page import page
from budgetnet.reports.rows import final_row
from budgetnet.reports.tables import as_csv, as_markdown
from budgetnet.runs.directory import RunDirectory

TOYS = (
    "task=own", "task._target_=tests.toys.regression.Regression", "method=own",
    "method._target_=tests.toys.weakest.WeakestFilter", "dataset=digits", "backbone=lenet5", "budget.flops=75%",
    "epochs=4", "dataset.limit_train=80", "dataset.batch_size=16", "optim.lr=0.01", "threads=1", "logger=csv",
    "export=false", "trainer.progress=false", "+method.filters=3",
)  # fmt: skip
STEP = "budgetnet.training.learner.Learner.training_step"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("toys") / "run"
    finished = run(*TOYS, f"run.dir={directory}")
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


@pytest.mark.soak
def test_killed_anywhere_it_is_continued_to_the_same_bits(whole: Path, tmp_path: Path) -> None:
    command = (*TOYS, f"run.dir={tmp_path}/run", "checkpoint.every_n_steps=1")
    for before in (At("budgetnet.methods.method.Training.resize", 2, after=True), At(STEP, 7)):
        assert run(*command, before=before).returncode == -9
    finished = run(*command)
    assert finished.returncode == 0, finished.stderr
    assert learned(tmp_path / "run") == learned(whole)


@pytest.mark.soak
def test_two_processes_killed_and_continued_end_in_the_bits_of_two_that_were_not(tmp_path: Path) -> None:
    ended = {}
    for name, trouble in (("whole", None), ("killed", "SIGKILL:1:1:3")):
        command = (*TOYS, *DDP, f"run.dir={tmp_path}/{name}/run", "checkpoint.every_n_steps=1",
                   "+callbacks.trouble._target_=ranks.Trouble")  # fmt: skip
        if trouble is not None:
            assert launched(tmp_path / name, *command, trouble=trouble).code == 1
        finished = launched(tmp_path / name, *command)
        assert finished.code == 0, finished.errors
        ended[name] = learned(tmp_path / name / "run")
    assert ended["whole"] == ended["killed"]


HEADS = (
    "task=own", "task._target_=tests.toys.heads.BothHeads", "backbone=own",
    "backbone._target_=tests.toys.heads.TwoHeads", "dataset=digits", "budget.flops=60%", "growth.seed_width=3",
    "growth.epochs_per_round=1", "growth.init=gradmax", "epochs=5", "finetune.epochs=2", "dataset.limit_train=80",
    "dataset.batch_size=16", "trainer.micro_batches=2", "threads=1", "logger=csv", "trainer.progress=false",
)  # fmt: skip


def test_a_network_with_two_heads_grows_in_micro_batches_and_is_exported_with_both(tmp_path: Path) -> None:
    finished = run(*HEADS, f"run.dir={tmp_path}/run")
    assert finished.returncode == 0, finished.stderr
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["rounds"] > 0 and summary["flops"] <= summary["budget"]["flops"]["limit"]
    session = onnxruntime.InferenceSession(tmp_path / "run" / "model.onnx")
    assert [output.name for output in session.get_outputs()] == ["logits_1", "logits_2"]


@pytest.mark.soak
def test_two_heads_on_two_processes_end_in_the_same_weights_on_both(tmp_path: Path) -> None:
    ended = launched(tmp_path, *HEADS, *DDP, "export=false", f"run.dir={tmp_path}/run", *WATCHED[:1])
    assert ended.code == 0, ended.errors
    assert all(first["weights"] == second["weights"] for first, second in of_each_rank(tmp_path, "end"))


@pytest.mark.parametrize(
    ("network", "text"),
    [
        ("tests.toys.heads.TwoHeads", "it gives a tuple for two images: expected a tensor of shape (2, 10)"),
        ("tests.nets.Five", "it gives (2, 5) for two images: expected a tensor of shape (2, 10) for classification"),
    ],
)
def test_an_output_that_the_task_cannot_take_is_one_line_before_training(
    network: str, text: str, tmp_path: Path
) -> None:
    network = f"backbone._target_={network}"
    assert text in refusal(tmp_path / "run", "backbone=own", network, "dataset=digits", "budget.flops=60%")
