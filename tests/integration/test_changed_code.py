"""The same command after the user's code has changed: nothing is trained as if it had not."""

from __future__ import annotations

import json
import site
from functools import partial
from pathlib import Path

import pytest
from commands import FEW, run

from budgetnet.command.load import load

NET = """
import torch

class Net(torch.nn.Module):
    def __init__(self, num_classes, in_channels, width=8):
        super().__init__()
        self.conv = torch.nn.Conv2d(in_channels, width, 3)
        self.norm = torch.nn.BatchNorm2d(width)
        self.head = torch.nn.Linear(width, num_classes)

    def forward(self, x):
        return self.head(torch.relu(self.norm(self.conv(x))).mean((2, 3)))
"""


def test_a_changed_network_is_neither_taken_for_what_was_trained_nor_continued_if_its_costs_are_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, directory = tmp_path / "edited_net.py", tmp_path / "run"
    options = ("dataset=digits", "backbone=own", "backbone._target_=edited_net.Net", "method=train", "epochs=1", *FEW)
    options = (*options, "export=false", "logger=csv", f"run.dir={directory}")
    again = partial(run, *options, before=partial(site.addsitedir, str(tmp_path)))

    code.write_text(NET)
    first = again()
    assert first.returncode == 0 and "was finished before" not in first.stdout, first.stderr
    second = again()
    assert f"{directory} was finished before, and nothing is trained" in second.stdout and not second.stderr

    code.write_text(NET.replace("relu", "sigmoid"))  # the same costs, but another size, by which Python knows a change
    finished = again()
    assert finished.returncode == 0 and f"note: {code} changed since {directory} began: choose" in finished.stderr
    (directory / "done.json").unlink()
    continued = again()
    line = f"{code} changed since {directory} began: it goes on with what is there now"
    assert f"warning: {line}" in continued.stderr
    assert line in json.loads((directory / "summary.json").read_text())["warnings"]
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.warns(UserWarning, match="edited_net.py changed since "):
        load(directory)

    code.write_text(NET.replace("width=8", "width=12"))
    (directory / "done.json").unlink()
    written = {path: path.stat().st_mtime_ns for path in directory.glob("*.*")}
    refused = again()
    assert refused.returncode == 2
    assert {path: path.stat().st_mtime_ns for path in directory.glob("*.*")} == written
    assert "(now " in refused.stderr and " parameters of the full network instead of 186): bring" in refused.stderr
