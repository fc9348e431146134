"""Runs that are killed, preempted, or out of disk at an exact place, and go on."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from commands import FORGETFUL, SHORT, run, start
from covering import covered
from killed import At, InTurn, Replaced, SmallFiles, Steps, digest, kept, learned

from budgetnet.runs.adoption import finished
from budgetnet.runs.checkpoints import load_checkpoint
from budgetnet.runs.records import Records

STEP = "budgetnet.training.learner.Learner.training_step"
SAVE = "budgetnet.runs.durable_files.DurableFiles.save_checkpoint"
DRAW = "matplotlib.figure.Figure.savefig"
GROW = "budgetnet.methods.growth.adenel.AdeNeL.apply"
LAST, BEST = "last.ckpt.tmp", "best.ckpt.tmp"
SLURM = {
    "SLURM_JOB_ID": "12", "SLURM_JOB_NAME": "train", "SLURM_NTASKS": "1", "SLURM_PROCID": "0", "SLURM_LOCALID": "0",
    "SLURM_NODEID": "0", "SLURM_JOB_NODELIST": "localhost",
}  # fmt: skip

Place = tuple[str, Callable[[], object], tuple[int, int]]
"""Where a run is killed; the calls are those of its process. And the (epochs, steps of the next) that are kept then."""
CHAINS: list[list[Place]] = [
    [
        ("before config.yaml", At("os.replace", file="config.yaml.tmp"), (0, 0)),
        ("in the middle of a growing epoch", At(STEP, 13), (2, 0)),
        ("after a resize", At("budgetnet.methods.method.Training.resize", 1, after=True), (2, 0)),
        ("after a row of metrics.csv", At("budgetnet.runs.records.Records.metrics", 2, after=True), (3, 0)),
        ("with half a checkpoint written", SmallFiles(SAVE, 2, size=165_000, deadly=True), (4, 0)),
        ("in the middle of a fine-tuning epoch", At(STEP, 13), (6, 0)),
        ("after the last epoch", At("budgetnet.command.experiment._evaluate"), (8, 0)),
        ("before done.json", At("os.replace", file="done.json.tmp"), (8, 0)),
    ],
    [
        ("before the first checkpoint", At(STEP, 3), (0, 0)),
        ("before a resize", At(GROW, 3), (2, 0)),
        ("before a checkpoint is renamed", At("os.replace", 3, file=LAST), (4, 0)),
        ("before best.ckpt is renamed", At("os.replace", 3, file=BEST), (8, 0)),
        ("in the report", At(DRAW, 2), (8, 0)),
    ],
    [
        ("before the first line of metrics.csv", At("builtins.open", 1, after=True, file="metrics.csv"), (0, 0)),
        ("after a resize", At("budgetnet.methods.method.Training.resize", 3, after=True), (2, 0)),
        ("after a growth round", At(GROW, 2, after=True), (3, 0)),
        ("between last.ckpt and best.ckpt", At("os.replace", 3, after=True, file=LAST), (6, 0)),
        ("before done.json", At("os.replace", file="done.json.tmp"), (8, 0)),
    ],
]
"""Runs that are killed at one place after the other: between two there is at least one more checkpoint.

