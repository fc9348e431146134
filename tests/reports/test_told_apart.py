"""Runs in a table are called by the overrides in which they differ."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from budgetnet.reports.rows import final_row
from budgetnet.reports.tables import as_markdown
from budgetnet.reports.told_apart import overrides_of, told_apart
from budgetnet.runs.directory import RunDirectory

MakeRun = Callable[..., Path]


def test_overrides_that_have_a_column_or_no_effect_are_not_named() -> None:
    command = (
        "budgetnet -m method=l1 backbone=vgg16 dataset=digits seed=0 'dataset.mean=[0.1, 0.2]' optim.lr=0.1 logger=csv "
        "run.root=x +experiment=demo hydra/launcher=basic"
    )
    assert overrides_of(command) == ("dataset.mean=[0.1, 0.2]", "optim.lr=0.1")
    assert overrides_of(None) == overrides_of("a 'quote") == ()


def test_a_run_that_was_given_a_name_keeps_it() -> None:
    overrides = [("a=1", "b=1"), ("a=1", "b=2", "c=3"), ("a=1", "b=2")]
    assert told_apart(["a=1,b=1", "cut-1234=", "mine"], overrides) == ["b=1", "b=2, c=3", "mine"]
    assert told_apart(["a=1,b=1"], overrides[:1]) == ["a=1,b=1"]


def test_the_table_has_what_differs_in_place_of_names_that_are_cut_short(make_run: MakeRun) -> None:
    rows = [final_row(RunDirectory(make_run(name))) for name in ("a", "b")]
    named = [
        replace(row, name=f"dataset.augment.padding=1-{row.name}", overrides=("epochs=3", f"optim.lr={lr}"))
        for row, lr in zip(rows, (0.1, 0.2), strict=True)
    ]
    lines = as_markdown(named).splitlines()[2:4]
    assert [line.split("|")[1].strip() for line in lines] == ["optim.lr=0.1", "optim.lr=0.2"]
