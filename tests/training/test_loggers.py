"""Loggers that fail, hang, or refuse: the run goes on without them, one line says so."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pytorch_lightning.loggers.logger import DummyLogger

from budgetnet.errors import UsageError
from budgetnet.runs.warnings import Warnings
from budgetnet.sections import Logging
from budgetnet.training import loggers as module
from budgetnet.training.loggers import Unfailing, close_loggers, log_summary, make_loggers

ERRORS = [  # those in quotes are W&B's
    OSError(28, "No space left on device"),
    PermissionError(13, "Permission denied"),
    "CommError",
    "UsageError",
    TimeoutError("no answer"),
    ValueError("1 validation error for Settings\n  mode"),
    SystemExit(1),
]


class Run:
    """A stand-in for a run of W&B, which does `trouble` in the function called `place`."""

    def __init__(self, place: str, trouble: Callable[[], object], folder: Path) -> None:
        self.place, self.trouble, self.dir = place, trouble, str(folder / "files")
        self.logged: list[Any] = []
        self.summary = SimpleNamespace(update=lambda values: None)

    def define_metric(self, *names: Any, **options: Any) -> None:
        pass

    def log(self, values: Any, **options: Any) -> None:
        self.reach("log")
        self.logged.append(values)

    def reach(self, place: str) -> None:
        if place == self.place:
            self.trouble()


def a_run_through(place: str, trouble: Callable[[], object], tmp_path: Path, patch: pytest.MonkeyPatch) -> list[str]:
    """The warnings of a run that logs three times, and closes its logger."""

    def init(**options: Any) -> Run:
        run.reach("init")
        return run

    run = Run(place, trouble, tmp_path / "wandb" / "offline-run-1")
    patch.setenv("WANDB_MODE", "offline")
    patch.setattr("wandb.init", init)
    patch.setattr("wandb.finish", lambda exit_code: run.reach("finish"))
    patch.setattr("wandb.teardown", lambda: None)
    warnings = Warnings()
    made = make_loggers(Logging("wandb"), {"run": {"experiment": "default"}}, tmp_path, warnings)
    for logger in made:
        logger.begin()
        for _ in range(3):
            logger.log_metrics({"loss": 1.0}, step=1)
        logger.experiment.log({"of a callback of the user": 1})
    log_summary(made, tmp_path / "figures", {"test_top1": 1.0})
    close_loggers(made)
    return warnings.lines


def throwing(error: BaseException) -> Callable[[], object]:
    def trouble() -> None:
        raise error

    return trouble


@pytest.mark.parametrize("place", ["init", "log", "finish"])
@pytest.mark.parametrize("error", ERRORS, ids=lambda error: error if isinstance(error, str) else type(error).__name__)
def test_whatever_wandb_raises_wherever_stops_the_logging_in_one_line(
    place: str, error: BaseException | str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    if isinstance(error, str):
        import wandb

        error = getattr(wandb.errors, error)("the network is unreachable")
    (line,) = a_run_through(place, throwing(error), tmp_path, monkeypatch)
    assert line.startswith(f"logging to W&B stopped ({type(error).__name__}")
    assert (f"wandb sync {tmp_path}/wandb/offline-run-1" in line) == (place != "init")
    assert capsys.readouterr().err == f"warning: {line}\n"


def test_a_wandb_that_never_answers_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_ANSWER", "_UPLOAD"):
        monkeypatch.setattr(module, name, 0.05)
    for place in ("init", "log", "finish"):
        for_ever = threading.Event()
        (line,) = a_run_through(place, for_ever.wait, tmp_path, monkeypatch)
        assert "stopped (TimeoutError: no answer within 0.05 s)" in line
        for_ever.set()


def test_online_that_is_refused_goes_on_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import wandb

    modes = []

    def init(mode: str, **options: Any) -> Run:
        modes.append(mode)
        if mode != "offline":
            raise wandb.errors.AuthenticationError("the key is too short")
        return Run("", for_ever.wait, tmp_path)

    for_ever, warnings = threading.Event(), Warnings()
    monkeypatch.setattr("wandb.init", init)
    options = Logging("wandb", mode="online")
    (logger,) = make_loggers(options, {"run": {"experiment": "default"}}, tmp_path, warnings)
    logger.log_metrics({"loss": 1.0})
    assert modes == ["online", "offline"] and logger.logger.experiment.logged == [{"loss": 1.0}]
    (line,) = warnings.lines
    assert line.startswith("W&B cannot be reached (AuthenticationError: the key is too short); logging offline")


def test_the_service_of_wandb_killed_in_the_middle_of_training_stops_the_logging(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import wandb

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setattr(module, "_UPLOAD", 60.0)
    warnings = Warnings()
    (logger,) = make_loggers(Logging("wandb"), {"run": {"experiment": "default"}}, tmp_path, warnings)
    logger.begin()
    logger.log_metrics({"loss": 1.0})
    found = subprocess.run(["pgrep", "-P", str(os.getpid()), "wandb-core"], capture_output=True, text=True).stdout
    for service in found.split():
        os.kill(int(service), signal.SIGKILL)
    assert found and not warnings.lines
    for _ in range(3):
        logger.log_metrics({"loss": 1.0})
    log_summary([logger], tmp_path / "figures", {"test_top1": 1.0})
    close_loggers([logger])
    (line,) = warnings.lines
    assert f"wandb sync {tmp_path}/wandb/offline-run-" in line and wandb.run is None


def test_any_logger_stops_alone(tmp_path: Path) -> None:
    class Full(DummyLogger):
        def log_metrics(self, *arguments: Any, **options: Any) -> None:
            raise OSError(28, "No space left on device")

    warnings = Warnings()
    logger = Unfailing(Full(), warnings)
    for _ in range(3):
        logger.log_metrics({"loss": 1.0})
    close_loggers([logger])
    (line,) = warnings.lines
    assert line.startswith("logging to Full stopped (OSError: [Errno 28] No space left on device)")


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"project": "a/b"}, r"logger.project='a/b': W&B takes 1 to 128 characters without / "),
        ({"project": "p" * 129}, "W&B takes 1 to 128 characters without"),
        ({"entity": " "}, "logger.entity=' ': W&B takes 1 to 128 characters without"),
        ({"group": ""}, "logger.group='': W&B takes 1 to 128 characters"),
        ({"tags": ("a", "t" * 65)}, r"logger.tags=\['a', 't+'\]: W&B takes tags of 1 to 64 characters"),
        ({"tags": ("",)}, "W&B takes tags of 1 to 64 characters"),
    ],
)
def test_names_that_wandb_refuses_are_refused_before_training(options: dict[str, Any], text: str) -> None:
    with pytest.raises(UsageError, match=text):
        Logging("wandb", **options)
