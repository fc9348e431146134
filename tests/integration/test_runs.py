"""Runs that are interrupted, fail, or learn on real data."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
from commands import FEW, SHORT, TINY, run, run_command
from killed import At, Facts, learned, rows
from zygote import IMPORTED

from budgetnet.command import build, experiment, finishing
from budgetnet.command.compose import composed
from budgetnet.command.configuration import Configuration, parse
from budgetnet.command.methods import method_class
from budgetnet.command.names import command_line
from budgetnet.errors import RunError
from budgetnet.reports import drawing
from budgetnet.reports.filters import first_layer_filters
from budgetnet.runs.checkpoints import load_checkpoint
from budgetnet.runs.directory import RunDirectory
from budgetnet.training import loggers
from budgetnet.training.learner import Learner

ENOUGH = ("dataset.limit_train=640", "dataset.batch_size=32")
"""To learn more than 70 % of the digits."""


@pytest.fixture
def no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs of this process have a report without them, which takes half the time of a short run."""
    monkeypatch.setattr("budgetnet.reports.report._FIGURES", {})


def test_the_command_of_a_user_gives_the_same_bits_as_the_forked_one_of_these_tests(
    short_run: Path, tmp_path: Path
) -> None:
    finished = run_command(*SHORT, f"run.dir={tmp_path}/again")
    assert finished.returncode == 0, finished.stderr
    assert learned(tmp_path / "again") == learned(short_run)
    refused = run(*SHORT, f"run.dir={tmp_path}/again", "optim.lr=0.03")
    assert (
        refused.returncode == 2 and "(differing: optim.lr)" in refused.stderr and len(refused.stderr.splitlines()) == 1
    )
    assert "budget.flops=50%" in run("--help").stdout


def test_the_process_that_is_forked_has_imported_everything_and_has_one_thread(tmp_path: Path) -> None:
    assert run("--help", before=Facts(tmp_path / "facts")).returncode == 0
    facts = json.loads((tmp_path / "facts").read_text())
    assert set(facts["imported"]) >= set(IMPORTED)
    assert facts["threads"] == 1


def test_the_short_run_grows_more_than_twice_and_stays_within_its_budget(short_run: Path) -> None:
    summary = json.loads((short_run / "summary.json").read_text())
    assert summary["rounds"] > 2 and summary["stop_reason"] == "flops"
    assert all(int(row["flops"]) <= summary["budget"]["flops"]["limit"] for row in rows(short_run / "metrics.csv"))


def test_the_filters_that_are_kept_of_each_round_are_those_whose_saturation_was_read(
    short_run: Path, tmp_path: Path
) -> None:
    entries = [json.loads(line) for line in (short_run / "growth.jsonl").read_text().splitlines()]
    found = RunDirectory(short_run).filters
    assert [number for number, _, _ in found] == [entry["round"] for entry in entries]
    for entry, (_, weights, selected) in zip(entries, found, strict=True):
        assert float(selected.mean()) == pytest.approx(entry["saturation"]["conv1"])
        assert len(weights) == len(selected) == entry["plan"].get("conv1", [entry["widths"]["conv1"]])[0]
    assert drawing.save(first_layer_filters(RunDirectory(short_run)), tmp_path / "filters.png").stat().st_size


@pytest.mark.soak
def test_a_run_that_is_interrupted_twice_goes_on_to_the_same_bits(short_run: Path, tmp_path: Path) -> None:
    directory = tmp_path / "run"
    for _ in range(2):
        second_epoch = At("budgetnet.runs.records.Records.metrics", 2, after=True, number=signal.SIGINT)
        interrupted = run(*SHORT, f"run.dir={directory}", before=second_epoch)
        assert interrupted.returncode == 130
        assert "continue with the same command: python -m src.run" in interrupted.stderr.strip().splitlines()[-1]
        assert not (directory / "done.json").exists()
    finished = run(*SHORT, f"run.dir={directory}")
    assert finished.returncode == 0, finished.stderr
    assert learned(directory) == learned(short_run)


def test_a_run_that_ended_before_it_was_evaluated_is_evaluated(short_run: Path, tmp_path: Path) -> None:
    directory = tmp_path / "run"
    directory.mkdir()
    for name in ("config.yaml", "metrics.csv", "saturation.csv", "growth.jsonl", "last.ckpt", "best.ckpt"):
        (directory / name).write_bytes((short_run / name).read_bytes())
    assert run(*SHORT, f"run.dir={directory}").returncode == 0
    old, new = (json.loads((d / "summary.json").read_text()) for d in (short_run, directory))
    clock = {"seconds": 0, "name": "", "growth_seconds": 0, "command": ""}
    assert {**new, **clock} == {**old, **clock}


