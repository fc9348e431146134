"""experiments/QUEUE.md: its commands and cells are right, and it is run as it says."""

from __future__ import annotations

import os
import re
import shlex
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from threading import Event

import pytest
from commands import run
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from killed import Replaced

from budgetnet.command.compose import composed
from budgetnet.command.configuration import checked
from budgetnet.errors import Interrupted
from experiments.paper import queue as run_queue
from experiments.paper.queue import Entry, most_flops, read, write
from experiments.paper.tables import find_table

TINY = (
    "dataset=digits backbone=lenet5 epochs=3 finetune.epochs=1 growth.epochs_per_round=1 growth.seed_shape=equal "
    "dataset.limit_train=128 logger=csv export=false trainer.progress=false run.root=ROOT run.experiment=q"
)
SMALL_QUEUE = f"""# A queue

| # | What it shows | Cost | Done | Command |
|---|---|---|---|---|
| 1 | the same widths | | 0 | `python -m src.run method=train method.widths_from=ROOT/q/grown run.name=base {TINY}` |
| 2 | growth | | 0 | `python -m src.run -m budget.flops=50% seed=0 run.name=grown {TINY}` |
"""


def of(command: str) -> Entry:
    return Entry.parse(f"| 1 | it | | 0 | `python -m src.run {command}` |")


def test_entries_are_numbered_and_their_runs_counted_and_the_first_can_be_composed() -> None:
    queue = read()
    assert [entry.number for entry in queue] == list(range(1, len(queue) + 1))
    assert [entry.done.split("/")[1] for entry in queue] == [str(len(entry.jobs)) for entry in queue]
    checked(composed(queue[0].jobs[0]))


@pytest.mark.parametrize(("paper", "numbers", "runs"), [("bsn", range(5, 10), 57), ("l2w", range(1, 5), 13)])
def test_every_row_of_a_paper_is_queued_once_by_its_name(paper: str, numbers: range, runs: int) -> None:
    queued: list[tuple[str, set[str]]] = []
    for job in (job for entry in read() for job in entry.jobs if {f"experiment={paper}", "seed=0"} <= set(job)):
        if any(word.startswith("run.experiment=") for word in job):
            continue  # of no table
        values = dict(override.split("=", 1) for override in job)
        name = values["run.name"].replace("\\", "").replace("${backbone.name}", values["backbone"])
        for option, value in values.items():
            name = name.replace(f"${{{option}}}", value)
        queued.append((name, {word for word in job if not word.startswith(("experiment=", "seed=", "run.name="))}))
    rows = [row for number in numbers for row in find_table(f"{paper}_table{number}").rows.values()]
    assert dict(queued) == {f"{row.row}-0": set(shlex.split(row.overrides)) for row in rows}
    assert len(queued) == runs


def plain_number(override: str) -> str:
    """An override whose value, if it is a number, is written as Hydra's sweeper does: 1e-4 as 0.0001."""
    key, _, value = override.partition("=")
    return f"{key}={float(value)}" if re.fullmatch(r"[\d.]+(e-?\d+)?", value) else override


def test_every_row_of_lwdna_is_queued_once_by_its_name() -> None:
    queued: list[tuple[str, set[str]]] = []
    for job in (job for entry in read() for job in entry.jobs if {"experiment=lwdna", "seed=0"} <= set(job)):
        values = {key: value.replace("\\", "") for key, value in (override.split("=", 1) for override in job)}

        def filled(text: str, values: dict[str, str] = values) -> str:
            places = {"backbone.name": values["backbone"], "seed": "0", "run.root": "runs", "run.experiment": "lwdna"}
            for option, value in places.items():
                text = text.replace(f"${{{option}}}", value)
            return text

        name = filled(values.pop("run.name"))
        given = {f"{key}={filled(value)}" for key, value in values.items() if key not in ("experiment", "seed")}
        queued.append((name, set(map(plain_number, given))))
    rows = [row for number in range(1, 4) for row in find_table(f"lwdna_table{number}").rows.values() if row.overrides]
    wanted = {
        f"{row.row}-0": {
            plain_number(re.sub(r"\{(.*)\}", r"runs/lwdna/\1-0", word)) for word in shlex.split(row.overrides)
        }
        for row in rows
    }
    assert dict(queued) == wanted and len(queued) == len(wanted) == 57


