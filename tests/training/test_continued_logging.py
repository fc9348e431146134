"""What is logged of a run that is continued goes on at its step."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from budgetnet.sections import Logging
from budgetnet.training.loggers import close_loggers, log_summary, make_loggers


def test_wandb_goes_on_at_the_step_of_the_run_and_says_how_all_parts_are_synced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    begun: list[dict[str, Any]] = []
    logged: list[int] = []

    def init(**options: Any) -> Any:
        folder = tmp_path / "wandb" / f"offline-run-{len(begun)}"
        folder.mkdir(parents=True)
        begun.append(options)
        return SimpleNamespace(
            dir=str(folder / "files"), offline=True, summary={}, define_metric=lambda *_, **__: None,
            log=lambda values, step=None: logged.append(step),
        )  # fmt: skip

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setattr("wandb.init", init)
    monkeypatch.setattr("wandb.finish", lambda exit_code: None)
    monkeypatch.setattr("wandb.teardown", lambda: None)
    for first in (1, 21):
        made = make_loggers(Logging("wandb"), {"run": {"experiment": "default"}}, tmp_path)
        for logger in made:
            logger.begin()
            logger.log_metrics({"loss": 1.0}, step=first)
            logger.log_metrics({"loss": 0.5}, step=first + 9)
        log_summary(made, tmp_path / "figures", {"test_top1": 1.0})
        close_loggers(made)
    assert [step for step in logged if step is not None] == [1, 10, 21, 30]
    assert len({options["id"] for options in begun}) == 1
    said = capsys.readouterr().out.splitlines()
    assert said == [f"W&B      offline; to sync it: wandb sync {tmp_path}/wandb/offline-run-*"] * 2