def test_a_loss_that_is_not_finite_ends_the_run_and_keeps_the_last_good_checkpoint(
    tmp_path: Path,
) -> None:
    failed = run(*SHORT, f"run.dir={tmp_path}/run", "finetune.lr=1e20")
    assert failed.returncode == 1
    last = load_checkpoint(tmp_path / "run" / "last.ckpt")
    epochs = last["epoch"] + 1
    assert last["budgetnet"]["phase"] == 1 and epochs == last["budgetnet"]["phase_start"]
    assert all(value.isfinite().all() for value in last["state_dict"].values() if value.is_floating_point())
    (line,) = [line for line in failed.stderr.splitlines() if not line.startswith("epoch")]
    step = int(re.findall(r"error: the (?:val )?loss is not finite at step (\d+)", line)[0])
    assert 5 * epochs <= step <= 5 * (epochs + 1)
    assert len(rows(tmp_path / "run" / "metrics.csv")) == epochs


def test_a_directory_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    refused = run(*TINY, f"run.dir={tmp_path}")
    assert refused.returncode == 2 and "holds files of something else" in refused.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_network_of_ones_own_grows_and_one_that_cannot_be_followed_is_refused(tmp_path: Path) -> None:
    own = [*(o for o in TINY if not o.startswith("backbone")), *FEW]
    target = ("backbone._target_=tests.nets.Small", "backbone.num_classes_name=num_classes")
    good = run(*own, "backbone=own", *target, f"run.dir={tmp_path}/good")
    assert good.returncode == 0, good.stderr
    summary = json.loads((tmp_path / "good" / "summary.json").read_text())
    assert summary["stop_reason"] == "flops" and summary["widths"]["first"] > 4
    bad = run(*own, "backbone=own", "backbone._target_=tests.nets.Sorting", f"run.dir={tmp_path}/bad")
    assert bad.returncode == 2
    assert re.search(r"operation 'sort' in the network's forward \(nets.py:\d+: .*\) is not followed", bad.stderr)
    assert "'backbone.frozen=[sort]'" in bad.stderr
    assert len(bad.stderr.strip().splitlines()) == 1 and not (tmp_path / "bad").exists()


@pytest.mark.usefixtures("no_figures")
def test_validation_may_be_rare_or_absent(tmp_path: Path) -> None:
    every_second = configuration(tmp_path, *FEW, "trainer.check_val_every_n_epoch=2")
    rare = experiment.run(every_second, tmp_path / "rare", command_line())
    validated = [row for row in rows(tmp_path / "rare" / "metrics.csv") if row["val_top1"]]
    assert 0 < len(validated) < rare["epochs"]
    assert rare["val_top1"] in [float(row["val_top1"]) for row in validated]
    none = experiment.run(configuration(tmp_path, *FEW, "dataset.validation=0"), tmp_path / "none", command_line())
    assert none["val_top1"] is None and none["best_epoch"] == none["epochs"]


def test_a_train_cost_budget_is_never_exceeded_and_well_used(tmp_path: Path) -> None:
    overrides = [o for o in SHORT if not o.startswith(("budget", "epochs"))]
    finished = run(*overrides, "budget.train_cost=8%", "epochs=40", f"run.dir={tmp_path}/run", "growth.number=1")
    assert finished.returncode == 0, finished.stderr
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    used = summary["budget"]["train_cost"]
    assert summary["stop_reason"] == "train_cost"
    assert used["used"] == summary["train_cost_flops"] <= used["limit"]
    assert used["percent"] > 90  # a single channel of this network costs more than 1 % of the budget


@pytest.mark.usefixtures("no_figures")
@pytest.mark.parametrize(
    ("init", "state"), [("he", "carry"), ("zero_out", "reset"), ("net2wider", "carry"), ("gradmax", "reset")]
)
def test_every_initialisation_and_state_option_grows_to_the_budget(init: str, state: str, tmp_path: Path) -> None:
    config = configuration(tmp_path, *FEW, f"growth.init={init}", f"growth.state={state}")
    summary = experiment.run(config, tmp_path / "run", command_line())
    assert summary["stop_reason"] == "flops"
    assert summary["flops"] <= summary["budget"]["flops"]["limit"]


@pytest.mark.usefixtures("no_figures")
@pytest.mark.parametrize(
    ("override", "fact"),
    [
        ("growth.policy=balanced", lambda s: s["widths"]["conv2"] > s["widths"]["conv1"]),
        ("growth.linear=true", lambda s: 4 < s["widths"]["fc1"] < 120 and s["seed_widths"]["fc2"] == 4),
        ("growth.round_to=4", lambda s: s["widths"]["conv1"] % 4 == s["widths"]["conv2"] % 4 == 0),
        ("growth.max_width=6", lambda s: s["widths"]["conv1"] == s["widths"]["conv2"] == 6),
        ("growth.max_rounds=1", lambda s: (s["rounds"], s["stop_reason"]) == (1, "max_rounds")),
        ("epochs=5", lambda s: (s["epochs"], s["stop_reason"]) == (5, "epochs")),
        ("finetune.optimizer=lbi", lambda s: s["test_top1"] > 70),
        ("trainer.precision=bf16-mixed", lambda s: s["test_top1"] > 70),
    ],
)
def test_an_option_does_what_it_says(override: str, fact: Callable[[Any], bool], tmp_path: Path) -> None:
    budget = ["budget.flops=236520"] if "max_width" in override else []  # what 6 and 6 filters cost
    few = ENOUGH if override.startswith(("finetune", "trainer")) else FEW
    summary = experiment.run(configuration(tmp_path, *few, *budget, override), tmp_path / "run", command_line())
    assert fact(summary)
    assert summary["flops"] <= summary["budget"]["flops"]["limit"]