The first has a place of every kind; `make soak` has those between them.
"""
WITHIN_EPOCHS: list[Place] = [
    ("in the middle of the first epoch", At(STEP, 4), (0, 2)),
    ("in the middle of a growing epoch", At(STEP, 12), (2, 2)),
    ("before a resize", At(GROW, 2), (3, 3)),
    ("after a growth round", At(GROW, 2, after=True), (4, 4)),
    ("with half a checkpoint written", SmallFiles(SAVE, 3, size=10_000, deadly=True), (5, 1)),
    ("in the middle of a fine-tuning epoch", At(STEP, 8), (6, 2)),
]
"""Places for a run that is checkpointed after every second step, too."""


def assert_continues(command: list[str], uninterrupted: Path) -> None:
    """The command ends well, leaves no temporary file, and all is as in the run that was never interrupted."""
    continued = run(*command)
    assert continued.returncode == 0, continued.stderr
    assert learned(directory_of(command)) == learned(uninterrupted)
    assert finished(directory_of(command))
    assert not list(directory_of(command).glob("*.tmp"))


def the_line(process: subprocess.CompletedProcess[str], code: int) -> str:
    """The one line on standard error beside those of the epochs and what Ctrl-C is answered at once."""
    assert process.returncode == code, process.stderr
    others = ("epoch ", "interrupted: a checkpoint is written after this step; Ctrl-C again ends at once")
    (line,) = [line for line in process.stderr.splitlines() if line and not line.startswith(others)]
    return line


@pytest.mark.parametrize(
    "chain", covered(CHAINS, CHAINS[:1]), ids=lambda chain: ", ".join(name for name, _, _ in chain)
)
def test_a_run_killed_at_any_places_goes_on_to_the_same_bits(
    chain: list[Place], short_run: Path, tmp_path: Path
) -> None:
    command = [*SHORT, f"run.dir={tmp_path}/run"]
    for place in chain:
        assert_killed(command, place)
    assert_continues(command, short_run)


def assert_killed(command: list[str], place: Place, steps: Path | None = None) -> None:
    """The command is killed there, with a checkpoint of the right step and nothing done. steps: see `Steps`."""
    name, killer, expected = place
    counted = [] if steps is None else [Steps(steps)]
    killed = run(*command, before=InTurn((*counted, killer)), figures=True)
    assert killed.returncode in (-signal.SIGKILL, -signal.SIGXFSZ), f"{name}: {killed.stderr}"
    assert not finished(directory_of(command))
    assert kept(directory_of(command)) == expected, name


def directory_of(command: list[str]) -> Path:
    return Path(command[-1].removeprefix("run.dir="))


def test_a_run_that_is_checkpointed_within_epochs_goes_on_within_the_epoch_to_the_same_bits(
    forgetful_run: Path, tmp_path: Path
) -> None:
    command = [*SHORT, *FORGETFUL, "checkpoint.every_n_steps=2", f"run.dir={tmp_path}/run"]
    begin = 0
    for number, place in enumerate(WITHIN_EPOCHS):
        assert_killed(command, place, tmp_path / f"steps{number}")
        done = (tmp_path / f"steps{number}").read_text().splitlines()
        assert done == [f"{epoch} {batch}" for epoch, batch in steps_from(begin, len(done))], place[0]
        epochs, batches = place[2]
        begin = 5 * epochs + batches
    assert run(*command, before=Steps(tmp_path / "steps")).returncode == 0
    expected = [f"{epoch} {batch}" for epoch, batch in steps_from(begin, 45 - begin)]
    assert (tmp_path / "steps").read_text().splitlines() == expected
    assert learned(tmp_path / "run") == learned(forgetful_run)


def steps_from(begin: int, count: int) -> list[tuple[int, int]]:
    """(epoch, batch) of so many steps from one on, five an epoch."""
    return [divmod(step, 5) for step in range(begin, begin + count)]


# -- signals --------------------------------------------------------------------------------------------------------


def test_a_run_that_is_told_to_end_saves_where_it_stands_and_loses_no_step(forgetful_run: Path, tmp_path: Path) -> None:
    command, done = [*SHORT, *FORGETFUL, f"run.dir={tmp_path}/run"], 0
    for number, step, code in ((signal.SIGUSR1, 3, 143), (signal.SIGTERM, 15, 143), (signal.SIGINT, 33, 130)):
        line = the_line(run(*command, before=At(STEP, step - done, number=number)), code)
        assert line.endswith(f"continue with the same command: python -m src.run {' '.join(command)}")
        assert kept(tmp_path / "run") == divmod(step, 5)
        done = step
    assert run(*command, before=Steps(tmp_path / "steps")).returncode == 0
    assert len((tmp_path / "steps").read_text().splitlines()) == 45 - done
    assert learned(tmp_path / "run") == learned(forgetful_run)


def test_a_run_that_is_told_to_end_while_it_is_built_says_so_and_writes_nothing(tmp_path: Path) -> None:
    place = At("budgetnet.command.build.make_method", number=signal.SIGUSR1)
    line = the_line(run(*SHORT, f"run.dir={tmp_path}/run", before=place), 143)
    assert line.startswith("stopped by SIGUSR1: start again with: python -m src.run")
    assert not (tmp_path / "run").exists()


@pytest.mark.soak
def test_a_run_may_be_told_to_end_at_any_place_also_by_ctrl_c_while_it_is_evaluated(
    short_run: Path, tmp_path: Path
) -> None:
    command = [*SHORT, f"run.dir={tmp_path}/run"]
    for place in (GROW, SAVE):
        assert "continue with the same command" in the_line(run(*command, before=told(place)), 143)
    evaluated = At("budgetnet.training.learner.Learner.on_test_epoch_end", number=signal.SIGINT)
    assert the_line(run(*command, before=evaluated), 130).startswith("interrupted: ")
    assert "continue with the same command" in the_line(run(*command, before=told(DRAW), figures=True), 143)
    assert_continues(command, short_run)


def told(place: str) -> At:
    """SIGTERM at the second call."""
    return At(place, 2, number=signal.SIGTERM)


@pytest.mark.parametrize(
    ("variables", "state", "expected"),
    [
        ({}, "RUNNING", "requeue 12"),
        ({"SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "3"}, "RUNNING", "requeue 7_3"),
        ({}, "CANCELLED", "show job 12"),
    ],
)
def test_slurm_is_asked_to_run_a_preempted_job_again_but_not_a_cancelled_one(
    variables: dict[str, str], state: str, expected: str, tmp_path: Path
) -> None:
    scontrol = tmp_path / "bin" / "scontrol"
    scontrol.parent.mkdir()
    scontrol.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\necho JobState={state}\n')
    scontrol.chmod(0o755)
    variables = {**variables, **SLURM, "PATH": f"{scontrol.parent}:{os.environ['PATH']}"}
    ended = run(*SHORT, f"run.dir={tmp_path}/run", before=At(STEP, 3, number=signal.SIGUSR1), variables=variables)
    line = the_line(ended, 143)
    assert (tmp_path / "asked").read_text().splitlines()[-1] == expected
    assert ("requeued" in line) == expected.startswith("requeue")
    assert load_checkpoint(tmp_path / "run" / "last.ckpt")["budgetnet"]["batches"] == 3


# -- files ----------------------------------------------------------------------------------------------------------


def test_a_full_disk_ends_the_run_in_one_line_and_the_last_checkpoint_is_continued(
    short_run: Path, tmp_path: Path
) -> None:
    command = [*SHORT, "trainer.progress=false", f"run.dir={tmp_path}/run"]
    for place, call, size, epochs in (
        (SAVE, 5, 100_000, 4),
        ("budgetnet.runs.records.Records.metrics", 2, 1000, 5),
        ("budgetnet.command.experiment.finish", 1, 1000, 8),
    ):
        line = the_line(run(*command, before=SmallFiles(place, call, size), figures=True), 1)
        assert f"{tmp_path}/run" in line and "File too large" in line
        assert kept(tmp_path / "run") == (epochs, 0)
    assert_continues(command, short_run)


def test_a_table_that_was_cut_off_anywhere_is_begun_again(tmp_path: Path) -> None:
    records, table = Records(tmp_path), tmp_path / "saturation.csv"
    records.row("saturation", {"epoch": 1, "round": 0, "conv1": 0.5})
    whole = table.read_text()
    for length in range(len(whole)):
        table.write_text(whole[:length])
        records.cut(0)
        records.row("saturation", {"epoch": 1, "round": 0, "conv1": 0.5})
        assert table.read_text() == whole


def test_a_directory_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for directory in (tmp_path / "file" / "run", Path("/proc/run")):  # a mode would not stop the superuser
        line = the_line(run(*SHORT, f"run.dir={directory}"), 2)
        assert f"run.dir={directory}: cannot be written" in line


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def put_another(path: Path) -> None:
    torch.save({"state_dict": {"weight": torch.ones(3)}}, path)


def put_a_list(path: Path) -> None:
    torch.save([1, 2, 3], path)


def make_older(path: Path) -> None:
    state = load_checkpoint(path)
    state["budgetnet"]["format"] = 0
    torch.save(state, path)


def drop_the_format(path: Path) -> None:
    state = load_checkpoint(path)
    del state["budgetnet"]["format"]
    torch.save(state, path)


@pytest.mark.parametrize("change", [truncate, empty, put_another, put_a_list, make_older, drop_the_format])
def test_a_damaged_foreign_or_older_checkpoint_is_named_and_left_alone(
    change: Callable[[Path], None], short_run: Path, tmp_path: Path
) -> None:
    shutil.copytree(short_run, tmp_path / "run")
    (tmp_path / "run" / "done.json").unlink()
    checkpoint = tmp_path / "run" / "last.ckpt"
    change(checkpoint)
    before = {path: path.read_bytes() for path in sorted((tmp_path / "run").rglob("*")) if path.is_file()}
    line = the_line(run(*SHORT, f"run.dir={tmp_path}/run"), 1)
    assert str(checkpoint) in line
    assert ("format 0" in line) == (change is make_older)
    assert {path: path.read_bytes() for path in before} == before


@pytest.mark.parametrize(("name", "contents"), [("config.yaml", "a: [1"), ("summary.json", ""), ("config.yaml", None)])
def test_a_finished_run_whose_text_is_damaged_is_named(
    name: str, contents: str | None, short_run: Path, tmp_path: Path
) -> None:
    shutil.copytree(short_run, tmp_path / "run")
    path = tmp_path / "run" / name
    path.unlink() if contents is None else path.write_text(contents)
    assert f"{path} is damaged" in the_line(run(*SHORT, f"run.dir={tmp_path}/run"), 1)


def test_what_a_power_cut_left_at_the_end_of_a_table_is_cut_off(short_run: Path, tmp_path: Path) -> None:
    shutil.copytree(short_run, tmp_path / "run")
    (tmp_path / "run" / "done.json").unlink()
    for name in ("metrics.csv", "saturation.csv", "growth.jsonl"):
        with open(tmp_path / "run" / name, "ab") as file:
            file.write(bytes(40) + b"\n")
    assert_continues([*SHORT, f"run.dir={tmp_path}/run"], short_run)


def test_a_second_process_in_a_run_directory_is_refused(short_run: Path, tmp_path: Path) -> None:
    command = [*SHORT, f"run.dir={tmp_path}/run"]
    first = start(*command, before=At(STEP, 8, number=signal.SIGSTOP))
    wait_until(lambda: state_of(first.pid) == "T")
    second = run(*command, before=Replaced("budgetnet.runs.adoption._PATIENCE", 0.2))
    assert f"{tmp_path}/run is in use" in the_line(second, 2)
    first.send_signal(signal.SIGCONT)
    first.communicate()
    assert first.returncode == 0
    assert learned(tmp_path / "run") == learned(short_run)


def state_of(pid: int) -> str:
    """One letter of the system for what a process does: T is stopped."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def wait_until(fact: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 600
    while not fact():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_compiled_run_that_is_continued_in_the_middle_of_its_last_epoch_is_compiled_again(
    short_run: Path, tmp_path: Path
) -> None:
    command = [*SHORT, "trainer.compile=eager", "checkpoint.every_n_steps=2", f"run.dir={tmp_path}/run"]
    assert run(*command, before=At(STEP, 39)).returncode == -signal.SIGKILL
    kept = load_checkpoint(tmp_path / "run" / "last.ckpt")["budgetnet"]
    assert kept["epochs"] == 7 and kept["batches"] == 3 and kept["ledger"]["compile_seconds"] > 0
    continued = run(*command)
    assert continued.returncode == 0, continued.stderr
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["compile_seconds"] > round(kept["ledger"]["compile_seconds"], 3)
    assert weights(tmp_path / "run") == weights(short_run)


