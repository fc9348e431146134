"""The jobs of a sweep, with a stand-in for the command that they are: it starts at once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from budgetnet.command import launcher
from budgetnet.command.gpus import places
from budgetnet.command.launcher import Job, gpus_needed, run_jobs, visible_gpus
from budgetnet.command.sweeps import SWEEP, Sweep
from budgetnet.errors import Interrupted, Preempted, UsageError
from budgetnet.processes.launch import LEADER, end_with_parent
from budgetnet.runs.locking import started
from budgetnet.runs.origin import write_origin

COMMAND = """
import json, os, pathlib, signal, subprocess, sys, time
directory, what = pathlib.Path(sys.argv[1]), sys.argv[2]
directory.mkdir(parents=True, exist_ok=True)
started = time.time()
if what == "fail":
    sys.exit("something before\\nerror: the cause\\nsomething after")
if what == "die":
    os.kill(os.getpid(), signal.SIGKILL)
if what == "stay":
    stubborn = "import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(60)"
    child = subprocess.Popen([sys.executable, "-c", stubborn])
    (directory / "pids").write_text(f"{os.getpid()} {child.pid}")
    time.sleep(60)
time.sleep(0.2)
seen = os.environ.get("CUDA_VISIBLE_DEVICES", "")
(directory / "seen").write_text(json.dumps([started, time.time(), seen, os.environ.get("LOCAL_RANK")]))
(directory / "config.yaml").write_text("{}")
(directory / "metrics.csv").write_text("epoch\\n")
(directory / "summary.json").write_text(json.dumps({"format": 1, "val_top1": 70.0, "test_top1": 60.0, "seconds": 1}))
(directory / "done.json").write_text("{}")
"""


@pytest.fixture(autouse=True)
def sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Sweep:
    """A sweep in a working directory whose `python -m src.run` is COMMAND."""
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "run.py").write_text(COMMAND)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(SWEEP, str(tmp_path / "sweep"))
    monkeypatch.setattr(launcher, "GRACE", 0.3)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    sweep = Sweep.current()
    sweep.begin([])
    return sweep


def make_job(number: int, what: str = "", gpus: int = 0, directory: str | None = None) -> Job:
    path = Path(directory or f"run{number}")
    return Job(number, f"job{number}", {}, path, [str(path), what], gpus)


def seen(number: int) -> Any:
    return json.loads(Path(f"run{number}", "seen").read_text())


def test_every_job_has_gpus_of_its_own_and_a_few_run_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "0")
    gpus = ["0", "3", "GPU-1f", "MIG-2", "7"]
    assert run_jobs([make_job(number, gpus=2) for number in range(4)], gpus) == [70.0] * 4
    jobs = [seen(number) for number in range(4)]
    assert all(len(set(ids.split(",")) & set(gpus)) == 2 and rank is None for _, _, ids, rank in jobs)
    together = [
        sum(start <= moment < end for start, end, _, _ in jobs) for moment in (start for start, _, _, _ in jobs)
    ]
    assert max(together) == 2
    for start, end, ids, _ in jobs:
        others = [other for other in jobs if other[2] != ids or other[0] != start]
        assert all(not set(ids.split(",")) & set(o[2].split(",")) for o in others if o[0] < end and start < o[1])


@pytest.mark.parametrize("option", ["widths_from", "schedule_from"])
def test_a_run_waits_for_the_one_it_takes_its_widths_from_and_lets_others_pass(option: str) -> None:
    first = replace(make_job(0), config={"method": {option: "run2"}})
    of_itself = replace(make_job(1), config={"method": {"widths_from": "run1/summary.json"}})
    assert run_jobs([first, of_itself, make_job(2)], [], 3) == [70.0] * 3
    assert seen(0)[0] >= seen(2)[1] > seen(1)[0]


def test_a_run_whose_source_failed_is_started_and_says_so_itself() -> None:
    assert run_jobs([replace(make_job(0), config={"method": {"widths_from": "run1"}}), make_job(1, "fail")], [], 2) == [
        70.0,
        None,
    ]


def test_without_a_gpu_one_job_runs_at_a_time_unless_more_are_asked_for() -> None:
    run_jobs([make_job(0), make_job(1)], [])
    assert seen(0)[1] < seen(1)[0]
    run_jobs([make_job(2), make_job(3)], [], n_jobs=2)
    assert seen(3)[0] < seen(2)[1]


def test_two_jobs_never_work_in_one_directory_and_a_finished_one_is_not_started(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("budgetnet.command.configuration.checked", lambda config: config)
    monkeypatch.setattr("budgetnet.runs.adoption.check_same", lambda config, directory: None)
    assert run_jobs([make_job(0, directory="x"), make_job(1, directory="x")], [], n_jobs=2) == [70.0, 70.0]
    lines = capsys.readouterr().out.splitlines()[1:]
    assert [line.split(": ")[0] for line in lines] == ["#1 job0 starts", "#1 job0 done", "#2 job1 skipped, done"]


def test_that_code_of_finished_runs_has_changed_is_said_once(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("budgetnet.command.configuration.checked", lambda config: config)
    monkeypatch.setattr("budgetnet.runs.adoption.check_same", lambda config, directory: None)
    run_jobs([make_job(0), make_job(1)], [])
    code = Path("net.py")
    code.write_text("one")
    for number in (0, 1):
        write_origin(Path(f"run{number}"), {}, [code])
    run_jobs([make_job(0), make_job(1)], [])
    assert "note" not in capsys.readouterr().out
    code.write_text("two")
    run_jobs([make_job(0), make_job(1)], [])
    assert [line for line in capsys.readouterr().out.splitlines() if line.startswith("note: ")] == [
        "note: net.py changed since run0 began, and others of this sweep may be too: choose another run.experiment"
    ]


def test_a_finished_run_with_a_damaged_summary_has_no_value_and_the_others_run(
    sweep: Sweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("budgetnet.command.configuration.checked", lambda config: config)
    monkeypatch.setattr("budgetnet.runs.adoption.check_same", lambda config, directory: None)
    run_jobs([make_job(0)], [])
    Path("run0", "summary.json").write_text("{")
    assert run_jobs([make_job(0), make_job(1)], []) == [None, 70.0]
    assert sweep.failures["job0"].startswith("run0/summary.json is damaged")


def test_a_job_that_fails_or_dies_has_no_value_and_the_others_run(
    sweep: Sweep, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_jobs([make_job(0, "fail"), make_job(1, "die"), make_job(2)], []) == [None, None, 70.0]
    assert sweep.failures == {"job0": "the cause", "job1": "killed by SIGKILL"}
    assert sweep.end() == 1
    said = capsys.readouterr().err
    assert all(text in said for text in ("2 of the sweep's jobs failed", "job0: the cause", str(sweep.log("job0"))))
    assert "something before" in sweep.log("job0").read_text()
    sweep.begin([])
    assert sweep.end() == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1])
def test_a_signal_to_the_sweep_leaves_no_process(number: signal.Signals) -> None:
    def stop() -> None:
        while not all(Path(f"run{job}", "pids").exists() for job in range(2)):
            time.sleep(0.02)
        time.sleep(0.1)
        os.kill(os.getpid(), number)

    handlers = signal.getsignal(number)
    threading.Thread(target=stop).start()
    error = Interrupted if number == signal.SIGINT else Preempted
    with pytest.raises(error, match="jobs done: 0, not done: 3; continue with the same command"):
        run_jobs([make_job(job, "stay") for job in range(3)], [], n_jobs=2)
    assert signal.getsignal(number) == handlers
    pids = [int(pid) for job in range(2) for pid in Path(f"run{job}", "pids").read_text().split()]
    deadline = time.monotonic() + 300
    while any(alive(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert len(pids) == 4 and not any(alive(pid) for pid in pids)
    assert not Path("run2").exists()


def test_jobs_that_a_killed_leader_has_left_are_waited_for_before_any_begins(
    sweep: Sweep, capsys: pytest.CaptureFixture[str]
) -> None:
    orphan = subprocess.Popen(["sleep", "60"], start_new_session=True)
    (sweep.folder / "job0.pid").write_text(f"{orphan.pid} {started(orphan.pid)}\n")
    (sweep.folder / "job1.pid").write_text(f"{orphan.pid} of an earlier process with this number\n")
    assert run_jobs([make_job(0)], []) == [70.0]
    assert orphan.wait() == -signal.SIGKILL  # it did not end by itself within GRACE
    assert "waits for 1 jobs that an earlier process of this sweep has left running" in capsys.readouterr().out
    assert not list(sweep.folder.glob("*.pid"))


def test_a_job_whose_leader_is_killed_ends_with_time_for_a_checkpoint() -> None:
    reading, writing = os.pipe()
    leader = os.fork()
    if leader == 0:
        parent = os.getpid()
        if os.fork() == 0:
            os.setsid()
            signal.signal(signal.SIGTERM, lambda *_: (os.write(writing, b"checkpoint"), os._exit(143)))
            os.environ[LEADER] = str(parent)
            end_with_parent()
            os.write(writing, b"begun ")
            while True:
                signal.pause()
        signal.pause()
    assert os.read(reading, 6) == b"begun "
    os.kill(leader, signal.SIGKILL)
    os.waitpid(leader, 0)
    assert os.read(reading, 10) == b"checkpoint"


def test_a_gpu_that_a_job_of_another_sweep_uses_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    used = places(["0", "1", "0"])[2].occupy()
    assert used is not None and places(["0", "0"])[1].occupy() is None
    assert run_jobs([make_job(0, gpus=1)], ["0", "0"]) == [70.0]  # the first place is free
    threading.Timer(0.2, lambda: os.close(used)).start()
    assert run_jobs([make_job(1, gpus=2)], ["0", "0"]) == [70.0]
    assert capsys.readouterr().out.count("waits for GPUs that jobs of another sweep use") == 1
    assert seen(1)[2] == "0,0"


def alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and waits for its parent to ask does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def test_the_gpus_are_those_given_or_visible(monkeypatch: pytest.MonkeyPatch) -> None:
    for visible, ids in {"2, GPU-1f,MIG-3": ["2", "GPU-1f", "MIG-3"], "": [], "-1": [], "0,-1,2": ["0"]}.items():
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        assert visible_gpus() == ids
        assert visible_gpus([0, "a", 0]) == ["0", "a", "0"]
    for wrong in (3, "0,1", [None]):
        with pytest.raises(UsageError, match=r"launcher.gpus=.*expected a list of ids"):
            visible_gpus(wrong)


def test_a_job_takes_as_many_gpus_as_it_has_devices() -> None:
    def needed(devices: Any, there: int, accelerator: str = "auto", nodes: int = 1) -> int:
        return gpus_needed({"devices": devices, "num_nodes": nodes, "accelerator": accelerator}, there)

    assert [needed(2, 4), needed("2", 4), needed("auto", 4), needed(-1, 4), needed(2, 0)] == [2, 2, 4, 4, 0]
    assert needed(2, 4, "cpu") == 0
    with pytest.raises(UsageError, match=r"trainer.devices=8: the sweep has 4 GPUs"):
        needed(8, 4)
    with pytest.raises(UsageError, match="states how many devices it takes"):
        needed([2, 3], 4)
    with pytest.raises(UsageError, match=r"hydra/launcher=submitit_slurm hydra.launcher.nodes=2"):
        needed(1, 4, nodes=2)
    with pytest.raises(UsageError, match=r"launcher.n_jobs=0: expected 1 or more"):
        run_jobs([], [], 0)
