"""Methods for networks with early exits: a mean budget is kept, images really leave, and a killed run goes on."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from commands import run
from covering import covered
from killed import At, learned, rounds, rows
from several import DDP, WATCHED, launched, of_each_rank

from budgetnet import load
from budgetnet.command.build import build
from budgetnet.command.compose import composed
from budgetnet.methods.exits.imta import Collaborating
from budgetnet.methods.exits.predict import EarlyExit
from budgetnet.runs.checkpoints import load_checkpoint

NETWORK = (
    "backbone=msdnet", "backbone.exits=3", "backbone.channels=4", "backbone.growth=4", "backbone.base=1",
    "backbone.step=1", "backbone.step_mode=even", "dataset=digits",
    "dataset.limit_train=48", "dataset.batch_size=16", "dataset.validation=60", "dataset.limit_test=50",
    "optim.lr=0.05", "epochs=2", "threads=1", "logger=csv", "trainer.progress=false", "export=false",
)  # fmt: skip
SHORT = (*NETWORK, "budget.mean_flops=50%")
METHODS = {
    "exits": ("method=exits",),
    "l2w": ("method=l2w",),
    "imta": ("method=l2w", "method.imta=true", "finetune.epochs=1"),
}
BETWEEN_THE_HALVES = At("budgetnet.methods.exits.l2w.meta_step", 10)  # of the fifth batch
KILLED = {
    "exits": At("budgetnet.training.learner.Learner.training_step", 5),
    "l2w": BETWEEN_THE_HALVES,
    "imta": BETWEEN_THE_HALVES,  # in the second phase
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The finished run of a method."""
    root = tmp_path_factory.mktemp("whole")

    def made_once(method: str) -> Path:
        if not (root / method).exists():
            finished = run(*METHODS[method], *SHORT, f"run.dir={root}/{method}")
            assert finished.returncode == 0, finished.stderr
        return root / method

    return made_once


def test_the_mean_budget_is_kept_on_the_images_held_out_and_the_best_accuracy_there_selects(
    whole: Callable[[str], Path],
) -> None:
    summary = json.loads((whole("l2w") / "summary.json").read_text())
    limit, exits = summary["budget"]["mean_flops"]["limit"], summary["exits"]
    assert limit == summary["full_flops"] // 2
    assert exits["flops"][0] <= exits["val_mean_flops"] <= summary["mean_flops"] <= limit
    assert exits["flops"][-1] == summary["flops"]
    table = rows(whole("l2w") / "budgeted.csv")
    assert len(table) == 39
    fitting = [float(row["val_accuracy"]) for row in table if float(row["val_mean_flops"]) <= limit]
    assert summary["val_top1"] >= max(fitting)
    by_epoch = {row["epoch"]: float(row["val_top1"]) for row in rows(whole("l2w") / "metrics.csv")}
    assert summary["val_top1"] == max(by_epoch.values())
    assert by_epoch == {row["epoch"]: float(row["accuracy"]) for row in rows(whole("l2w") / "exits.csv")}
    assert {"val_exit1_top1", "val_exit2_top1", "val_exit3_top1"} <= rows(whole("l2w") / "metrics.csv")[0].keys()


@pytest.mark.parametrize("method", covered(("l2w", "imta"), ("imta",)))
def test_what_is_reported_of_the_test_set_is_what_images_give_that_really_leave_early(
    method: str, whole: Callable[[str], Path], tmp_path: Path
) -> None:
    """Up to an image whose confidence convolutions of another batch size round to the other side of a threshold."""
    summary = json.loads((whole(method) / "summary.json").read_text())
    parts = build(composed(["method=train", *NETWORK]), tmp_path / "run")
    loaded = load(whole(method))
    assert isinstance(loaded.net, EarlyExit) and isinstance(loaded.net.network, Collaborating) is (method == "imta")
    ((images, targets),) = parts.data.test_dataloader()
    found = loaded.net.predict(images)
    assert torch.equal(loaded(images).argmax(1), found.classes)
    (name, probability), *_ = loaded.predict(torch.zeros(loaded.preprocess.size))
    assert name in loaded.classes and probability >= 0.1
    assert abs(int((found.classes == targets).sum()) - summary["test_top1"] / 2) <= 1
    gone = torch.bincount(found.exits, minlength=3)
    assert (gone - torch.tensor(summary["exits"]["test_leaving"])).abs().sum() <= 2
    flops = torch.tensor(summary["exits"]["flops"], dtype=torch.float64)
    assert float(gone.double() @ flops) / 50 == pytest.approx(summary["exits"]["test_mean_flops"], rel=0.04)


