"""Learning curves, the accuracy of each class, and which classes are confused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from budgetnet.reports import drawing, learning
from budgetnet.reports.report import write_report
from budgetnet.runs.directory import RunDirectory
from budgetnet.runs.records import Records
from budgetnet.tasks import Classification
from budgetnet.tasks.multi_exit import MultiExit


def test_counts_of_a_batch_are_the_confusion_matrix_and_its_trace_the_right_answers() -> None:
    logits, targets = torch.randn(200, 5, generator=torch.Generator().manual_seed(0)), torch.arange(200) % 5
    task = Classification()
    counts = task.confusion(logits, targets)
    expected = torch.zeros(5, 5, dtype=torch.long)
    for true, said in zip(targets.tolist(), logits.argmax(1).tolist()):
        expected[true, said] += 1
    assert torch.equal(counts, expected) and counts.sum() == 200
    assert float(counts.trace()) / 2 == pytest.approx(task.compute(task.sums(logits, targets))["top1"])
    assert torch.equal(MultiExit(task, 2).confusion((logits.flip(1), logits), targets), expected)


def test_the_classes_and_the_pairs_that_are_confused_most_are_listed(
    make_run: Callable[..., Path], drawn_alone: Callable[..., None]
) -> None:
    path = make_run()
    drawn_alone("learning_curves", "confusion")
    counts = np.array([[8, 2, 0], [5, 5, 0], [0, 1, 9]])
    Records(path).confusion(counts, ["cat", "dog", "fish"])
    text = write_report(path).read_text()
    assert "| cat | 10 | 80.0 |" in text and "| dog | 10 | 50.0 |" in text
    first = text.index("| dog | cat | 5 | 50.0 |")
    assert first < text.index("| cat | dog | 2 | 20.0 |") < text.index("| fish | dog | 1 | 10.0 |")
    for name in ("learning_curves", "confusion"):
        assert (path / "figures" / f"{name}.png").stat().st_size and (path / "figures" / f"{name}.pdf").stat().st_size


def test_of_many_classes_the_worst_are_listed_and_no_matrix_is_drawn(make_run: Callable[..., Path]) -> None:
    path = make_run()
    counts = np.diag(np.full(30, 10))
    counts[7] = 0
    counts[7, 3] = 10
    Records(path).confusion(counts, [f"class {number}" for number in range(30)])
    run = RunDirectory(path)
    section = learning.classes_section(run)
    assert section.startswith("## The 10 worst of 30 classes") and section.count("| class ") == 12
    assert "| class 7 | class 3 | 10 | 100.0 |" in section and not learning.is_drawn(run)


def test_lines_of_learning_curves_are_the_columns_of_metrics_csv(make_run: Callable[..., Path]) -> None:
    run = RunDirectory(make_run())
    loss, score = learning.learning_curves(run).axes
    for axes, names in ((loss, ("train_loss", "val_loss")), (score, ("train_top1", "val_top1"))):
        known = [[value for value in run.column(name) if value is not None] for name in names]
        assert [list(line.get_ydata()) for line in axes.lines if len(line.get_ydata()) > 2] == [k for k in known if k]


def test_a_figure_as_pdf_has_the_same_bytes_again(make_run: Callable[..., Path], tmp_path: Path) -> None:
    run = RunDirectory(make_run())
    first, second = (drawing.save(learning.learning_curves(run), tmp_path / name) for name in ("1.pdf", "2.pdf"))
    assert first.read_bytes() == second.read_bytes() and first.read_bytes().startswith(b"%PDF")
