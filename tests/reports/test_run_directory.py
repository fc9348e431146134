from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from budgetnet.errors import UsageError
from budgetnet.runs.directory import RunDirectory, find_run_directories

MakeRun = Callable[..., Path]


def test_every_file_is_read_with_its_numbers_parsed(make_run: MakeRun) -> None:
    path = make_run()
    run = RunDirectory(path)
    assert run.config["growth"]["threshold"] == 0.8
    assert run.summary == json.loads((path / "summary.json").read_text())
    assert run.rounds == [json.loads(line) for line in (path / "growth.jsonl").read_text().splitlines()]
    with open(path / "metrics.csv") as file:
        as_text = list(csv.DictReader(file))
    assert [row["epoch"] for row in run.metrics] == list(range(1, 21))
    assert [row["val_top1"] for row in run.metrics] == [float(row["val_top1"]) for row in as_text]
    assert run.column("phase") == ["grow"] * 12 + ["finetune"] * 8
    assert type(run.metrics[0]["flops"]) is int
    assert list(run.saturation[0]) == ["epoch", "round", "conv1", "conv2", "fc1"]
    assert len(run.saturation) == 12
    assert run.done


def test_an_empty_cell_is_none(make_run: MakeRun) -> None:
    path = make_run()
    (path / "metrics.csv").write_text("epoch,phase,val_top1\n1,grow,\n2,grow,50.5\n")
    assert RunDirectory(path).metrics == [
        {"epoch": 1, "phase": "grow", "val_top1": None},
        {"epoch": 2, "phase": "grow", "val_top1": 50.5},
    ]


def test_a_run_without_a_summary_is_read_as_far_as_it_got(make_run: MakeRun) -> None:
    run = RunDirectory(make_run(finished=False))
    assert run.summary is None
    assert not run.done
    assert len(run.metrics) == 19
    assert len(run.rounds) == 4


@pytest.mark.parametrize("file", ["metrics.csv", "saturation.csv", "growth.jsonl"])
def test_wherever_the_last_line_was_cut_off_only_it_is_lost(make_run: MakeRun, file: str) -> None:
    path = make_run(finished=False)
    text = (path / file).read_text()
    attribute = {"metrics.csv": "metrics", "saturation.csv": "saturation", "growth.jsonl": "rounds"}[file]
    whole = getattr(RunDirectory(path), attribute)
    last = text.rstrip("\n").rfind("\n") + 1
    for end in range(last, len(text) - 1, 7):
        (path / file).write_text(text[:end])
        assert getattr(RunDirectory(path), attribute) == whole[:-1]


def test_a_damaged_line_before_the_last_is_an_error_that_names_it(make_run: MakeRun) -> None:
    path = make_run()
    for file, attribute in (("metrics.csv", "metrics"), ("growth.jsonl", "rounds")):
        lines = (path / file).read_text().splitlines(keepends=True)
        (path / file).write_text("".join([*lines[:2], "1,\n", *lines[2:]]))
        with pytest.raises(UsageError, match=rf"{file} is damaged: line 3") as caught:
            getattr(RunDirectory(path), attribute)
        assert "\n" not in str(caught.value)


def test_a_damaged_summary_or_configuration_is_a_one_line_error(make_run: MakeRun) -> None:
    path = make_run()
    (path / "summary.json").write_text('{"format": 1,\n "name"')
    (path / "config.yaml").write_text("optim: {lr: [\nseed: 3")
    for attribute in ("summary", "config"):
        with pytest.raises(UsageError, match="is damaged") as caught:
            getattr(RunDirectory(path), attribute)
        assert "\n" not in str(caught.value)


def test_a_path_that_is_no_run_directory_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(UsageError, match="is not a run directory") as caught:
            RunDirectory(path)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)


def test_widths_start_with_the_seed_and_end_with_the_final_network(make_run: MakeRun) -> None:
    finished, unfinished = RunDirectory(make_run("a")), RunDirectory(make_run("b", finished=False))
    assert finished.summary is not None
    path = finished.widths()
    assert [epoch for epoch, _ in path] == [0, 3, 6, 9, 12]
    assert path[0][1] == finished.summary["seed_widths"]
    assert path[-1][1] == finished.summary["widths"]
    assert unfinished.widths()[0][1] == {"conv1": 8, "conv2": 8, "fc1": 8}
    assert RunDirectory(make_run("c", method="train")).widths() == [(0, {"conv1": 20, "conv2": 50, "fc1": 100})]


def test_run_directories_are_found_once_each_at_and_below_the_paths(make_run: MakeRun, tmp_path: Path) -> None:
    for name in ("a/x", "a/y", "b"):
        make_run(name)
    shutil.copytree(tmp_path / "b", tmp_path / "not_a_run")
    for name in ("metrics.csv", "summary.json"):
        (tmp_path / "not_a_run" / name).unlink()
    found = find_run_directories([tmp_path, tmp_path / "a", tmp_path / "b"])
    assert [str(run.path.relative_to(tmp_path)) for run in found] == ["a/x", "a/y", "b"]
    with pytest.raises(UsageError, match="not_a_run holds no run directory"):
        find_run_directories([tmp_path / "a", tmp_path / "not_a_run"])