@pytest.mark.parametrize("method", covered(METHODS, ("imta",)))
def test_killed_within_a_step_it_goes_on_to_the_same_bits(
    method: str, whole: Callable[[str], Path], tmp_path: Path
) -> None:
    again = (*METHODS[method], *SHORT, "checkpoint.every_n_steps=1", f"run.dir={tmp_path}/run")
    assert run(*again, before=KILLED[method]).returncode == -9
    assert load_checkpoint(tmp_path / "run" / "last.ckpt")["budgetnet"]["batches"] == 1
    continued = run(*again)
    assert continued.returncode == 0, continued.stderr
    assert learned(tmp_path / "run") == learned(whole(method))
    for name in ("exits", "weights", "budgeted"):
        assert rows(tmp_path / "run" / f"{name}.csv") == rows(whole(method) / f"{name}.csv")


def test_two_steps_of_half_a_batch_cost_what_one_does_and_a_meta_step_three_more(
    whole: Callable[[str], Path],
) -> None:
    equal, weighted = (
        json.loads((whole(method) / "summary.json").read_text())["train_cost_flops"] for method in ("exits", "l2w")
    )
    assert weighted == 4 * equal


def test_the_network_is_frozen_in_the_second_phase_of_imta_and_its_pass_as_a_teacher_is_counted(
    whole: Callable[[str], Path],
) -> None:
    phases = [row["phase"] for row in rows(whole("imta") / "metrics.csv")]
    assert phases == ["train", "finetune"]
    (end,) = rounds(whole("imta"))
    assert (end["epoch"], end["stop"], end["plan"]) == (1, "epochs", {})
    summary, plain = (json.loads((whole(method) / "summary.json").read_text()) for method in ("imta", "l2w"))
    first, second = plain["flops"], summary["flops"]
    assert first < second == summary["exits"]["flops"][-1]
    assert summary["train_cost_flops"] == 48 * (4 * first + 4 * second + first)
    assert summary["best_epoch"] == 2


def test_growth_takes_the_sum_of_the_exits_as_its_loss(tmp_path: Path) -> None:
    grown = run(
        "method=adenel", *NETWORK, "budget.flops=50%", "growth.seed_width=2", "growth.epochs_per_round=1",
        "finetune.epochs=1", "epochs=4", f"run.dir={tmp_path}/run",
    )  # fmt: skip
    assert grown.returncode == 0, grown.stderr
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert len(rounds(tmp_path / "run")) == summary["rounds"] > 0
    assert 0.99 * summary["full_flops"] / 2 < summary["flops"] <= summary["full_flops"] / 2
    with open(tmp_path / "run" / "metrics.csv") as file:
        first = next(csv.DictReader(file))
    assert float(first["val_loss"]) > 2 * 2.3  # three exits, none of which has learned much: 3 · ln 10


@pytest.mark.soak
@pytest.mark.parametrize("method", METHODS)
def test_two_processes_killed_and_continued_end_in_the_bits_of_two_that_were_not(method: str, tmp_path: Path) -> None:
    ended = {}
    for name, trouble in (("whole", None), ("killed", "SIGKILL:1:1:1")):
        command = (*METHODS[method], *SHORT, *DDP, f"run.dir={tmp_path}/{name}/run", "checkpoint.every_n_steps=1",
                   "+callbacks.parameters._target_=ranks.Parameters", *WATCHED[1:])  # fmt: skip
        if trouble is not None:
            assert launched(tmp_path / name, *command, trouble=trouble).code == 1
        finished = launched(tmp_path / name, *command)
        assert finished.code == 0, finished.errors
        epochs = of_each_rank(tmp_path / name, "epoch")
        assert len(epochs) == 2 and all(first["weights"] == second["weights"] for first, second in epochs)
        ended[name] = learned(tmp_path / name / "run")
    assert ended["whole"] == ended["killed"]
