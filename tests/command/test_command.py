from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

from budgetnet.command.explain import known_options
from budgetnet.command.job import objective
from budgetnet.command.names import run_directory, run_name, sweep_name
from src.run import main

QUICK = ["dataset=digits", "logger=csv", "backbone=lenet5", "trainer.progress=false"]
EQUAL = "growth.seed_shape=equal"


def command(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], *overrides: str) -> tuple[int, str]:
    monkeypatch.setattr(sys, "argv", ["src/run.py", *overrides])
    capfd.readouterr()
    code = 0
    try:
        code = main()
    except SystemExit as error:
        code = int(error.code or 0)
    return code, capfd.readouterr().err.strip()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["backbone=resnet21"], "backbone=resnet21 is unknown; did you mean"),
        (["dataset=cifar11"], "did you mean 'cifar10'"),
        (
            ["backbone=my.Net"],
            "backbone=my.Net is unknown; for a class of your own write backbone=own backbone._target_=",
        ),
        (["backbone=zzz"], "backbone=zzz is unknown; known: "),
        (["budget.flops=50%", "run=-1"], "run=-1: expected a section of options"),
        (["budget.flops=50%", "+task.luminance=true"], "task.luminance stands without a task: choose one"),
        (["backbone=own", "backbone._target_=my.Net", "backbone.w=4"], "a class of your own, write +backbone.w="),
        (["--budget.flops=50%"], "--budget.flops=50%: options have no dashes, write budget.flops=50%"),
        (["--budget.flops", "50%"], "--budget.flops: options have no dashes, write budget.flops=..."),
        (["budget.flops", "=", "50%"], "'budget.flops' has no value: write budget.flops=..., without spaces"),
        (["bugdet.flops=1M"], "did you mean 'budget.flops'"),
        (["budget.flop=1M"], "did you mean 'budget.flops'"),
        (["growth.polcy=uniform"], "did you mean 'growth.policy'"),
        (["method=adanel"], "did you mean 'adenel'"),
        ([], "no budget: state at least one of"),
        (["budget.flops=0.5Q"], "budget.flops=0.5Q: unknown suffix 'Q'"),
        (["budget.flops=-3"], "budget.flops=-3: expected a positive number"),
        (["budget.params=0"], "budget.params=0: expected a positive number"),
        (["budget.flops=1k", EQUAL], "budget.flops=1,000 is below the 141,320 of the seed network"),
        (["budget.flops=1T", EQUAL], "is above the 16,695,720 of the largest network allowed"),
        (
            ["budget.flops=50%", "budget.params=1k", EQUAL],
            "budget.params=1,000 is below the 23,642 of the seed network",
        ),
        (["budget.flops=50%", "budget.train_cost=0.1%", EQUAL], "budget.train_cost="),
        (["budget.flops=50%", "growth.epochs_per_round=400"], "do not fit into epochs="),
        (["budget.flops=50%", "growth.number=abc"], "growth.number=abc"),
        (["budget.flops=50%", "growth.policy=saturated"], "did you mean 'saturation'"),
        (["budget.flops=50%", "growth.init=xavier"], "growth.init='xavier' is unknown"),
        (["budget.flops=50%", "optim.lr=0"], "optim.lr=0.0: expected a number above 0"),
        (["budget.flops=50%", "seed=abc"], "seed=abc"),
        (["budget.flops=50%", "dataset.batch_size=0"], "dataset.batch_size=0"),
        (["budget.flops=50%", "dataset=_images"], "dataset.name=None: expected a name, as in conf/dataset"),
        (["budget.flops=50%", "dataset.name=x", "dataset.rot=/nowhere"], "did you mean 'dataset.root'"),
        (["budget.flops=50%", "backbone=vgg11"], "VGG does not take inputs of shape (1, 28, 28)"),
        (["budget.flops=50%", "optim.lr=[1"], "no viable alternative"),
        (["method=train", "budget.flops=50%"], "this fixed network, which method=train does not change"),
        (["method=train", "method.widths_from=/nowhere"], "no finished run's summary.json there"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2_and_writes_nothing(
    overrides: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    code, errors = command(monkeypatch, capfd, *QUICK, f"run.root={tmp_path}/runs", *overrides)
    lines = [line for line in errors.splitlines() if not line.startswith("Error executing job")]
    assert code == 2
    assert len(lines) == 1 and lines[0].startswith("error: ")
    assert message in lines[0]
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and ".sweep" not in path.parts]


@pytest.mark.parametrize("multirun", [False, True])
@pytest.mark.parametrize("typed", ["growth.policy=random", "lbi.nu=3"])
def test_an_option_that_the_method_does_not_read_is_refused_with_those_that_do(
    typed: str, multirun: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    overrides = [*QUICK, f"run.root={tmp_path}", "method=l1", "budget.flops=50%", typed]
    code, errors = command(monkeypatch, capfd, *overrides, *(["-m"] if multirun else []))
    option = typed.partition("=")[0]
    assert (code, errors) == (2, f"error: {typed}: method=l1 does not read {option}; read by method=adenel")
    assert not list(tmp_path.iterdir())


def test_a_run_is_named_by_its_overrides_whatever_their_order() -> None:
    assert run_name(["seed=1", "budget.flops=50%", "logger=csv"]) == run_name(["budget.flops=50%", "seed=1"])
    assert re.fullmatch(r"backbone=vgg16,new.option=a_b-[0-9a-f]{8}", run_name(["backbone=vgg16", "+new.option=a/b"]))
    assert run_name([]) == "default"


def test_options_that_change_nothing_of_what_is_learned_are_not_in_the_name() -> None:
    free = ["trainer.devices=2", "trainer.progress=false", "launcher.n_jobs=2", "hydra/launcher=basic", "export=false"]
    free += ["dataset.root=/data", "++dataset.workers=2", "logger.mode=offline", "hydra.sweeper.n_trials=3"]
    assert run_name(["seed=1", "experiment=demo", *free]) == "seed=1"
    assert run_name(["trainer=ddp", "dataset.limit_train=9"]) == "dataset.limit_train=9,trainer=ddp"
    assert run_name(["trainer.precision=bf16-mixed"]) == "trainer.precision=bf16-mixed"


def test_a_sweep_is_named_by_its_experiment_and_its_overrides() -> None:
    assert sweep_name("pareto", ["experiment=pareto"]) == "pareto"
    assert sweep_name("pareto", ["seed=0,1", "budget.flops=1M,2M"]) == "pareto,budget.flops=1M,2M,seed=0,1"


@pytest.mark.parametrize(
    ("summary", "value"),
    [({"val_mae": 3.0, "test_mae": 2.0}, -3.0), ({"val_mae": None, "test_mae": 2.0}, -2.0)],
)
def test_a_job_is_judged_by_its_first_metric_on_validation_and_on_the_test_set_only_where_nothing_is_held_out(
    summary: dict[str, float | None], value: float, tmp_path: Path
) -> None:
    mae = {"name": "mae", "title": "mean absolute error", "unit": "", "higher_is_better": False}
    files = {"config.yaml": "{}", "metrics.csv": "epoch\n", "task.json": json.dumps({"metrics": [mae]})}
    for name, text in {**files, "summary.json": json.dumps({"format": 1, **summary})}.items():
        (tmp_path / name).write_text(text)
    assert objective(tmp_path) == value


def test_long_names_are_cut_and_stay_different() -> None:
    names = {run_name([f"growth.option_{i}=value" for i in range(20)] + [f"seed={s}"]) for s in range(3)}
    assert len(names) == 3 and all(len(name) <= 120 for name in names)


def test_a_run_directory_can_be_given() -> None:
    run = {"root": "runs", "experiment": "table1", "name": None, "dir": None}
    assert run_directory({"run": run}, ["seed=1"]) == Path("runs/table1/seed=1")
    assert run_directory({"run": {**run, "name": "mine"}}, ["seed=1"]) == Path("runs/table1/mine")
    assert run_directory({"run": {**run, "dir": "/tmp/x"}}, ["seed=1"]) == Path("/tmp/x")


def test_every_option_is_known() -> None:
    options = known_options()
    assert {"budget.flops", "growth.policy", "backbone", "dataset.batch_size", "seed", "run.dir"} <= set(options)


def test_different_values_give_different_names() -> None:
    values = ["a b", "a:b", "a/b", "a_b", "'a b'", "[a,b]", "[a, b]", "a,b", "é", "e", "a=b", "", " ", "a.b", "x" * 300]
    values += ["x" * 299 + sign for sign in "yz /:"]
    lists = [[f"dataset.name={value}"] for value in values]
    lists += [["~dataset.name=a.b"], ["optim.lr=1,growth.ratio=2"], ["optim.lr=1", "growth.ratio=2"]]
    lists += [["optim.lr=[1", "2]"], ["optim.lr=[1,2]"]]
    for name in (run_name, lambda overrides: sweep_name("default", overrides)):
        names = [name(overrides) for overrides in lists]
        assert len(set(names)) == len(names) and max(map(len, names)) <= 120
        assert not any(set(each) & set("/: '[]") for each in names)
