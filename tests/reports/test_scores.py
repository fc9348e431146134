"""Whatever a task measures: an error without a unit, of which less is better, and decibels."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pages import Elements, data_of

from budgetnet.errors import UsageError
from budgetnet.reports import figures
from budgetnet.reports.comparison import score_against_cost
from budgetnet.reports.page import page
from budgetnet.reports.report import write_report
from budgetnet.reports.rows import Row, final_row, repetitions
from budgetnet.reports.tables import as_csv, cells, header
from budgetnet.runs.directory import RunDirectory
from budgetnet.tasks import Classification, Metric, Segmentation
from budgetnet.tasks.classification import TOP1
from budgetnet.tasks.segmentation import MIOU

MakeRun = Callable[..., Path]
ERROR = (Metric("mae", "mean absolute error", "", higher_is_better=False),)
DECIBELS = (Metric("psnr", "PSNR", "dB"), Metric("ssim", "SSIM", "", in_tables=False))


@pytest.fixture
def mixed(make_run: MakeRun) -> list[RunDirectory]:
    """A run of each of three tasks."""
    runs = [("counts", ERROR), ("pixels", DECIBELS), ("classes", Classification.metrics)]
    return [
        RunDirectory(make_run(name, dataset=name, metrics=metrics, test_every_epoch=True)) for name, metrics in runs
    ]


def line_of(run: RunDirectory) -> dict[str, str]:
    row = final_row(run)
    return dict(zip(header([row]), cells([row])[0], strict=True))


def row(name: str, metrics: tuple[Metric, ...], flops: int, test: float, val: float | None = None) -> Row:
    first = metrics[0].name
    scores = {f"test_{first}": test, f"val_{first}": val}
    return Row(name, "train", "net", "data", 0, True, 9, metrics, scores, flops=flops, settings=name)


def test_a_table_names_the_metric_and_its_unit_and_has_no_other(mixed: list[RunDirectory]) -> None:
    counts, pixels, _ = map(line_of, mixed)
    error, decibels = (run.summary or {} for run in mixed[:2])
    assert list(counts)[5:8] == ["Test mean absolute error", "last epoch", "best test epoch"]
    assert list(counts.values())[5:8] == [f"{error[f'test_mae{of}']:#.4g}" for of in ("", "_last", "_best")]
    assert list(pixels)[5:8] == ["Test PSNR dB", "last epoch dB", "best test epoch dB"]
    assert pixels["Test PSNR dB"] == f"{decibels['test_psnr']:.2f}"
    assert not any("top-1" in name for name in (*counts, *pixels))


def test_runs_of_several_tasks_have_the_columns_of_each_and_are_empty_in_those_of_others(
    mixed: list[RunDirectory],
) -> None:
    rows = [final_row(run) for run in mixed]
    tests = [name for name in header(rows) if name.startswith("Test")]
    assert tests == ["Test mean absolute error", "Test PSNR dB", "Test top-1 %"]
    filled = [[bool(cell) for cell in line[5:14]] for line in cells(rows)]
    assert filled == [[group == place // 3 for place in range(9)] for group in range(3)]
    lines = list(csv.DictReader(io.StringIO(as_csv(rows))))
    scores = [f"test_{name}{of}" if of != "val" else f"val_{name}" for name in ("mae", "psnr", "top1")
              for of in ("", "_last", "_best", "val")]  # fmt: skip
    assert list(lines[0])[7:19] == scores
    assert [sum(bool(line[name]) for name in scores) for line in lines] == [4, 4, 4]


def test_another_metric_has_one_column_unless_its_task_leaves_it_out(make_run: MakeRun) -> None:
    run = RunDirectory(make_run(metrics=Segmentation.metrics))
    row = final_row(run)
    assert header([row])[5:8] == ("Test mIoU %", "last epoch %", "Test pixel accuracy %")
    assert cells([row])[0][7] == f"{(run.summary or {})['test_pixel_accuracy']:.2f}"
    (line,) = csv.DictReader(io.StringIO(as_csv([row])))
    assert [name for name in line if name.startswith("test_pixel")] == ["test_pixel_accuracy"]
    assert not any("top5" in name for name in as_csv([final_row(RunDirectory(make_run("classes")))]).split(","))


def test_the_best_epoch_so_far_has_the_least_error(make_run: MakeRun) -> None:
    run = RunDirectory(make_run(finished=False, metrics=ERROR))
    assert final_row(run).number("val_mae") == min(run.column("val_mae"))


def test_repetitions_of_which_one_is_not_finite_have_a_mean_and_no_deviation() -> None:
    rows = [row("it", DECIBELS, 1, value) for value in (30.0, math.inf)]
    (group,) = repetitions(rows)
    spread = group.spread("test_psnr")
    assert spread is not None and spread.mean == math.inf and math.isnan(spread.deviation)
    assert any("inf ± nan" in cell for line in cells(rows) for cell in line)
    score_against_cost(rows)


def test_runs_of_another_metric_are_no_repetitions() -> None:
    assert len(repetitions([row("it", ERROR, 1, 0.1), row("it", DECIBELS, 1, 30.0)])) == 2


def test_the_front_is_of_the_least_error_and_axes_say_so() -> None:
    rows = [row(f"{flops}", ERROR, flops, test, val) for flops, test, val in
            [(1, 0.5, 0.4), (2, 0.3, 0.5), (3, 0.35, 0.2), (4, 0.1, 0.3)]]  # fmt: skip
    axes = score_against_cost(rows).axes[0]
    (front,) = (line for line in axes.lines if line.get_label() == "Pareto front")
    assert [list(values) for values in (front.get_xdata(), front.get_ydata())] == [[1, 3], [0.5, 0.35]]
    assert axes.get_ylabel() == "test mean absolute error, lower is better,\ndata"
    low, high = axes.get_ylim()
    assert -0.1 < low < 0.1 and 0.5 < high < 0.7


def test_only_percent_end_at_a_hundred() -> None:
    tops = {}
    for metrics in (DECIBELS, Classification.metrics):
        rows = [row(f"{value}", metrics, value, float(value)) for value in (90, 100)]
        tops[metrics[0].name] = score_against_cost(rows).axes[0].get_ylim()[1]
    assert tops == {"psnr": 103, "top1": 100.5}


def test_each_dataset_and_metric_has_panels_of_its_own(mixed: list[RunDirectory]) -> None:
    axes = score_against_cost([final_row(run) for run in mixed]).axes
    assert len(axes) == 9
    labels = [" ".join(panel.get_ylabel().split()) for panel in axes[::3]]
    assert labels == [
        "test mean absolute error, lower is better, counts", "test PSNR (dB), pixels", "test top-1 (%), classes"
    ]  # fmt: skip


def test_a_runs_figure_is_of_its_metric(mixed: list[RunDirectory]) -> None:
    drawn = [figures.score_against_train_cost(run).axes[0] for run in mixed[:2]]
    assert [axes.get_ylabel() for axes in drawn] == ["mean absolute error", "PSNR (dB)"]
    assert drawn[1].get_title(loc="left").startswith("Validation PSNR against train cost")
    (line,) = (line for line in drawn[0].lines if line.get_label() == "validation")
    assert list(line.get_ydata()) == mixed[0].column("val_mae")
    tested = f"test {(mixed[0].summary or {})['test_mae']:#.4g} (epoch"
    assert any(str(line.get_label()).startswith(tested) for line in drawn[0].lines)


@pytest.mark.usefixtures("not_drawn")
def test_the_report_says_which_metric_selected_and_has_all_of_them(mixed: list[RunDirectory]) -> None:
    counts, pixels = (write_report(run.path).read_text() for run in mixed[:2])
    error, decibels = (run.summary or {} for run in mixed[:2])
    assert (
        f"the lowest mean absolute error on a validation split of the training set ({error['val_mae']:#.4g});" in counts
    )
    assert f"the highest PSNR on a validation split of the training set ({decibels['val_psnr']:.2f} dB);" in pixels
    names = ("test_psnr", "test_psnr_last", "test_psnr_best", "val_psnr")
    assert f"| PSNR (dB) | {' | '.join(f'{decibels[name]:.2f}' for name in names)} |" in pixels
    assert f"| SSIM | {decibels['test_ssim']:#.4g} |" in pixels
    assert not any(word in counts + pixels for word in ("top-1 ", "accuracy "))


def test_the_page_names_each_metric_and_sorts_the_best_first(mixed: list[RunDirectory]) -> None:
    text = page(mixed)
    data, heads = data_of(text), [attributes for tag, attributes in Elements(text).tags if tag == "th"]
    rows = [final_row(run) for run in mixed]
    first = {name: head["data-first"] for name, head in zip(header(rows), heads, strict=True) if "Test" in name}
    assert first == {
        "Test mean absolute error": "ascending", "Test PSNR dB": "descending", "Test top-1 %": "descending"
    }  # fmt: skip
    assert "Test scores against cost" in text and "Test PSNR against cost" in page(mixed[1:2])
    panels = data["panels"][::3]
    assert [panel["heading"] for panel in panels] == [
        "counts, mean absolute error", "pixels, PSNR", "classes, top-1"
    ]  # fmt: skip
    assert [panel["score_label"] for panel in panels][1:] == ["test PSNR (dB)", "test top-1 (%)"]
    texts = [panel["points"][0]["score"] for panel in panels]
    numbers = [row.number(panel["score"]) or 0.0 for row, panel in zip(rows, panels, strict=True)]
    assert texts == [f"{numbers[0]:#.4g}", f"{numbers[1]:.2f} dB", f"{numbers[2]:.2f} %"]
    facts = dict(data["runs"][1]["facts"])
    assert facts["Last epoch dB"] == f"{(mixed[1].summary or {})['test_psnr_last']:.2f}"
    assert {"Test PSNR dB", "Validation PSNR dB", "Test SSIM", "Validation SSIM"} <= set(facts)
    assert {"Test top-5 %", "Validation top-1 %"} <= set(dict(data["runs"][2]["facts"]))


def test_a_run_of_a_version_without_task_json_is_known_by_its_columns(make_run: MakeRun) -> None:
    path = make_run()
    (path / "task.json").unlink()
    assert RunDirectory(path).task_metrics == Classification.metrics
    (path / "metrics.csv").write_text("epoch,phase,val_top1,val_miou\n1,grow,60,50.5\n")
    assert RunDirectory(path).task_metrics == (TOP1, MIOU)
    (path / "metrics.csv").unlink()
    (path / "metrics.csv").write_text("")
    assert RunDirectory(path).task_metrics == Classification.metrics


@pytest.mark.parametrize("text", ["{", "[]", '{"metrics": []}', '{"metrics": [{"title": "mIoU"}]}', "\udcff"])
def test_a_damaged_task_json_is_one_line(make_run: MakeRun, text: str) -> None:
    path = make_run()
    (path / "task.json").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(UsageError, match=r"task\.json is damaged") as caught:
        _ = RunDirectory(path).task_metrics
    assert "\n" not in str(caught.value)


# Examples -------------------------------------------------------------------------------------------------------------


def test_examples_are_drawn_row_by_row_in_one_palette(make_run: MakeRun, drawn_alone: Callable[..., None]) -> None:
    from budgetnet.reports.examples import class_colour, examples

    path = make_run(metrics=Segmentation.metrics)
    true = np.array([[[0, 1], [255, 2]], [[-100, 30], [0, 0]]])
    predicted = np.array([[[0, 1], [1, 1]], [[30, 30], [0, 2]]])
    pictures = np.linspace(0, 1.2, 24, dtype=np.float32).reshape(2, 3, 2, 2)
    np.savez_compressed(path / "examples.npz", input=pictures, true=true, predicted=predicted)
    run = RunDirectory(path)
    assert list(run.examples) == ["input", "true", "predicted"]
    figure = examples(run)
    panels = np.array(figure.axes).reshape(3, 2)
    assert [axes.get_ylabel() for axes in panels[:, 0]] == ["input", "true", "predicted"]
    drawn = [[np.asarray(axes.images[0].get_array()) for axes in row] for row in panels]
    assert np.allclose(drawn[0][0], pictures[0].transpose(1, 2, 0)) and drawn[0][1].max() == 1
    grey = drawn[1][0][1, 0]
    assert np.ptp(grey) == 0 and np.array_equal(drawn[1][1][0, 0], grey)
    for classes, row in ((true, drawn[1]), (predicted, drawn[2])):
        for number in (0, 1, 2, 30):
            assert all((image[each == number] == class_colour(number)).all() for each, image in zip(classes, row))
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        "class 0", "class 1", "class 2", "class 30", "no label"
    ]  # fmt: skip
    drawn_alone("examples")
    assert "figures/examples.png" in write_report(path).read_text() and (path / "figures" / "examples.png").exists()


def test_no_two_of_forty_classes_share_a_colour() -> None:
    from budgetnet.reports.examples import class_colour

    colours = np.array([class_colour(number) for number in range(40)])
    apart = np.abs(colours[:, None] - colours).max(-1) + np.eye(40)
    assert apart.min() > 0.05


def test_pictures_alone_are_drawn_without_a_legend(make_run: MakeRun) -> None:
    from budgetnet.reports.examples import examples

    path = make_run(metrics=DECIBELS)
    np.savez_compressed(path / "examples.npz", low_resolution=np.zeros((3, 1, 4, 6)), restored=np.ones((3, 1, 8, 12)))
    figure = examples(RunDirectory(path))
    assert not figure.legends and [axes.get_ylabel() for axes in figure.axes[::3]] == ["low resolution", "restored"]
    assert np.asarray(figure.axes[3].images[0].get_array()).shape == (8, 12, 3)


def test_damaged_examples_are_one_line(make_run: MakeRun) -> None:
    path = make_run()
    for content in (b"", b"PK\x03\x04half"):
        (path / "examples.npz").write_bytes(content)
        with pytest.raises(UsageError, match=r"examples\.npz is damaged") as caught:
            _ = RunDirectory(path).examples
        assert "\n" not in str(caught.value)


def test_a_directory_has_the_metrics_that_it_was_written_with(make_run: MakeRun) -> None:
    path = make_run(metrics=ERROR)
    assert json.loads((path / "task.json").read_text())["metrics"] == [vars(ERROR[0])]
    assert RunDirectory(path).task_metrics == ERROR
