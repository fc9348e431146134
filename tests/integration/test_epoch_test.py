"""The test set after every epoch: what is measured, and that nothing else changes."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from commands import FORGETFUL, SHORT, run
from killed import At, digest, learned, rows
from several import DDP, forked

MEASURED = "trainer.test_every_epoch=true"


def summary(directory: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((directory / "summary.json").read_text())
    return found


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of a network with dropout, tested after every epoch."""
    directory = tmp_path_factory.mktemp("measured") / "run"
    finished = run(*SHORT, *FORGETFUL, MEASURED, f"run.dir={directory}")
    assert finished.returncode == 0, finished.stderr
    return directory


def test_training_has_the_same_bits_with_it_and_without(measured: Path, forgetful_run: Path) -> None:
    first, second = learned(measured), learned(forgetful_run)
    assert {name for name in first if first[name] != second[name]} == {"metrics", "summary"}
    assert rows(measured / "metrics.csv", "test_top1", "seconds") == rows(
        forgetful_run / "metrics.csv", "test_top1", "seconds"
    )
    best = ("test_top1_best", "test_top1_best_epoch")
    assert digest({**summary(measured), **dict.fromkeys(best)}) == digest(summary(forgetful_run))
    assert {row["test_top1"] for row in rows(forgetful_run / "metrics.csv")} == {""}


def test_the_best_is_of_the_final_networks_epochs(measured: Path) -> None:
    said, lines = summary(measured), rows(measured / "metrics.csv")
    accuracies = {int(row["epoch"]): float(row["test_top1"]) for row in lines}
    assert len(accuracies) == said["epochs"] and len(set(accuracies.values())) > 3
    assert accuracies[said["epochs"]] == said["test_top1_last"]
    assert accuracies[said["best_epoch"]] == said["test_top1"]
    final = {int(row["epoch"]) for row in lines if row["phase"] == "finetune"}
    assert 0 < len(final) < said["epochs"]
    assert said["test_top1_best"] == max(accuracies[epoch] for epoch in final)
    assert accuracies[said["test_top1_best_epoch"]] == said["test_top1_best"]
    assert "best test epoch %" in (measured / "report.md").read_text()


@pytest.mark.soak
def test_the_best_survives_a_kill_after_a_row_of_the_table_and_one_after_the_last_epoch(
    measured: Path, tmp_path: Path
) -> None:
    command = [*SHORT, *FORGETFUL, MEASURED, f"run.dir={tmp_path}/run"]
    for place in (
        At("budgetnet.runs.records.Records.metrics", 7, after=True), At("budgetnet.command.experiment._evaluate")
    ):  # fmt: skip
        assert run(*command, before=place).returncode == -9
    continued = run(*command)
    assert continued.returncode == 0, continued.stderr
    assert learned(tmp_path / "run") == learned(measured)


def test_two_processes_test_one_network_on_all_images(tmp_path: Path) -> None:
    """Without validation, which would give both the running statistics of the first."""
    command = [
        "dataset=digits", "method=train", "backbone=own", "backbone._target_=nets.Small", "epochs=3", "optim.lr=0.02",
        "dataset.limit_train=40", "dataset.batch_size=8", "dataset.validation=0", "export=false", "logger=csv", *DDP,
    ]  # fmt: skip
    with ThreadPoolExecutor(2) as pool:
        options = {"with": [MEASURED], "without": []}
        jobs = {
            name: pool.submit(forked, tmp_path / f"{name} notes", *command, *more, f"run.dir={tmp_path}/{name}")
            for name, more in options.items()
        }
    for ended in (ended for job in jobs.values() for ended in job.result()):
        assert ended.code == 0, ended.errors
    lines = rows(tmp_path / "with" / "metrics.csv")
    said = summary(tmp_path / "with")
    accuracies = [float(row["test_top1"]) for row in lines]
    assert accuracies[-1] == said["test_top1_last"]
    assert said["test_top1_best"] == max(accuracies)
    with_it, without = learned(tmp_path / "with"), learned(tmp_path / "without")
    assert with_it["weights"] == without["weights"] and with_it["optimizer"] == without["optimizer"]