def test_a_lost_best_checkpoint_is_said_in_the_summary_too_and_no_other_is_taken(
    short_run: Path, tmp_path: Path
) -> None:
    shutil.copytree(short_run, tmp_path / "run")
    command = [*SHORT, f"run.dir={tmp_path}/run"]
    (tmp_path / "run" / "done.json").unlink()
    chosen = load_checkpoint(short_run / "last.ckpt")
    told = chosen["callbacks"]["Checkpoint"]
    told["best_epoch"], told["best_weights"] = 6, "of weights that are gone"
    torch.save(chosen, tmp_path / "run" / "last.ckpt")
    line = the_line(run(*command), 1)
    assert "best.ckpt is of another run: it should hold the weights of epoch 6" in line
    (tmp_path / "run" / "best.ckpt").unlink()  # as it advises
    ended = run(*command)
    assert ended.returncode == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    (warning,) = summary["warnings"]
    assert warning.startswith("best.ckpt with the weights of epoch 6") and f"warning: {warning}" in ended.stderr
    assert warning in (tmp_path / "run" / "report.md").read_text()
    assert summary["best_epoch"] == summary["epochs"] == 8 and summary["test_top1"] == summary["test_top1_last"]


def weights(directory: Path) -> str:
    return digest(load_checkpoint(directory / "last.ckpt")["state_dict"])
