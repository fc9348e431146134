from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from budgetnet.costs.budget import format_quantity
from budgetnet.reports.rows import final_row, repetitions
from budgetnet.reports.tables import as_csv, as_markdown, cells, header, print_table
from budgetnet.runs.directory import RunDirectory

MakeRun = Callable[..., Path]


def test_the_tables_numbers_are_the_summarys(make_run: MakeRun) -> None:
    path = make_run()
    summary = json.loads((path / "summary.json").read_text())
    row = final_row(RunDirectory(path))
    for name in (
        "name", "method", "backbone", "dataset", "seed", "epochs", "test_top1", "test_top1_last", "val_top1", "params",
        "flops", "macs", "train_cost_flops", "train_cost_baseline_percent", "train_cost_final_percent", "stop_reason",
    ):  # fmt: skip
        value = row.number(name) if name in row.scores else getattr(row, name)
        assert value == summary[name], name
    line = dict(zip(header([row]), cells([row])[0], strict=True))
    assert line == {
        "Run": "run",
        "Method": "adenel",
        "Backbone": "lenet",
        "Dataset": "mnist",
        "Seed": "0",
        "Test top-1 %": f"{summary['test_top1']:.2f}",
        "last epoch %": f"{summary['test_top1_last']:.2f}",
        "Params": format_quantity(summary["params"]),
        "FLOPs": format_quantity(summary["flops"]),
        "Budget used": f"flops {summary['budget']['flops']['percent']:.1f}%",
        "Train cost (a) %": f"{summary['train_cost_baseline_percent']:.2f}",
        "(b) %": f"{summary['train_cost_final_percent']:.2f}",
        "Stop reason": "flops",
    }


def test_an_unfinished_run_is_marked_and_shows_what_it_reached(make_run: MakeRun) -> None:
    run = RunDirectory(make_run(finished=False))
    row = final_row(run)
    assert not row.finished
    assert (row.name, row.method, row.backbone, row.seed) == ("run", "adenel", "lenet", 0)
    assert row.flops == run.metrics[-1]["flops"]
    assert row.number("val_top1") == max(run.column("val_top1"))
    line = dict(zip(header([row]), cells([row])[0], strict=True))
    assert line["Stop reason"] == "unfinished, epoch 19"
    assert line["Test top-1 %"] == line["(b) %"] == ""


def test_a_choice_written_as_a_section_gives_its_name(make_run: MakeRun) -> None:
    path = make_run(finished=False)
    config = json.loads((path / "config.yaml").read_text())
    (path / "config.yaml").write_text(json.dumps(config | {"backbone": {"name": "vgg16", "seed_width": 8}}))
    assert final_row(RunDirectory(path)).backbone == "vgg16"


def test_mean_and_deviation_over_seeds_are_numpys(make_run: MakeRun) -> None:
    rows = [final_row(RunDirectory(make_run(f"s{seed}", seed=seed))) for seed in range(4)]
    other = final_row(RunDirectory(make_run("other", seed=9, ratio=0.4)))
    unfinished = final_row(RunDirectory(make_run("killed", seed=7, finished=False)))
    groups = repetitions([rows[0], other, *rows[1:], unfinished])
    assert [[row.name for row in group.rows] for group in groups] == [["s0", "s1", "s2", "s3", "killed"], ["other"]]
    for measure in ("test_top1", "params", "train_cost_baseline_percent"):
        values = [row.number(measure) for row in rows]
        spread = groups[0].spread(measure)
        assert spread is not None
        assert spread.mean == pytest.approx(np.mean(values), rel=1e-12)
        assert spread.deviation == pytest.approx(np.std(values, ddof=1), rel=1e-12)
    alone = groups[1].spread("test_top1")
    assert alone == (other.number("test_top1"), 0.0)
    values = [row.number("test_top1") for row in rows]
    mean = [line for line in cells([*rows, other, unfinished]) if line[0] == "mean ± std"]
    assert [line[4] for line in mean] == ["4 seeds"]
    assert mean[0][5] == f"{np.mean(values):.2f} ± {np.std(values, ddof=1):.2f}"


def test_the_best_test_epoch_is_the_third_column_once_a_run_has_measured_it(make_run: MakeRun) -> None:
    measured = [final_row(RunDirectory(make_run(f"s{seed}", seed=seed, test_every_epoch=True))) for seed in range(2)]
    other = final_row(RunDirectory(make_run("other", ratio=0.4)))
    rows = [*measured, other]
    best = [row.number("test_top1_best") or 0.0 for row in measured]
    assert "best test epoch %" not in header([other])
    assert header(rows)[5:8] == ("Test top-1 %", "last epoch %", "best test epoch %")
    column = [line[7] for line in cells(rows)]
    assert column == [
        *(f"{value:.2f}" for value in best),
        f"{np.mean(best):.2f} ± {np.std(best, ddof=1):.2f}",
        "",
    ]
    assert [line["test_top1_best"] for line in csv.DictReader(io.StringIO(as_csv(rows)))] == [*map(str, best), ""]


def test_markdown_has_a_line_per_run_and_escapes_bars(make_run: MakeRun) -> None:
    rows = [final_row(RunDirectory(make_run(name, ratio=ratio))) for name, ratio in (("a|b", 0.5), ("c", 0.4))]
    lines = as_markdown(rows).splitlines()
    assert len(lines) == 4
    assert lines[2].startswith("| a\\|b | adenel | lenet ")


def test_csv_holds_every_number_in_full(make_run: MakeRun) -> None:
    rows = [final_row(RunDirectory(make_run("a"))), final_row(RunDirectory(make_run("b", finished=False)))]
    read = list(csv.DictReader(io.StringIO(as_csv(rows))))
    assert float(read[0]["test_top1"]) == rows[0].number("test_top1")
    assert int(read[0]["train_cost_flops"]) == rows[0].train_cost_flops
    assert float(read[0]["budget_flops_percent"]) == rows[0].budget["flops"]
    assert read[1]["finished"] == "False"
    assert "torch 2" in read[0]["versions"] and "device" in read[0]["hardware"] and not read[1]["hardware"]
    assert read[1]["test_top1"] == ""


def test_the_printed_table_says_once_what_all_runs_share(make_run: MakeRun, capsys: pytest.CaptureFixture[str]) -> None:
    print_table([final_row(RunDirectory(make_run(f"[s{seed}]", seed=seed))) for seed in range(2)])
    printed = capsys.readouterr().out
    assert "method adenel, backbone lenet, dataset mnist" in printed
    assert printed.count("adenel") == 1
    assert "[s0]" in printed
    assert "2 seeds" in printed
