"""What a page of runs holds."""

from __future__ import annotations

import base64
import csv
import gzip
import io
import json
import re
from html import unescape
from pathlib import Path

import pytest
from pages import EVIL, Elements, MakeRun, data_of

from budgetnet.reports import drawing
from budgetnet.reports.comparison import pareto_front
from budgetnet.reports.page import page
from budgetnet.reports.rows import final_row
from budgetnet.reports.tables import as_csv, cells, header
from budgetnet.runs.directory import RunDirectory
from src.report import main


def test_the_page_refers_to_nothing_outside_it(several: list[RunDirectory]) -> None:
    text = page(several)
    assert not re.search(r"https?:|@import|url\(", text)
    elements = Elements(text)
    for tag, attributes in elements.tags:
        assert tag not in ("link", "img", "iframe", "object", "embed", "base")
        assert "src" not in attributes
        assert (attributes.get("href") or "#").startswith("#")
    policy = next(attributes["content"] for _, attributes in elements.tags if "http-equiv" in attributes)
    assert policy is not None
    assert policy.startswith("default-src 'none';")


def test_plotly_stands_in_the_page_as_it_was_released(several: list[RunDirectory]) -> None:
    from plotly.offline import get_plotlyjs

    packed = Elements(page(several)).scripts["plotly"]
    assert gzip.decompress(base64.b64decode(packed)).decode() == get_plotlyjs()


def test_the_page_holds_every_number_of_runs_csv(several: list[RunDirectory]) -> None:
    runs = data_of(page(several))["runs"]
    lines = list(csv.DictReader(io.StringIO(as_csv([final_row(run) for run in several]))))
    assert len(lines) == len(runs) == 6
    for line, run in zip(lines, runs, strict=True):
        known = {name: "" if value is None else str(value) for name, value in run.items()}
        assert line == {name: known.get(name, "") for name in line}


def test_the_pages_table_is_the_reports(several: list[RunDirectory]) -> None:
    rows = [final_row(run) for run in several]
    assert Elements(page(several)).lines == [list(header(rows)), *cells(rows)]


def test_names_are_text_not_markup(several: list[RunDirectory]) -> None:
    text = page(several)
    assert EVIL not in text
    elements = Elements(text)
    assert "b" not in [tag for tag, _ in elements.tags]
    assert [tag for tag, _ in elements.tags].count("script") == 4
    assert elements.lines[-1][:3] == ["<b>&'bold\"", "adenel", EVIL]
    assert data_of(text)["runs"][-1]["path"]["names"] == ["<i>1", "a&b", 'c"d']


def test_no_value_of_any_file_is_markup_in_the_page(poisoned_runs: list[RunDirectory]) -> None:
    elements = Elements(page(poisoned_runs))
    assert {name for _, attributes in elements.tags for name in attributes if name.startswith("on")} == set()
    assert [tag for tag, _ in elements.tags].count("script") == 4 and "img" not in [tag for tag, _ in elements.tags]


def test_only_the_scripts_of_the_page_may_run(several: list[RunDirectory]) -> None:
    text = page(several)
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', text)
    policy = unescape(policy)
    assert "default-src 'none'" in policy and "script-src 'sha256-" in policy
    assert not re.search(r"script-src[^;]*unsafe", policy) and policy.count("'sha256-") == 3


def test_panels_show_test_accuracy_on_the_front_that_validation_selects(make_run: MakeRun) -> None:
    runs = [RunDirectory(make_run(f"r{ratio}", ratio=ratio)) for ratio in (0.2, 0.4, 0.6, 0.8)]
    # The best on the test set is the worst on validation: it must not be selected.
    summary = json.loads((runs[2].path / "summary.json").read_text())
    (runs[2].path / "summary.json").write_text(json.dumps(summary | {"test_top1": 99.9, "val_top1": 1.0}))
    rows = [final_row(run) for run in runs]
    panels = data_of(page(runs))["panels"]
    assert [panel["label"] for panel in panels] == ["FLOPs", "params", "train cost (FLOPs)"]
    for panel in panels:
        costs, tests = ([row.number(name) or 0.0 for row in rows] for name in (panel["cost"], panel["score"]))
        assert [(point["x"], point["y"]) for point in panel["points"]] == list(zip(costs, tests, strict=True))
        selected = pareto_front(costs, [row.number("val_top1") or 0.0 for row in rows])
        assert 2 not in selected
        assert panel["front"]["y"] == [tests[index] for index in selected]