@pytest.mark.soak
def test_every_run_can_be_composed_costs_what_is_said_and_has_a_directory_of_its_own() -> None:
    queue = read()
    for entry in queue:
        for config, _ in entry.runs:
            checked(config)
    directories = [path for entry in queue for path in entry.directories]
    assert len(set(directories)) == len(directories)
    assert [entry.cost for entry in queue] == [entry.counted(queue).cost for entry in queue]


def test_a_swept_command_has_the_jobs_of_hydras_own_sweeper() -> None:
    entry = of("-m experiment=pareto backbone=resnet20 seed=1,0 'run.name=${seed}'")
    swept = ["backbone=vgg16,resnet20,resnet32,resnet56", "budget.flops=10M,20M,40M,80M,160M", "seed=0,1,2"]
    given = ["experiment=pareto", "backbone=resnet20", "seed=1,0", "run.name=${seed}"]
    (expected,) = BasicSweeper.split_arguments(OverridesParser.create().parse_overrides([*swept, *given]), None)
    assert entry.jobs == expected and len(expected) == 10


def test_a_cost_is_the_closed_form_of_epochs_images_and_the_budget() -> None:
    ((grown, _),) = of("epochs=10 finetune.epochs=2 backbone=vgg16 budget.flops=42M").runs
    assert most_flops(grown) == 3 * 10 * 45_000 * 42_000_000
    ((pruned, _),) = of("method=l1 epochs=10 prune.epochs=4 finetune.epochs=6 budget.flops=20M dataset=cifar100").runs
    assert most_flops(pruned) == 3 * 45_000 * (4 * 40_933_632 + 6 * 20_000_000)
    ((fixed, _),) = of("method=train epochs=10 dataset.limit_train=1000").runs
    assert most_flops(fixed) == 3 * 10 * 1_000 * 40_927_872
    short = "backbone=msdnet backbone.exits=2 dataset=digits dataset.validation=0 epochs=2"
    ((equal, _),) = of(f"method=exits {short}").runs
    ((weighted, _),) = of(f"method=l2w method.interval=4 {short}").runs
    assert most_flops(weighted) == 1.75 * most_flops(equal) > 0
    assert most_flops(fixed, source=grown) == 3 * 10 * 1_000 * 42_000_000


def test_the_queue_runs_what_others_start_from_first_counts_it_and_skips_what_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "QUEUE.md"
    file.write_text(SMALL_QUEUE.replace("ROOT", str(tmp_path)))
    of_its_own = Replaced("experiments.paper.queue.QUEUE", file)
    done = run("--parallel", "2", module="experiments.run_queue", before=of_its_own, others=2)
    assert done.returncode == 0, done.stderr
    assert done.stdout.index("02.grown done:") < done.stdout.index("01.base starts")
    monkeypatch.setattr(run_queue, "QUEUE", file)
    assert [entry.done for entry in read()] == ["1/1", "1/1"]
    assert file.read_text().startswith("# A queue\n\n| # | What it shows")
    again = run(module="experiments.run_queue", before=of_its_own)
    assert again.returncode == 0 and again.stdout.count("skipped, done:") == 2


CPU_QUEUE = """| 1 | GPU it | | 0/2 | `python -m src.run -m run.experiment=a run.name=it-${seed} seed=0,1` |
| 2 | CPU: grown | | 0/2 | `python -m src.run -m run.experiment=b run.name=grown-${seed} seed=0,1` |
| 3 | CPU: scaled | | 0/3 | `python -m src.run -m run.experiment=b method=width run.name=width-${seed} seed=0,1,2` |
| 4 | CPU: another | | 0/1 | `python -m src.run -m run.experiment=c run.name=other-${seed} seed=0` |
"""


