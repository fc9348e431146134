"""Files of a run directory are written as UTF-8 in any locale, and through no link."""

from __future__ import annotations

import ast
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from budgetnet.errors import UsageError
from budgetnet.reports import drawing
from budgetnet.runs.durable_files import DurableFiles
from budgetnet.runs.files import folder_within
from budgetnet.runs.records import Records, write_text
from budgetnet.sections import Place

SOURCE = Path(__file__).parents[2] / "src"
WRITERS: dict[str, Callable[[Path], Any]] = {
    "config.yaml.tmp": lambda folder: write_text(folder / "config.yaml", "a: 1"),
    "metrics.csv": lambda folder: Records(folder, ["epoch"]).metrics({"epoch": 1}),
    "growth.jsonl": lambda folder: Records(folder).growth({"epoch": 1}),
    "saturation.csv": lambda folder: Records(folder).row("saturation", {"epoch": 1}),
    "last.ckpt.tmp": lambda folder: DurableFiles().save_checkpoint({"a": torch.ones(1)}, folder / "last.ckpt"),
    "examples.tmp": lambda folder: Records(folder).examples({"a": np.ones(1)}),
    "widths.png.tmp": lambda folder: drawing.save(drawing.new_figure(), folder / "widths.png"),
    "widths.png": lambda folder: drawing.save(drawing.new_figure(), folder / "widths.png"),
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_planted_link_is_not_followed(name: str, tmp_path: Path) -> None:
    victim, folder = tmp_path / "victim", tmp_path / "run"
    victim.write_text("precious")
    folder.mkdir()
    (folder / name).symlink_to(victim)
    try:
        WRITERS[name](folder)
    except OSError as error:
        assert "symbolic links" in str(error)
    assert victim.read_text() == "precious"


def test_a_link_to_a_folder_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "filters").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="symbolic links"):
        Records(tmp_path).filters(1, np.ones((1, 1, 1, 1)), np.ones(1, dtype=bool))
    with pytest.raises(OSError, match="symbolic links"):
        folder_within(tmp_path / "filters")
    assert not list((tmp_path / "elsewhere").iterdir())


@pytest.mark.parametrize("option", ["name", "experiment"])
@pytest.mark.parametrize("value", ["../../x", "/tmp/x", "a/../../x", ".", ".."])
def test_a_name_that_leaves_the_root_is_refused(option: str, value: str) -> None:
    with pytest.raises(UsageError, match=rf"run.{option}='.*' leaves run.root: .* give run.dir="):
        Place(**{"root": "runs", "experiment": "default", option: value})
    assert Place("runs", "paper/table1", "a..b").name == "a..b"


def opened_as_text(tree: ast.AST) -> list[ast.Call]:
    """Calls that open a file, or a process, as text."""
    found = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        owner = ast.unparse(node.func.value) if isinstance(node.func, ast.Attribute) else ""
        modes = [arg.value for arg in node.args if isinstance(arg, ast.Constant) and isinstance(arg.value, str)]
        binary = any(mode.endswith("b") and len(mode) <= 3 for mode in modes)
        by_name = name in ("read_text", "write_text") and owner and not owner.startswith("records")
        opens = (name == "open" and owner in ("", "path", "file")) or name == "fdopen"
        is_text = any(keyword.arg in ("text", "universal_newlines") for keyword in node.keywords)
        if by_name or (opens and not binary) or is_text:
            found.append(node)
    return found


def test_whatever_is_read_or_written_as_text_states_its_encoding() -> None:
    calls = [(path, c) for path in SOURCE.rglob("*.py") for c in opened_as_text(ast.parse(path.read_text("utf-8")))]
    assert len(calls) >= 15
    without = [f"{path}:{call.lineno}" for path, call in calls if "encoding" not in [k.arg for k in call.keywords]]
    assert without == []