def configuration(root: Path, *overrides: str) -> Configuration:
    config = composed([*TINY, "threads=1", "trainer.progress=false", f"run.root={root}", *overrides])
    return parse(config, method_class(config))


class Listener(pl.loggers.Logger):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.heard: list[dict[str, float]] = []

    name = "listener"
    version = 0

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.heard.append(metrics)

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None: ...


@pytest.mark.usefixtures("no_figures")
def test_the_loggers_get_the_numbers_of_the_csv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listener = Listener()
    monkeypatch.setattr(build, "make_loggers", lambda *_: [listener])
    monkeypatch.setattr(finishing, "log_summary", lambda *_: None)
    monkeypatch.setattr(experiment, "close_loggers", lambda *_: None)
    experiment.run(configuration(tmp_path, *FEW), tmp_path / "run", command_line())
    epochs = [heard for heard in listener.heard if "val_top1" in heard]
    written = rows(tmp_path / "run" / "metrics.csv", "phase")
    assert [{key: float(value) for key, value in row.items() if value} for row in written] == [
        {key: float(value) for key, value in heard.items() if not key.startswith("saturation/")} for heard in epochs
    ]
    rounds = [heard for heard in listener.heard if "growth/round" in heard]
    assert len(rounds) == len((tmp_path / "run" / "growth.jsonl").read_text().splitlines())


def test_wandb_starts_after_the_first_step_and_not_for_a_run_that_cannot_take_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    step = Learner.training_step

    def stepped(*args: Any) -> None:
        events.append("step")
        step(*args)
        if (tmp_path / "broken").exists():
            raise RunError("no memory")

    class Launch(Exception): ...

    def start(*_: Any) -> None:
        events.append("wandb")
        raise Launch

    monkeypatch.setattr(Learner, "training_step", stepped)
    monkeypatch.setattr(loggers, "_start_run", start)
    config = configuration(tmp_path, *FEW, "logger=wandb")
    experiment.run(config, tmp_path / "run", command_line())  # an error of W&B ends the logging alone
    assert events[:2] == ["step", "wandb"] and events.count("wandb") == 1
    events.clear()
    (tmp_path / "broken").touch()
    with pytest.raises(RunError, match="no memory"):
        experiment.run(config, tmp_path / "other", command_line())
    assert events == ["step"]


def test_a_fixed_network_trains_with_the_widths_of_another_run(short_run: Path, tmp_path: Path) -> None:
    base = [o for o in SHORT if not o.startswith(("budget", "growth", "lbi", "finetune", "epochs"))]
    finished = run(*base, "method=train", f"method.widths_from={short_run}", "epochs=2", f"run.dir={tmp_path}/run")
    assert finished.returncode == 0, finished.stderr
    grown, fixed = (json.loads((d / "summary.json").read_text()) for d in (short_run, tmp_path / "run"))
    assert (fixed["widths"], fixed["flops"], fixed["params"]) == (grown["widths"], grown["flops"], grown["params"])
    assert fixed["stop_reason"] is None


@pytest.mark.parametrize(
    ("dataset", "backbone", "budget"),
    [
        ("cifar10", "resnet20", "budget.flops=9%"),
        pytest.param("cifar100", "vgg11", "budget.params=4%", marks=pytest.mark.soak),
        ("mnist", "lenet5", "budget.flops=60%"),
    ],
)
def test_real_data_trains_and_grows_to_the_budget(
    dataset: str, backbone: str, budget: str, data_root: Path, tmp_path: Path
) -> None:
    overrides = [o for o in TINY if not o.startswith(("dataset=", "backbone=", "budget", "growth.seed_shape", "optim"))]
    finished = run(
        *overrides, f"dataset={dataset}", f"backbone={backbone}", budget, f"dataset.root={data_root}",
        "dataset.limit_train=256", "dataset.limit_test=200", "dataset.validation=200", f"run.dir={tmp_path}/run",
        "growth.ratio=0.5", "growth.seed_width=3", "finetune.epochs=1",
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    (kind,) = summary["budget"]
    assert summary["stop_reason"] == kind
    assert 99 <= summary["budget"][kind]["percent"] <= 100 or backbone == "lenet5"
