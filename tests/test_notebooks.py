"""The notebooks run from top to bottom. `python tests/test_notebooks.py` (make notebooks) executes them in place."""

from __future__ import annotations

import base64
import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
LARGEST_PICTURE = 100_000
CELL_SECONDS = 300  # many times what any takes
SHORTER = {  # the same cells with fewer epochs: what the tests state does not depend on their number
    "01": [("finetune.epochs=12", "finetune.epochs=2")],
    "02": [("train_epochs(6)", "train_epochs(1)"), ("finetune.epochs=6", "finetune.epochs=1")],
    "03": [
        (
            "epochs=12 growth.epochs_per_round=2 finetune.epochs=6",
            "epochs=6 growth.epochs_per_round=1 finetune.epochs=2",
        ),
    ],
}


def execute(path: Path, changes: Sequence[tuple[str, str]] = ()) -> Any:
    """The notebook at `path`, executed from the root of the repository. Raises where a cell does.

    changes: texts of its cells and what is executed in their place.
    """
    notebook = nbformat.read(path, as_version=4)
    for old, new in changes:
        (cell,) = (cell for cell in notebook.cells if cell.cell_type == "code" and old in cell.source)
        cell.source = cell.source.replace(old, new)
    client = NotebookClient(
        notebook,
        timeout=CELL_SECONDS,
        kernel_name="python3",
        record_timing=False,  # what is written depends on the results alone
        coalesce_streams=True,
        resources={"metadata": {"path": str(ROOT)}},
    )
    client.execute(env={**os.environ, "OMP_NUM_THREADS": "1"})
    notebook.metadata["language_info"] = {"name": "python"}
    return notebook


def outputs(notebook: Any) -> list[Any]:
    return [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]


def printed(notebook: Any) -> str:
    """What the cells print, and what they return as text."""
    texts = []
    for output in outputs(notebook):
        data = output.get("data", {})
        texts.append(output.get("text") or data.get("text/markdown") or data.get("text/plain", ""))
    return "\n".join(texts)


def pictures(notebook: Any) -> list[bytes]:
    """The PNG files that the cells show."""
    shown = [output["data"]["image/png"] for output in outputs(notebook) if "image/png" in output.get("data", {})]
    return [base64.b64decode(picture) for picture in shown]


def numbers(pattern: str, text: str) -> list[tuple[int, ...]]:
    """The groups of every match of `pattern`, which are numbers such as 312,120."""
    found = [match.groups() for match in re.finditer(pattern, text)]
    return [tuple(int(number.replace(",", "")) for number in groups) for groups in found]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Executes a copy of the notebook whose name starts with a number, shorter; what it writes goes below tmp_path."""
    for variable in ("TMPDIR", "IPYTHONDIR", "JUPYTER_RUNTIME_DIR"):
        monkeypatch.setenv(variable, str(tmp_path))

    def run_copy(number: str) -> str:
        (path,) = (path for path in NOTEBOOKS if path.name.startswith(number))
        text = printed(execute(Path(shutil.copy(path, tmp_path)), SHORTER[number]))
        assert str(tmp_path) not in text and str(ROOT) not in text
        return text

    return run_copy


def test_the_first_notebook_ends_within_its_budget_and_onnxruntime_repeats_the_accuracy_of_the_table(run: Any) -> None:
    text = run("01")
    ((limit,),) = numbers(r"budget +([\d,]+)\n", text)
    ((used, stated),) = numbers(r"FLOPs: ([\d,]+) of ([\d,]+)", text)
    assert used <= stated == limit == 416_520 * 3 // 4
    (exported,) = re.findall(r"onnxruntime on 360 test images: +([\d.]+) %", text)
    (table,) = re.findall(r"the run's own table: +([\d.]+) %", text)
    assert exported == table


def test_the_second_notebook_proves_every_width_group_and_grows_within_the_budget_by_hand_and_by_command(
    run: Any,
) -> None:
    text = run("02")
    assert text.count("'function kept'") == text.count("WidthGroup(") == 4
    ((limit,),) = numbers(r"limit +([\d,]+) FLOPs", text)
    ((by_hand, stated), (by_command, stated_too)) = numbers(r"\}: ([\d,]+) of ([\d,]+) FLOPs", text)
    assert stated == stated_too == limit
    ((seed,),) = numbers(r"seed +([\d,]+) FLOPs", text)
    assert seed < by_hand <= limit and seed < by_command <= limit


def test_the_third_notebook_has_six_runs_within_their_budgets_and_selects_from_the_front(run: Any) -> None:
    text = run("03")
    rows = re.findall(r"^\| (adenel|width) \| ([\d,]+) \| ([\d.]+) % \|", text, re.MULTILINE)
    runs, front = rows[:6], rows[6:]
    assert [method for method, _, _ in sorted(runs)] == ["adenel"] * 3 + ["width"] * 3
    assert all(float(percent) <= 100 for _, _, percent in runs)
    assert front and set(front) <= set(runs)
    chosen = re.findall(r"limit ([\d,]+) FLOPs: (\w+) with ([\d,]+),", text)
    assert len(chosen) == 3
    for limit, method, flops in chosen:
        assert (method, flops) in [row[:2] for row in front]
        assert int(flops.replace(",", "")) <= int(limit.replace(",", ""))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_kept_executed_with_small_pictures_and_without_a_path_of_the_machine(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    counts = [cell.execution_count for cell in notebook.cells if cell.cell_type == "code"]
    assert counts == [*range(1, len(counts) + 1)]
    assert all(output.output_type != "error" and output.get("name") != "stderr" for output in outputs(notebook))
    assert not re.search(r"(?<![\w.:/])/(home|root|tmp|usr|opt|Users|var|mnt)/", printed(notebook))
    assert pictures(notebook) and all(len(picture) <= LARGEST_PICTURE for picture in pictures(notebook))


if __name__ == "__main__":
    for path in NOTEBOOKS:
        nbformat.write(execute(path), path)
        print(path.relative_to(ROOT))
