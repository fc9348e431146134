"""The end of a run: what was learned is safe first, and what fails after it costs a line alone."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from commands import SHORT, run
from killed import InTurn, learned

from budgetnet.runs.adoption import finished
from budgetnet.runs.directory import RunDirectory

BRIEF = (*SHORT, "epochs=2", "finetune.epochs=1", "export=true", "trainer.progress=false")


@dataclass(frozen=True)
class Fails:
    """A function raises an error."""

    name: str
    error: Exception

    def __call__(self) -> None:
        mock.patch(self.name, side_effect=self.error).start()


def warnings_of(directory: Path) -> Any:
    return json.loads((directory / "summary.json").read_text())["warnings"]


def test_what_fails_at_the_end_costs_one_line_each_and_neither_the_rest_nor_the_exit_code(tmp_path: Path) -> None:
    command = [*BRIEF, f"run.dir={tmp_path}/run"]
    onnx = Fails("torch.onnx.export", ValueError("an operator\nthat it does not have"))
    figures = Fails("budgetnet.reports.drawing.save", ZeroDivisionError("a figure of nothing"))
    ended = run(*command, before=InTurn((onnx, figures)), figures=True)
    assert ended.returncode == 0 and "report: " in ended.stdout
    lines = [line for line in ended.stderr.splitlines() if line.startswith("warning: the export")]
    assert lines == [
        "warning: the export to model.onnx failed (model.onnx cannot hold this network (ValueError: an operator that "
        "it does not have): deploy from best.ckpt, with budgetnet.load)"
    ]
    assert "Traceback" not in ended.stderr
    directory = tmp_path / "run"
    assert [f"warning: {line}" for line in warnings_of(directory)] == ended.stderr.splitlines()
    assert "the figure widths failed (ZeroDivisionError: a figure of nothing)" in warnings_of(directory)
    assert (directory / "model.pt2").exists() and not (directory / "model.onnx").exists()
    report = (directory / "report.md").read_text()
    assert "an operator that it does not have" in report and "a figure of nothing" in report
    assert finished(directory) and RunDirectory(directory).done
    again = run(*command)
    assert (again.returncode, again.stderr) == (0, "")


def test_what_had_no_room_at_the_end_is_done_by_the_same_command(tmp_path: Path) -> None:
    command = [*BRIEF, f"run.dir={tmp_path}/run"]
    full = Fails("torch.export.save", OSError(28, "No space left on device"))
    ended = run(*command, before=full)
    assert ended.returncode == 0
    assert "warning: the export to model.pt2 failed (OSError: [Errno 28] No space left" in ended.stderr
    assert "make room, and the same command tries again" in ended.stderr
    directory = tmp_path / "run"
    assert (directory / "model.onnx").exists() and not finished(directory) and RunDirectory(directory).done
    shutil.copytree(directory, tmp_path / "before")
    assert run(*command).returncode == 0
    assert finished(directory) and (directory / "model.pt2").exists() and warnings_of(directory) == []
    one, other = learned(directory), learned(tmp_path / "before")
    assert {name for name in one if one[name] != other[name]} == {"summary"}  # its warnings
