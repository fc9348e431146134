"""Every example of docs/extending.md is complete: saved as it says, its command goes to the end."""

from __future__ import annotations

import json
import re
import shlex
import site
from functools import partial
from pathlib import Path

import pytest
from commands import run

TEXT = (Path(__file__).parents[2] / "docs" / "extending.md").read_text()
SHORT = (
    "dataset.limit_train=256", "dataset.batch_size=32", "dataset.limit_test=100", "epochs=5", "finetune.epochs=2",
    "threads=1", "logger=csv", "export=false", "trainer.progress=false",
)  # fmt: skip
GROWN = ("growth.epochs_per_round=1", "growth.max_rounds=2")


def examples() -> dict[str, tuple[str, list[str]]]:
    """File name -> code, and the overrides of the command that runs it."""
    found = re.findall(
        r"^Save as `(\w+\.py)`:\n\n```python\n(.*?)```\n\n    python -m src\.run (.*?)\n\n",
        TEXT,
        re.MULTILINE | re.DOTALL,
    )
    return {file: (code, shlex.split(command.replace("\\\n", " "))) for file, code, command in found}


def test_there_is_an_example_of_each_kind() -> None:
    assert list(examples()) == ["my_net.py", "my_data.py", "my_task.py", "my_method.py"]
    assert TEXT.count("```python") == len(examples())


@pytest.mark.parametrize("file", examples())
def test_an_example_goes_to_its_end(file: str, tmp_path: Path) -> None:
    code, command = examples()[file]
    (tmp_path / file).write_text(code)
    short = SHORT if "method=own" in command else (*SHORT, *GROWN)
    finished = run(*command, *short, f"run.dir={tmp_path}/run", before=partial(site.addsitedir, str(tmp_path)))
    assert finished.returncode == 0, finished.stderr
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    budget = summary["budget"]["flops"]
    assert budget["used"] <= budget["limit"]
    described = json.loads((tmp_path / "run" / "task.json").read_text())
    for metric in described["metrics"]:
        assert f"test_{metric['name']}" in summary
    rounds = [json.loads(line) for line in (tmp_path / "run" / "growth.jsonl").read_text().splitlines()]
    assert rounds and rounds[-1]["stop"]
