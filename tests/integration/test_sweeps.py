"""Sweeps as a user starts them: whatever launcher runs the jobs, one that fails does not stop the others."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import uuid
from pathlib import Path
from typing import Any

import pytest
from commands import SHORT, run, run_command, start
from killed import rows
from zygote import MARK, marked

from budgetnet.command.sweeps import SWEEP, SweepStart
from budgetnet.runs.locking import exclusive
from src.run import main

JOB = [
    *(o for o in SHORT if not o.startswith(("epochs", "finetune"))), "epochs=4", "finetune.epochs=1",
    "growth.max_rounds=1", "trainer.progress=false",
]  # fmt: skip
FAILING = "finetune.lr=0.02,1e20"
"""Of two jobs the first succeeds and the second fails in its last phase."""


def finished(root: Path) -> dict[Path, float]:
    """The files of the finished runs with the time each was last changed."""
    files = [file for done in root.rglob("done.json") for file in done.parent.rglob("*")]
    return {file: file.stat().st_mtime_ns for file in files}


def logs(root: Path) -> dict[str, str]:
    return {path.stem: path.read_text() for path in root.glob("runs/.sweep/*/*.log")}


def test_a_sweep_goes_on_after_a_failed_job_and_started_again_does_only_what_is_left(tmp_path: Path) -> None:
    sweep = ["-m", *JOB, f"run.root={tmp_path}/runs", "seed=0", FAILING, "launcher.n_jobs=2"]
    first = run(*sweep, others=2)
    assert first.returncode == 1
    assert "finetune.lr=0.02 done: validation top-1" in first.stdout
    assert "finetune.lr=1e+20 failed: the loss is not finite" in first.stdout
    said = first.stderr.splitlines()
    assert said[0].startswith("error: 1 of the sweep's jobs failed") and len(said) == 3
    log = Path(said[2].removeprefix("    log: "))
    assert "error: the loss is not finite" in log.read_text()
    files = finished(tmp_path)
    assert len([file for file in files if file.name == "done.json"]) == 1

    again = run(*sweep, others=1)
    assert again.returncode == 1
    assert "finetune.lr=0.02 skipped, done: validation top-1" in again.stdout
    assert "finetune.lr=1e+20 continues" in again.stdout
    assert finished(tmp_path) == files

    reported = run(f"{tmp_path}/runs", "--out", f"{tmp_path}/report", module="src.report")
    assert reported.returncode == 0, reported.stderr
    done = [row for row in rows(tmp_path / "report" / "runs.csv") if row["finished"] == "True"]
    summaries = [json.loads(path.read_text()) for path in tmp_path.rglob("summary.json")]
    assert [float(row["test_top1"]) for row in done] == [summary["test_top1"] for summary in summaries]
    assert (tmp_path / "report" / "accuracy_against_cost.png").exists()


def test_a_stopped_sweep_leaves_no_process_and_is_continued(tmp_path: Path) -> None:
    sweep = ["-m", *JOB, f"run.root={tmp_path}/runs", "seed=0", "launcher.n_jobs=2", "finetune.epochs=20", "epochs=30"]
    mark = uuid.uuid4().hex[:15]
    process = start(*sweep, others=1, variables={MARK: mark})
    deadline = time.monotonic() + 600
    while not list(tmp_path.rglob("last.ckpt")) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(marked(mark)) == 2
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate()
    assert process.returncode == 143
    assert errors.startswith("stopped by SIGTERM: jobs done: 0, not done: 1; continue with the same command: python")
    assert not marked(mark)
    assert "stopped by SIGTERM" in logs(tmp_path)["default"]
    continued = run(*sweep, others=1)
    assert continued.returncode == 0, continued.stderr
    assert "#1 default continues" in continued.stdout
    assert continued.stdout.endswith(f"\ncompare  python -m src.report {tmp_path}/runs/default --out report\n")


def test_a_sweep_that_is_running_is_not_started_again(tmp_path: Path) -> None:
    sweep = ["-m", *JOB, f"run.root={tmp_path}/runs", "seed=0", "budget.flops=1k"]
    assert run(*sweep, "hydra/launcher=basic").returncode == 1
    (folder,) = (tmp_path / "runs" / ".sweep").iterdir()
    with exclusive(folder / ".lock"):
        second = run(*sweep)
    assert second.returncode == 2 and "this sweep is running already" in second.stderr


_POOLS = [pytest.param(name, marks=pytest.mark.soak) for name in ("joblib", "submitit_local")]


@pytest.mark.parametrize("launcher", ["basic", *_POOLS])
def test_other_launchers_go_on_after_a_failed_job_too(launcher: str, tmp_path: Path) -> None:
    chosen = [f"hydra/launcher={launcher}", *(["hydra.launcher.n_jobs=2"] if launcher == "joblib" else [])]
    sweep = ["-m", *JOB, f"run.root={tmp_path}/runs", "seed=0", FAILING, *chosen]
    swept = (run if launcher == "basic" else run_command)(*sweep)
    assert swept.returncode == 1
    said = swept.stderr.splitlines()
    assert said[-2].startswith("  finetune.lr=1e+20: the loss is not finite at step")
    assert "Traceback" not in swept.stderr and "Error executing job" not in swept.stderr
    assert "RunError: the loss is not finite" in Path(said[-1].removeprefix("    log: ")).read_text()
    assert len(list(tmp_path.rglob("done.json"))) == 1


def test_several_devices_in_one_process_are_refused_with_the_command_to_use(tmp_path: Path) -> None:
    sweep = ["-m", "budget.flops=50%", f"run.root={tmp_path}", "trainer.devices=2", "seed=0,1"]
    for launcher in (["hydra/launcher=basic"], ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]):
        refused = run(*sweep, *launcher)
        assert refused.returncode == 2
        command = " ".join([*sweep, "hydra/launcher=local"])
        assert refused.stderr.startswith("error: -m with trainer.devices=2")
        assert refused.stderr.rstrip().endswith(f"use: python -m src.run {command}")
    torchrun = run("-m", "budget.flops=50%", variables={"WORLD_SIZE": "2", "RANK": "1"})
    assert torchrun.returncode == 2 and "-m under torchrun starts the whole sweep" in torchrun.stderr
    assert not list(tmp_path.iterdir())


def test_a_search_maximises_validation_accuracy_and_repeats_its_trials(tmp_path: Path) -> None:
    overrides = [o for o in JOB if not o.startswith("optim.lr")]
    search = ["-m", *overrides, f"run.root={tmp_path}/runs", "hydra/launcher=basic", "optim.lr=interval(0.001,0.02)"]
    search += ["hydra/sweeper=search", "hydra.sweeper.n_trials=2"]
    assert run(*search).returncode == 0
    (found,) = tmp_path.rglob("optimization_results.yaml")
    summaries = [json.loads(path.read_text()) for path in tmp_path.rglob("summary.json")]
    assert len(summaries) == 2
    assert f"best_value: {max(summary['val_top1'] for summary in summaries)}" in found.read_text()
    files = finished(tmp_path)
    assert run(*search).returncode == 0
    assert finished(tmp_path) == files
    downwards = run("-m", "hydra/sweeper=optuna", "optim.lr=interval(0.001,0.02)", "budget.flops=50%")
    assert downwards.returncode == 2 and "add hydra.sweeper.direction=maximize" in downwards.stderr


def test_every_job_is_one_wandb_run_of_the_sweeps_group_closed_also_after_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import wandb

    started: list[dict[str, Any]] = []
    ended: list[tuple[str, int]] = []
    start_run, end_run = wandb.init, wandb.finish

    def init(**options: Any) -> Any:
        assert wandb.run is None
        started.append(options)
        return start_run(**options)

    def finish(exit_code: int) -> None:
        ended.append((wandb.run.id, exit_code))
        end_run(exit_code)

    monkeypatch.setattr(wandb, "init", init)
    monkeypatch.setattr(wandb, "finish", finish)
    monkeypatch.setattr("budgetnet.training.loggers._UPLOAD", 60.0)
    monkeypatch.setattr(SweepStart, "sweep", None)
    monkeypatch.setattr("budgetnet.reports.report._FIGURES", {})
    monkeypatch.setenv(SWEEP, "")
    monkeypatch.setenv("WANDB_MODE", "offline")
    overrides = [*(o for o in JOB if o != "logger=csv"), f"run.root={tmp_path}/runs", "finetune.lr=1e20,0.02"]
    monkeypatch.setattr(sys, "argv", ["src/run.py", "-m", *overrides, "hydra/launcher=basic"])
    assert main() == 1
    group = Path(os.environ[SWEEP]).name
    assert group.startswith("default,") and {options["group"] for options in started} == {group}
    assert ended == [(options["id"], failed) for options, failed in zip(started, (1, 0), strict=True)]
    assert wandb.run is None and started[0]["id"] != started[1]["id"]
    assert sorted(path.stem for path in tmp_path.rglob("*.wandb")) == sorted(f"run-{o['id']}" for o in started)
