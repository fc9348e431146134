"""The notebooks run from top to bottom."""

from __future__ import annotations

import base64
import re
from pathlib import Path
from typing import Any

import nbformat
import pytest
from commands import run as run_command
from notebook_runner import NOTEBOOKS, ROOT
from shim import Shim

LARGEST_PICTURE = 100_000


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
def run(tmp_path: Path) -> Any:
    """What a shorter notebook prints; whatever it writes goes below tmp_path. Its kernel and its commands are forks."""
    places = dict.fromkeys(("TMPDIR", "IPYTHONDIR", "JUPYTER_RUNTIME_DIR"), str(tmp_path))
    variables = {**places, "EXECUTABLE": str(tmp_path / "bin" / "python")}

    def printed_by(number: str, figures: bool = False) -> str:
        done = run_command(
            number, str(tmp_path), module="tests.notebook_runner", before=Shim(tmp_path / "bin"), variables=variables,
            others=1, figures=figures,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        (executed,) = tmp_path.glob("*.ipynb")
        text = printed(nbformat.read(executed, as_version=4))
        assert str(tmp_path) not in text and str(ROOT) not in text
        return text

    return printed_by


@pytest.mark.soak  # the demo is run, exported and computed by onnxruntime in integration/test_demo.py
def test_the_first_notebook_ends_within_its_budget_and_onnxruntime_repeats_the_accuracy_of_the_table(run: Any) -> None:
    text = run("01", figures=True)
    ((limit,),) = numbers(r"budget +([\d,]+)\n", text)
    ((used, stated),) = numbers(r"FLOPs: ([\d,]+) of ([\d,]+)", text)
    assert used <= stated == limit == 416_520 * 3 // 4
    (exported,) = re.findall(r"onnxruntime on 360 test images: +([\d.]+) %", text)
    (table,) = re.findall(r"the run's own table: +([\d.]+) %", text)
    assert exported == table


@pytest.mark.soak  # docs/extending.md, which is run too, does the same by hand
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


@pytest.mark.soak  # it runs a sweep as the tests of sweeps do
def test_the_third_notebook_has_six_runs_within_their_budgets_and_selects_from_the_front(run: Any) -> None:
    text = run("03", figures=True)
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


@pytest.mark.soak  # integration/test_own_pictures.py and test_going_on.py state the same of runs of their own
def test_the_fourth_notebook_names_pictures_alike_with_and_without_the_package_and_goes_on(run: Any) -> None:
    text = run("04")
    ((used, limit),) = numbers(r"FLOPs +([\d,]+) of ([\d,]+)", text)
    assert used <= limit
    loaded = re.findall(r"^my_pictures/(\w+)/0.jpg \[\('(\w+)', ([\d.]+)\)", text, re.MULTILINE)
    alone = re.findall(r"^my_pictures/(\w+)/0.jpg: (\w+) ([\d.]+) %", text, re.MULTILINE)[::2]
    assert [place for place, _, _ in loaded] == ["china", "flower"]
    for (place, name, share), (place_too, name_too, percent) in zip(loaded, alone, strict=True):
        assert (place, name) == (place_too, name_too) and abs(float(share) - float(percent) / 100) < 0.006
    costs = dict(re.findall(r"^(\w+) +([\d,]+) FLOPs, ", text, re.MULTILINE))
    assert costs.keys() == {"grown", "larger", "full", "pruned"}
    assert "| started from | runs/default/grown |" in text


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_kept_executed_with_small_pictures_and_without_a_path_of_the_machine(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    counts = [cell.execution_count for cell in notebook.cells if cell.cell_type == "code"]
    assert counts == [*range(1, len(counts) + 1)]
    assert all(output.output_type != "error" and output.get("name") != "stderr" for output in outputs(notebook))
    assert not re.search(r"(?<![\w.:/])/(home|root|tmp|usr|opt|Users|var|mnt)/", printed(notebook))
    assert pictures(notebook) and all(len(picture) <= LARGEST_PICTURE for picture in pictures(notebook))
