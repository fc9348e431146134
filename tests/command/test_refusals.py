"""What a library refuses because of an option is one line with the option; bugs keep their traceback."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from pytorch_lightning.plugins.precision.precision import Precision

from budgetnet.command.build import build
from budgetnet.command.compose import composed
from budgetnet.command.configuration import Configuration, parse
from budgetnet.command.refusals import refusal
from budgetnet.errors import UsageError

TINY = (
    "dataset=digits", "backbone=lenet5", "budget.flops=80%", "growth.epochs_per_round=1", "finetune.epochs=1",
    "epochs=2", "dataset.limit_train=40", "dataset.batch_size=20", "dataset.validation=20", "dataset.limit_test=20",
    "threads=1", "trainer.progress=false", "trainer.accelerator=cpu", "logger=csv",
)  # fmt: skip
CALLBACK = "+callbacks.one._target_=pytorch_lightning.callbacks."


def parsed(*overrides: str) -> Configuration:
    return parse(composed([*TINY, *overrides]))


@pytest.mark.parametrize(
    ("overrides", "text"),
    [
        ((f"{CALLBACK}EarlyStopping", "+callbacks.one.monitor=no_such"), "callbacks.one: RuntimeError: .*no_such"),
        ((f"{CALLBACK}LearningRateMonitor",), "callbacks.one: MisconfigurationException: .*logger"),
    ],
)
def test_what_a_callback_of_lightnings_refuses_is_said_with_its_option(
    overrides: tuple[str, ...], text: str, tmp_path: Path
) -> None:
    options = parsed(*overrides)
    run = build(options, tmp_path / "run")
    (tmp_path / "run").mkdir(exist_ok=True)
    with pytest.raises(Exception) as raised:
        run.trainer.fit(run.learner, datamodule=run.data)
    found = refusal(raised.value, options)
    assert isinstance(found, UsageError)
    assert found.args[0] == found.args[0].splitlines()[0] and re.match(text, str(found))


def raised_in_torch(action: object) -> Exception:
    try:
        action()  # type: ignore[operator]
    except Exception as error:
        return error
    raise AssertionError


def test_what_a_precision_has_no_code_for_is_said_with_it() -> None:
    error = raised_in_torch(lambda: torch._check(False, lambda: "\"eigh\" not implemented for 'BFloat16'"))
    found = refusal(error, parsed("trainer.precision=bf16-true"))
    assert str(found).startswith("trainer.precision=bf16-true: ") and refusal(error, parsed()) is None


def test_an_error_that_only_passes_through_a_part_of_lightnings_is_not_blamed_on_it() -> None:
    def step() -> None:
        torch._check(False, lambda: "[gloo] Connection closed by peer")

    error = raised_in_torch(lambda: Precision()._wrap_closure(None, None, step))  # type: ignore[arg-type]
    assert refusal(error, parsed()) is None and refusal(error, parsed("trainer.precision=bf16-mixed")) is None


def test_a_bug_of_the_user_or_of_the_project_is_no_refusal() -> None:
    assert refusal(raised_in_torch(lambda: 1 / 0), parsed()) is None
    assert refusal(UsageError("a line"), parsed()) is None and refusal(KeyboardInterrupt(), parsed()) is None