def test_a_runs_view_holds_its_growth(make_run: MakeRun) -> None:
    run = RunDirectory(make_run())
    summary = run.summary or {}
    shown = data_of(page([run]))["runs"][0]
    names, sizes = shown["path"]["names"], shown["sizes"]
    assert dict(zip(names, sizes["final"], strict=True)) == summary["widths"]
    assert dict(zip(names, sizes["seed"], strict=True)) == summary["seed_widths"]
    assert dict(zip(names, sizes["full"], strict=True)) == summary["full_widths"]
    assert shown["path"]["epochs"] == [time for time, _ in run.widths()]
    assert shown["path"]["sizes"] == [[at[name] for _, at in run.widths()] for name in names]
    assert not shown["deep"]
    assert shown["phases"] == [["grow", 0, 12], ["finetune", 12, 20]]
    for name, values in zip(shown["saturation"]["names"], shown["saturation"]["values"], strict=True):
        assert values == [round(row[name], 2) for row in run.saturation]
    assert shown["command"] == summary["command"]
    assert shown["stop_reason"] == "flops"


def test_a_page_of_unfinished_runs_has_no_panel_but_every_row(make_run: MakeRun) -> None:
    runs = [RunDirectory(make_run(f"s{seed}", seed=seed, finished=False)) for seed in range(2)]
    data = data_of(page(runs))
    assert data["panels"] == []
    assert [run["command"] for run in data["runs"]] == [None, None]


def test_colours_are_those_of_the_other_figures(make_run: MakeRun) -> None:
    colours = data_of(page([RunDirectory(make_run())]))["colours"]
    assert colours["series"] == list(drawing.COLOURS)
    assert colours["phases"] == {name: list(shown) for name, shown in drawing.PHASES.items()}


def test_a_number_that_json_cannot_write_is_shown_as_unknown(make_run: MakeRun) -> None:
    path = make_run()
    summary = json.loads((path / "summary.json").read_text())
    (path / "summary.json").write_text(json.dumps(summary | {"test_top1_last": float("nan")}))
    assert data_of(page([RunDirectory(path)]))["runs"][0]["test_top1_last"] is None


def test_the_same_runs_give_the_same_page(several: list[RunDirectory]) -> None:
    again = [RunDirectory(run.path) for run in several]
    assert page(several) == page(again)


def test_two_hundred_runs_take_less_than_six_megabytes(make_run: MakeRun) -> None:
    names = [f"layer{depth}" for depth in range(19)]
    run = make_run(names=names, full=[64] * 19, rounds=8, epochs_per_round=10, finetune=80)
    text = page([RunDirectory(run)] * 200)
    assert len(data_of(text)["runs"]) == 200
    assert len(text.encode()) < 6_000_000


def test_html_writes_the_page_beside_the_report(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run()
    file = tmp_path / "page.html"
    assert main([str(run), "--out", str(tmp_path / "out"), "--html", str(file)]) == 0
    assert file.read_text(encoding="utf-8") == page([RunDirectory(run)])


def test_html_into_a_missing_folder_is_one_line_and_exit_code_2(
    make_run: MakeRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "missing" / "page.html"
    assert main([str(make_run()), "--out", str(tmp_path / "out"), "--html", str(file)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: --html {file}: cannot be written (No such file or directory); choose a file in a")
    assert error.count("\n") == 1
