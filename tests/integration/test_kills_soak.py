"""`make soak`: runs that are killed at random instants, wherever that is, and go on."""

from __future__ import annotations

import math
import os
import random
import shutil
import signal
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest
from commands import FORGETFUL, SHORT, run, start
from killed import At, kept, learned, rows
from test_exit_methods import METHODS as EXIT_METHODS
from test_exit_methods import SHORT as WITH_EXITS
from test_methods import METHODS, command
from zygote import Forked

from budgetnet.runs.checkpoints import load_checkpoint

RUNS = 100
KINDS = {
    "plain": SHORT,
    "checkpoints within epochs": (*SHORT, "checkpoint.every_n_steps=2"),
    "dropout": (*SHORT, *FORGETFUL),
    "dropout and checkpoints within epochs": (*SHORT, *FORGETFUL, "checkpoint.every_n_steps=2"),
}


@pytest.mark.soak
def test_runs_killed_at_random_instants_go_on_to_the_same_bits(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    begin = time.monotonic()
    processes = os.cpu_count() or 1
    assert run("--help").returncode == 0  # what follows is not to wait for the imports
    with ThreadPoolExecutor(processes) as pool:
        done = list(pool.map(lambda kind: uninterrupted(kind, tmp_path / kind), KINDS))
        expected = dict(zip(KINDS, done))
        cases = [(number, list(KINDS)[number % len(KINDS)]) for number in range(RUNS)]
        results = list(pool.map(lambda case: kill_and_continue(*case, *expected[case[1]], tmp_path), cases))
    differing = [f"run {case} differs in {different}" for case, (different, _) in zip(cases, results) if different]
    places = Counter(place for _, killed in results for place in killed)
    with capsys.disabled():
        print(
            f"\n{RUNS - len(differing)} of {RUNS} continued runs identical to the uninterrupted one, after "
            f"{places.total()} kills ({', '.join(f'{count} {place}' for place, count in places.most_common())}) in "
            f"{time.monotonic() - begin:.0f} s on {processes} cores"
        )
    assert not differing


def uninterrupted(kind: str, directory: Path) -> tuple[dict[str, str], float]:
    """What a run learns, and how many seconds of a processor it takes."""
    process = start(*KINDS[kind], f"run.dir={directory}", figures=True)
    seconds = wait(process)
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    return learned(directory), seconds


def wait(process: Forked, until: float = math.inf) -> float:
    """Wait for a process to end or to have used so many seconds of a processor; returns how many it has used.

    These do not pass faster or slower on a machine that does other things, too.
    """
    used, ticks = 0.0, os.sysconf("SC_CLK_TCK")
    while process.poll() is None and used < until:
        with suppress(OSError):
            times = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[11:13]
            used = sum(map(int, times)) / ticks
        time.sleep(0.002)
    return used


def kill_and_continue(
    number: int, kind: str, expected: dict[str, str], seconds: float, root: Path
) -> tuple[list[str], list[str]]:
    """What differs of a run that was killed once, or every third time up to three times; and where it was killed."""
    draw = random.Random(number)
    directory = root / f"run-{number}"
    command = [*KINDS[kind], f"run.dir={directory}"]
    killed: list[str] = []
    wanted = 3 if number % 3 == 0 else 1
    while len(killed) < wanted:
        process = start(*command, figures=True)
        wait(process, until=draw.uniform(0, seconds))
        time.sleep(draw.uniform(0, 0.01))  # a processor's seconds are counted in hundredths
        process.send_signal(signal.SIGKILL)
        process.communicate()
        if process.returncode == -signal.SIGKILL:
            killed.append(reached(directory))
        elif process.returncode != 0:
            break
        elif killed:
            wanted = len(killed)
        else:  # it was over before: draw again
            shutil.rmtree(directory)
    finished = run(*command)
    if finished.returncode != 0:
        return [finished.stderr.splitlines()[-1]], killed
    return [name for name, value in learned(directory).items() if value != expected[name]], killed


def reached(directory: Path) -> str:
    if (directory / "summary.json").exists():
        return "in the report"
    if not (directory / "last.ckpt").exists():
        return "before the first checkpoint"
    growing = load_checkpoint(directory / "last.ckpt")["budgetnet"]["phase"] == 0
    return "while growing" if growing else "in fine-tuning and evaluation"


# -- every method, in every phase --------------------------------------------------------------------------------------

STEP = "budgetnet.training.learner.Learner.training_step"
ELSEWHERE = {
    "before a round is applied": At("budgetnet.training.callbacks.growth.Growth._round"),
    "after a round is applied": At("budgetnet.training.callbacks.growth.Growth._round", after=True),
    "in a checkpoint": At("os.replace", file="last.ckpt.tmp"),
    "in the evaluation": At("budgetnet.command.experiment._test"),
    "after the summary": At("budgetnet.command.finishing.log_summary"),
}
"""Places beside the phases; of a place that a continued run does not reach any more nothing is killed."""


@pytest.mark.soak
def test_every_method_killed_in_every_phase_goes_on_to_the_same_bits(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    begin = time.monotonic()
    commands = {name: list(command(name, lambda _: tmp_path / "adenel")) for name in METHODS}
    commands |= {name: [*WITH_EXITS, *method] for name, method in EXIT_METHODS.items()}
    table = []
    for name, overrides in commands.items():
        whole = [*overrides, "export=false", f"run.dir={tmp_path}/{name}"]
        finished = run(*whole)
        assert finished.returncode == 0, f"{name}: {finished.stderr}"
        table.append((name, *killed_in_every_phase(name, overrides, tmp_path)))
        with capsys.disabled():
            print(f"\n| {name} | {', '.join(table[-1][1])} | {table[-1][2] or 'identical'} |", end="", flush=True)
    kills = sum(len(places) for _, places, _ in table)
    with capsys.disabled():
        print(f"\n{len(table)} methods, {kills} kills in {time.monotonic() - begin:.0f} s")
    assert [(name, differing) for name, _, differing in table if differing] == []


def killed_in_every_phase(name: str, overrides: list[str], root: Path) -> tuple[list[str], list[str]]:
    """Where a run of a method was killed, one place after the other, and what differs of it at the end."""
    epochs = rows(root / name / "metrics.csv")
    steps, phases = int(epochs[0]["step"]), [row["phase"] for row in epochs]
    places: list[str] = []
    again = [*overrides, "export=false", f"run.dir={root}/{name} again"]
    for phase in dict.fromkeys(phases):
        epoch = phases.index(phase)
        done = kept(root / f"{name} again")[0]
        ended = run(*again, before=At(STEP, (epoch - done) * steps + max(1, steps // 2)))
        places += [f"in {phase}"] if ended.returncode == -signal.SIGKILL else []
        if phase == phases[0]:
            places += killed_at(again, ("before a round is applied", "after a round is applied", "in a checkpoint"))
    places += killed_at(again, ("in the evaluation", "after the summary"))
    ended = run(*again)
    if ended.returncode != 0:
        return places, [ended.stderr.splitlines()[-1]]
    one, other = learned(root / name), learned(root / f"{name} again")
    return places, [part for part in one if one[part] != other[part]]


def killed_at(again: list[str], places: tuple[str, ...]) -> list[str]:
    return [place for place in places if run(*again, before=ELSEWHERE[place]).returncode == -signal.SIGKILL]
