"""Run directories of somebody else, or damaged so that they still parse: one line each, in bounded time."""

from __future__ import annotations

import io
import json
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from budgetnet.errors import UsageError
from budgetnet.reports.page import page
from budgetnet.reports.report import write_text_of_report
from budgetnet.runs.directory import RunDirectory, find_run_directories
from src.report import main

MakeRun = Callable[..., Path]


def change(name: str, **values: Any) -> Callable[[Path], None]:
    def changed(path: Path) -> None:
        entries = json.loads((path / name).read_text())
        (path / name).write_text(json.dumps(entries | values))

    return changed


def text(name: str, written: str) -> Callable[[Path], None]:
    return lambda path: (path / name).write_text(written) and None


def first_round(**values: Any) -> Callable[[Path], None]:
    def changed(path: Path) -> None:
        first, *others = (path / "growth.jsonl").read_text().splitlines()
        lines = [json.dumps({k: v for k, v in (json.loads(first) | values).items() if v != "gone"}), *others]
        (path / "growth.jsonl").write_text("\n".join(lines) + "\n")

    return changed


def cell(column: str, value: str) -> Callable[[Path], None]:
    def changed(path: Path) -> None:
        header, first, *others = (path / "metrics.csv").read_text().splitlines()
        cells = first.split(",")
        cells[header.split(",").index(column)] = value
        (path / "metrics.csv").write_text("\n".join([header, ",".join(cells), *others]) + "\n")

    return changed


DEEP = "[" * 5000 + "]" * 5000
BOMB = "a: &a [1, 1]\n" + "".join(
    f"{b}: &{b} [*{a}, *{a}]\n" for a, b in zip("abcdefghijklmnopqrstuvwxy", "bcdefghijklmnopqrstuvwxyz")
)
DAMAGES: dict[str, Callable[[Path], None]] = {
    "a config with references": text("config.yaml", BOMB),
    "a deep config": text("config.yaml", f"a: {DEEP}"),
    "a config of a list": text("config.yaml", "[1, 2]"),
    "a config of another seed": text("config.yaml", "seed: abc"),
    "a deep summary": text("summary.json", f'{{"format": 1, "widths": {DEEP}}}'),
    "a summary of a list": text("summary.json", "[1]"),
    "text for a number": change("summary.json", flops="many"),
    "nan for a number": change("summary.json", params=float("nan")),
    "null for what every run has": change("summary.json", best_epoch=None),
    "a huge number": change("summary.json", flops=10**400),
    "widths of text": change("summary.json", widths={"conv1": "wide"}),
    "widths that are null": change("summary.json", widths=None),
    "a budget without its limit": change("summary.json", budget={"flops": {"used": 1}}),
    "a metric without a name": change("task.json", metrics=[{"title": "accuracy"}]),
    "a metric of numbers": change("task.json", metrics=[{"name": 1, "title": 2}]),
    "no metric": change("task.json", metrics=[]),
    "a round without its plan": first_round(plan="gone"),
    "a plan of numbers": first_round(plan={"conv1": 3}),
    "a round of text": first_round(round="one"),
    "text in a column of numbers": cell("flops", "many"),
    "infinite costs": cell("flops", "inf"),
    "an epoch without its number": cell("epoch", ""),
    "other columns": text("metrics.csv", "a,b\n1,2\n1,2\n"),
    "a lost table": lambda path: (path / "metrics.csv").unlink(),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_that_still_parses_is_one_line_in_bounded_time(
    damage: str, make_run: MakeRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, begin = make_run(), time.process_time()
    DAMAGES[damage](run)
    with pytest.raises(UsageError, match="is damaged: ") as found:
        (read,) = find_run_directories([run.parent])
        page([read])
        write_text_of_report(read.path)
    assert len(str(found.value).splitlines()) == 1
    assert time.process_time() - begin < 5
    assert main([str(run.parent), "--out", str(tmp_path / "report")]) in (0, 2)  # the table needs less
    assert "Traceback" not in capsys.readouterr().err


def test_nothing_that_was_saved_is_resolved_again(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "of the reader")
    run = make_run()
    (run / "config.yaml").write_text("seed: 1\nmethod: ${oc.env:SECRET}\nbackbone: ${oc.env:HOME}\ndataset: d\n")
    (run / "summary.json").unlink()
    read = RunDirectory(run)
    assert read.config["method"] == "${oc.env:SECRET}"
    assert "of the reader" not in page([read])


def test_arrays_that_would_fill_the_memory_are_not_unpacked(make_run: MakeRun) -> None:
    run = make_run()
    contents = io.BytesIO()
    np.save(contents, np.zeros(1))
    with zipfile.ZipFile(run / "examples.npz", "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("input.npy", contents.getvalue())
        packed.writestr("0.npy", bytes(60 * 2**20))
        packed.filelist += [packed.getinfo("0.npy")] * 19  # the same bytes, unpacked twenty times
    with pytest.raises(UsageError, match=r"examples.npz is damaged: its arrays take more than"):
        _ = RunDirectory(run).examples


def test_scores_that_are_not_finite_are_read(make_run: MakeRun) -> None:
    run = make_run()
    cell("val_top1", "inf")(run)
    change("summary.json", test_top1_last=float("nan"))(run)
    assert RunDirectory(run).metrics[0]["val_top1"] == float("inf") and RunDirectory(run).summary


def test_a_name_that_is_no_formula_costs_the_figure_alone(
    make_run: MakeRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(backbone=r"$\nonsense{$")
    assert main([str(run), "--out", str(tmp_path / "out"), "--html", str(tmp_path / "page.html")]) == 0
    assert (tmp_path / "out" / "table.md").exists() and (tmp_path / "page.html").exists()
    assert "Traceback" not in capsys.readouterr().err
