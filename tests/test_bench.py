"""The benchmark compares the same work, and its pages say what it computes. Nothing here is timed."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from budgetnet.errors import UsageError
from experiments.bench import images, scaling, table, training
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


def test_the_committed_table_is_that_of_the_committed_figures_and_no_row_of_a_cpu_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures = [figure for file in table.RESULTS.glob("*.csv") for figure in table.read(file)]
    for column in {figure.column for figure in figures if figure.device == "cpu"}:
        rows = {figure.row for figure in figures if figure.column == column}
        assert rows == {measure.name for measure in MEASURES if measure.cpu is not None}
    shutil.copytree(table.RESULTS, tmp_path / "results")
    monkeypatch.setattr(table, "RESULTS", tmp_path / "results")
    committed = (tmp_path / "results" / "table.md").read_text()
    table.show()
    assert (tmp_path / "results" / "table.md").read_text() == committed


def test_figures_of_other_threads_stand_in_a_column_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(table, "RESULTS", tmp_path / "results")
    for threads, value in ((1, 1.0), (2, 2.0), (1, 3.0)):
        table.add(table.Figure.of(MEASURES[0], [value], CPU, threads))
    (file,) = table.RESULTS.glob("*.csv")
    assert [(figure.threads, figure.median) for figure in table.read(file)] == [(1, 3.0), (2, 2.0)]


def test_a_missing_sample_is_an_error_and_no_figure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "ROOT", tmp_path)
    with pytest.raises(UsageError, match="holds 0 of the 133"):
        images.folder_pipeline(1)


@pytest.mark.soak
def test_the_lbi_share_is_that_of_the_full_resnet20(data_root: Path) -> None:
    (percent,) = training.lbi_share(CPU, 1)  # raises for another network
    assert 0 < percent < 100


def test_widths_in_multiples_of_8_are_within_the_same_flops() -> None:
    eights, ones = training.multiples_of(8), training.multiples_of(1)
    convolutions = [name for name in eights if name.startswith("conv")]
    assert len(convolutions) == 13 and all(eights[name] % 8 == 0 for name in convolutions)
    assert any(ones[name] % 8 for name in convolutions)


def test_the_readme_holds_the_tables_of_the_scaling_model() -> None:
    readme = (Path(scaling.__file__).parent / "README.md").read_text()
    for part in scaling.tables(scaling.Machine()).split("\n\n"):
        assert part.strip() in readme
