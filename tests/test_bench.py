"""The benchmark compares the same work, and its pages say what it computes. Nothing here is timed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from experiments.bench import scaling, table, training
from experiments.bench.measures import MEASURES

DIGITS = ("backbone=lenet5", "dataset=digits", "growth.seed_width=4", "dataset.limit_train=320", "optim.lr=0.02")
CPU = torch.device("cpu")


def test_the_trainer_learns_the_bits_of_the_loop_written_by_hand() -> None:
    assert len(training.epoch_against_bare_loop(CPU, 2, *DIGITS)) == 2


def test_a_loop_that_learns_something_else_fails_the_row() -> None:
    with pytest.raises(RuntimeError, match="different weights"):
        training.epoch_against_bare_loop(CPU, 1, *DIGITS, "trainer.micro_batches=3")  # another order of summation


def test_a_figure_replaces_the_one_of_its_row_and_gpus_have_a_column_before_there_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(table, "RESULTS", tmp_path / "results")
    first, second = MEASURES[:2]
    for measure, values in ((second, [1.0]), (first, [2.0]), (first, [1.01, 1.04, 1.02])):
        table.add(table.Figure.of(measure, values, CPU, 1))
    (file,) = table.RESULTS.glob("*.csv")
    assert [(figure.row, figure.median, figure.n) for figure in table.read(file)] == [
        (first.name, 1.02, 3),
        (second.name, 1.0, 1),
    ]
    table.show()
    lines = (table.RESULTS / "table.md").read_text().splitlines()
    assert lines[0].endswith("| target, GPU | GPU |") and len(lines) == 2 + len(MEASURES)
    assert "| ≤ 1.05 | 1.02 (1.01 to 1.04, n = 3) | ≤ 1.1 | not measured |" in lines[2]


def test_the_committed_figures_are_of_rows_that_are_measured() -> None:
    names = {measure.name for measure in MEASURES}
    files = list(table.RESULTS.glob("*.csv"))
    assert files and all(figure.row in names for file in files for figure in table.read(file))


def test_the_readme_holds_the_tables_of_the_scaling_model() -> None:
    readme = (Path(scaling.__file__).parent / "README.md").read_text()
    for part in scaling.tables(scaling.Machine()).split("\n\n"):
        assert part.strip() in readme
