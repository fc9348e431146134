from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from budgetnet.errors import UsageError
from budgetnet.reports.report import write_report, write_text_of_report
from src.report import main

MakeRun = Callable[..., Path]
ROOT = Path(__file__).parents[2]


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, env=env, capture_output=True, text=True)


def test_the_report_shows_every_figure_it_wrote(make_run: MakeRun) -> None:
    run = make_run()
    report = write_report(run)
    assert report == run / "report.md"
    shown = re.findall(r"!\[.*?\]\((.*?)\)", report.read_text())
    written = sorted(str(path.relative_to(run)) for path in (run / "figures").glob("*.png"))
    assert sorted(shown) == written
    assert len(written) == 5
    assert all((run / figure).with_suffix(".pdf").stat().st_size for figure in written)
    for figure in written:
        with Image.open(run / figure) as image:
            assert image.format == "PNG"
            assert image.width == 1200
            assert len(image.convert("L").getcolors() or ()) > 50


@pytest.mark.usefixtures("not_drawn")
def test_the_report_holds_command_widths_rounds_and_origin(make_run: MakeRun) -> None:
    run = make_run()
    text = write_report(run).read_text()
    summary = json.loads((run / "summary.json").read_text())
    assert f"    {summary['command']}\n" in text
    for name, width in summary["widths"].items():
        full = summary["full_widths"][name]
        assert f"| {name} | 8 | {width} | {full} | {100 * width / full:.0f} % |" in text
    for record in map(json.loads, (run / "growth.jsonl").read_text().splitlines()):
        grew = ", ".join(f"{name} {old}→{new}" for name, (old, new) in record["plan"].items())
        assert f"| {record['round']} | {record['epoch']} | {grew} |" in text
    assert f"epoch {summary['best_epoch']} of 20" in text
    assert "| torch | 2.13.0 |" in text
    assert str(run.parent) not in text


def test_no_value_of_a_run_is_markup_in_its_report(make_run: MakeRun) -> None:
    run = make_run("<img src=x>")
    summary = json.loads((run / "summary.json").read_text())
    summary |= {"warnings": ["<script>1</script>\n<b>2</b>"], "command": "one\n\n<i>two</i>"}
    summary["versions"] = {"<s>torch": "2|3\n\n<p>"}
    (run / "summary.json").write_text(json.dumps(summary))
    text = write_text_of_report(run).read_text()
    assert [line for line in text.splitlines() if "<" in line] == ["    one  <i>two</i>"]  # a block of code
    assert "* &lt;script>1&lt;/script> &lt;b>2&lt;/b>\n" in text and "| &lt;s>torch | 2\\|3  &lt;p> |" in text


@pytest.mark.usefixtures("not_drawn")
def test_a_round_of_many_groups_is_summed_up(make_run: MakeRun) -> None:
    names = [f"layer{depth}" for depth in range(31)]
    run = make_run(names=names, full=[16] * 31, rounds=1, epochs_per_round=1, finetune=1)
    plan = json.loads((run / "growth.jsonl").read_text())["plan"]
    text = write_report(run).read_text()
    assert len(plan) > 6
    assert f"{len(plan)} of 31 groups, {4 * len(plan):+d} channels in all; most: " in text


@pytest.mark.usefixtures("not_drawn")
def test_an_unfinished_run_has_a_report_that_says_so(make_run: MakeRun) -> None:
    text = write_report(make_run(finished=False)).read_text()
    assert "**Unfinished**: read after epoch 19" in text
    assert "## Growth rounds" in text


@pytest.mark.usefixtures("not_drawn")
def test_a_run_that_never_grows_has_no_figures_of_growth(make_run: MakeRun) -> None:
    run = make_run(method="train")
    text = write_report(run).read_text()
    assert sorted(path.name for path in (run / "figures").glob("*.png")) == [
        "accuracy_against_train_cost.png",
        "learning_curves.png",
        "widths.png",
    ]
    assert "## Growth rounds" not in text


@pytest.mark.usefixtures("not_drawn")
def test_a_run_without_validation_says_that_nothing_was_held_out(make_run: MakeRun) -> None:
    run = make_run()
    summary = json.loads((run / "summary.json").read_text())
    (run / "summary.json").write_text(json.dumps(summary | {"val_top1": None, "best_epoch": 20}))
    lines = [line.split(",") for line in (run / "metrics.csv").read_text().splitlines()]
    column = lines[0].index("val_top1")
    for line in lines[1:]:
        line[column] = ""
    (run / "metrics.csv").write_text("".join(",".join(line) + "\n" for line in lines))
    assert "epoch 20 of 20, the last: nothing was held out for validation" in write_report(run).read_text()


@pytest.mark.usefixtures("not_drawn")
def test_a_report_written_twice_is_the_same(make_run: MakeRun) -> None:
    run = make_run()
    first = write_report(run).read_bytes()
    assert write_report(run).read_bytes() == first


def test_no_report_is_written_outside_a_run_directory(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is not a run directory"):
        write_report(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_command_line_writes_table_csv_and_figure(
    make_run: MakeRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed in range(2):
        make_run(f"runs/s{seed}", seed=seed)
    make_run("runs/killed", seed=2, finished=False)
    out = tmp_path / "out"
    assert main([str(tmp_path / "runs"), "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "unfinished, epoch 19" in printed
    assert "mean ± std" in printed
    assert sorted(path.name for path in out.iterdir()) == ["accuracy_against_cost.png", "runs.csv", "table.md"]
    assert len((out / "runs.csv").read_text().splitlines()) == 4
    assert "| s1 | adenel |" in (out / "table.md").read_text()


def test_a_damaged_run_is_left_out_and_said_to_be(
    make_run: MakeRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run("runs/good")
    (make_run("runs/bad", seed=1) / "summary.json").write_text("")
    out = tmp_path / "out"
    assert main([str(tmp_path / "runs"), "--out", str(out), "--html", str(tmp_path / "page.html")]) == 1
    said = capsys.readouterr().err
    assert said.startswith("warning: left out: ") and "bad" in said and len(said.splitlines()) == 1
    assert len((out / "runs.csv").read_text().splitlines()) == 2 and (tmp_path / "page.html").is_file()


def test_the_command_line_refuses_a_path_without_runs_in_one_line(tmp_path: Path) -> None:
    done = python("-m", "src.report", str(tmp_path), "--out", str(tmp_path / "out"))
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert f"{tmp_path} holds no run directory" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_an_output_folder_that_cannot_be_written_is_one_line(
    make_run: MakeRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run()
    (tmp_path / "file").write_text("")
    assert main([str(run), "--out", str(tmp_path / "file")]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_the_table_is_printed_without_loading_matplotlib() -> None:
    assert python("-c", "import sys, src.report; sys.exit('matplotlib' in sys.modules)").returncode == 0