def test_entries_for_cpu_cores_run_one_seed_of_every_row_before_the_second_and_the_others_row_by_row() -> None:
    entries = [Entry.parse(line) for line in CPU_QUEUE.splitlines()]
    assert [job.name for job in run_queue.jobs(entries, gpus=0)] == [
        "01.it-0",
        "01.it-1",
        "02.grown-0",
        "03.width-0",
        "02.grown-1",
        "03.width-1",
        "03.width-2",
        "04.other-0",
    ]


@pytest.mark.parametrize(("arguments", "numbers"), [([], [1]), (["--cpu"], [2, 3, 4]), (["--cpu", "3"], [3])])
def test_entries_for_cpu_cores_run_in_the_background_and_by_that_flag_alone(
    arguments: list[str], numbers: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen: list[int] = []
    nice: list[int] = []

    def run(entries: Sequence[Entry], *_: object) -> int:
        chosen.extend(entry.number for entry in entries)
        return 0

    file = tmp_path / "QUEUE.md"
    file.write_text(CPU_QUEUE)
    monkeypatch.setattr(run_queue, "QUEUE", file)
    monkeypatch.setattr(run_queue, "run", run)
    monkeypatch.setattr(os, "nice", nice.append)
    for name in ("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.setenv(name, "7")
    assert run_queue.main(arguments) == 0
    assert chosen == numbers
    assert nice == ([19] if arguments else [])
    assert os.environ["OMP_NUM_THREADS"] == ("1" if arguments else "7")
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ("" if arguments else "7")


def test_every_entry_for_cpu_cores_trains_on_the_cpu_with_one_thread() -> None:
    entries = [entry for entry in read() if entry.on_cpu]
    assert entries
    for config, _ in (each for entry in entries for each in entry.runs):
        assert (config["trainer"]["accelerator"], config["threads"]) == ("cpu", 1)
        assert config["export"] == (config["run"]["name"] == "teacher")  # whose export teaches


class Timer:
    """Like threading's, but the time is over when a test says so."""

    last: Timer

    def __init__(self, seconds: float, function: Callable[[], None]) -> None:
        self.seconds, self.function, self.started, self.cancelled = seconds, function, False, False
        Timer.last = self

    def start(self) -> None:
        self.started = True

    def cancel(self) -> None:
        self.cancelled = True


@pytest.mark.parametrize(("over", "code"), [(True, 0), (False, 130)])
def test_when_the_time_is_over_the_jobs_are_told_to_stop_and_that_is_no_error(
    over: bool, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopped(*_: object) -> None:
        """Like run_jobs, which ends so when Ctrl-C is pressed."""
        assert Timer.last.started and Timer.last.seconds == 540
        with pytest.raises(KeyboardInterrupt):
            Timer.last.function() if over else os.kill(os.getpid(), signal.SIGINT)
            Event().wait(60)  # the signal ends it at once
        raise Interrupted("jobs done: 0")

    file = tmp_path / "QUEUE.md"
    file.write_text(SMALL_QUEUE.replace("ROOT", str(tmp_path)))
    monkeypatch.setattr(run_queue, "QUEUE", file)
    monkeypatch.setattr(run_queue, "run_jobs", stopped)
    monkeypatch.setattr(run_queue, "Timer", Timer)
    assert run_queue.main(["--minutes", "9"]) == code
    assert Timer.last.cancelled
    assert ("minutes are over" in capsys.readouterr().out) == over


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["99999"], "has no entry 99999"),
        (["--cpu", "1"], "entry 1 is not one for CPU cores"),
        (["--parallel", "0"], "above 0"),
        (["--minutes", "-1"], "above 0"),
    ],
)
def test_what_cannot_be_run_is_one_line(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_queue.main(arguments) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1


def test_a_count_never_falls_where_the_runs_are_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "QUEUE.md"
    line = f"| 1 | it | 1 | 2/3 | `python -m src.run -m experiment=table1 method=train run.root={tmp_path}` |"
    file.write_text(f"text\n{line}\n")
    monkeypatch.setattr(run_queue, "QUEUE", file)
    (entry,) = read()
    write([entry.counted([entry])])
    assert [e.done for e in read()] == ["2/3"] and file.read_text().startswith("text\n")
