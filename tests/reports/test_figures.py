from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from budgetnet.reports import comparison, drawing, figures
from budgetnet.reports.rows import Row, final_row
from budgetnet.runs.directory import RunDirectory
from budgetnet.tasks import Classification

MakeRun = Callable[..., Path]
OF_ONE_RUN = (
    figures.growth_path,
    figures.saturation_map,
    figures.score_against_train_cost,
    figures.final_sizes,
)


def assert_drawn(path: Path, width: int, height: int | None = None) -> None:
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert image.width == width
        assert height is None or image.height == height
        pixels = np.asarray(image.convert("RGB"), dtype=float)
    assert pixels.std() > 5
    # Nothing is cut off: the outermost pixels are white.
    for edge in (pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]):
        assert edge.min() == 255


@pytest.mark.parametrize("draw", OF_ONE_RUN)
def test_figures_of_a_run_are_drawn_at_readme_size(make_run: MakeRun, tmp_path: Path, draw: Any) -> None:
    path = drawing.save(draw(RunDirectory(make_run())), tmp_path / "figure.png")
    assert_drawn(path, 1200, 675)


@pytest.mark.parametrize("draw", OF_ONE_RUN)
@pytest.mark.parametrize(
    "options",
    [
        {"method": "train", "finetune": 1},
        {"rounds": 1, "epochs_per_round": 1, "finetune": 1, "finished": False},
        {"names": [f"layer{depth}" for depth in range(110)], "full": [16] * 110, "rounds": 2},
    ],
    ids=["one epoch without growth", "killed after one round", "110 groups"],
)
def test_degenerate_runs_are_drawn_too(make_run: MakeRun, tmp_path: Path, draw: Any, options: Any) -> None:
    path = drawing.save(draw(RunDirectory(make_run(**options))), tmp_path / "figure.png")
    with Image.open(path) as image:
        assert image.width == 1200
        assert 675 <= image.height <= 1050


@pytest.mark.parametrize("draw", OF_ONE_RUN)
def test_a_run_killed_in_its_first_epoch_says_why_its_figures_are_empty(make_run: MakeRun, draw: Any) -> None:
    path = make_run(finished=False)
    metrics = (path / "metrics.csv").read_text().splitlines(keepends=True)
    (path / "metrics.csv").write_text(metrics[0])
    (path / "growth.jsonl").unlink()
    (path / "saturation.csv").unlink()
    texts = [text.get_text() for text in draw(RunDirectory(path)).axes[0].texts]
    assert len(texts) == 1
    assert "no " in texts[0]


def test_the_growth_path_steps_where_the_rounds_were(make_run: MakeRun) -> None:
    run = RunDirectory(make_run())
    lines = figures.growth_path(run).axes[0].get_lines()[:3]
    for line, name in zip(lines, ("conv1", "conv2", "fc1"), strict=True):
        assert list(line.get_xdata()) == [0, 3, 6, 9, 12, 20]
        assert list(line.get_ydata())[:-1] == [widths[name] for _, widths in run.widths()]


def test_narrow_groups_beside_wide_ones_get_a_logarithmic_axis(make_run: MakeRun) -> None:
    similar, unlike = (
        make_run(name, method="train", full=full) for name, full in (("a", (8, 9, 64)), ("b", (8, 9, 65)))
    )
    assert figures.growth_path(RunDirectory(similar)).axes[0].get_yscale() == "linear"
    assert figures.growth_path(RunDirectory(unlike)).axes[0].get_yscale() == "log"


def test_the_threshold_is_named_only_where_it_decides(make_run: MakeRun) -> None:
    path = make_run()
    config = json.loads((path / "config.yaml").read_text())
    config["growth"]["policy"] = "uniform"
    (path / "config.yaml").write_text(json.dumps(config))
    assert "0.8" not in figures.saturation_map(RunDirectory(path)).axes[0].get_title(loc="left")


def test_the_saturation_map_holds_what_was_measured_and_names_the_threshold(make_run: MakeRun) -> None:
    run = RunDirectory(make_run())
    axes = figures.saturation_map(run).axes[0]
    drawn = np.asarray(axes.collections[0].get_array()).reshape(3, 12)
    assert drawn[1].tolist() == [row["conv2"] for row in run.saturation]
    assert "0.8" in axes.get_title(loc="left")


def test_the_accuracy_figure_ends_with_the_test_accuracies(make_run: MakeRun) -> None:
    run = RunDirectory(make_run())
    assert run.summary is not None
    lines = {line.get_label(): line for line in figures.score_against_train_cost(run).axes[0].get_lines()}
    assert list(lines["validation"].get_xdata()) == run.column("train_cost_flops")
    ends = [(*line.get_xdata(), *line.get_ydata()) for label, line in lines.items() if label.startswith("test")]
    spent = run.summary["train_cost_flops"]
    assert ends == [(spent, run.summary["test_top1"]), (spent, run.summary["test_top1_last"])]


def test_the_same_run_gives_the_same_bytes(make_run: MakeRun, tmp_path: Path) -> None:
    run = RunDirectory(make_run())
    first, second = (drawing.save(figures.growth_path(run), tmp_path / name) for name in ("1.png", "2.png"))
    assert first.read_bytes() == second.read_bytes()


def test_drawing_leaves_the_users_matplotlib_settings_alone(make_run: MakeRun) -> None:
    import matplotlib

    before = dict(matplotlib.rcParams)
    figures.growth_path(RunDirectory(make_run()))
    assert dict(matplotlib.rcParams) == before


def test_the_pareto_front_is_what_no_other_point_beats() -> None:
    costs = [4.0, 1.0, 2.0, 2.0, 3.0, 5.0, 1.0]
    accuracies = [80.0, 60.0, 70.0, 65.0, 70.0, 80.0, 60.0]
    assert comparison.pareto_front(costs, accuracies) == [1, 2, 0]
    assert comparison.pareto_front([], []) == []


def test_validation_accuracy_selects_the_front_that_is_drawn_at_test_accuracy() -> None:
    measured = [(1, 50.0, 55.0), (2, 70.0, 60.0), (3, 65.0, 90.0), (4, 80.0, 75.0)]  # FLOPs, validation, test
    rows = [
        Row(
            *(f"{flops}", "adenel", "vgg16", "cifar10", 0, True, 9, Classification.metrics),
            {"test_top1": test, "val_top1": val},
            flops=flops,
            settings=f"{flops}",
        )
        for flops, val, test in measured
    ]
    (line,) = [line for line in comparison.score_against_cost(rows).axes[0].lines if line.get_label() == "Pareto front"]
    assert [list(values) for values in (line.get_xdata(), line.get_ydata())] == [[1, 2, 4], [55.0, 60.0, 75.0]]


def test_labels_are_spread_as_little_as_possible_and_stay_in_order() -> None:
    assert drawing.spread_out([3.0, 0.0, 10.0], 1.0) == [3.0, 0.0, 10.0]
    assert drawing.spread_out([1.0, 1.0, 1.0], 2.0) == [-1.0, 1.0, 3.0]
    assert drawing.spread_out([1.0, 0.0, 0.9], 1.0) == pytest.approx([1.633333, -0.366667, 0.633333], abs=1e-6)


def test_axis_labels_are_short_quantities() -> None:
    figure = drawing.new_figure()
    axes = figure.add_subplot()
    drawing.log_quantities(axes, [40e6, 45e6])
    left, right = axes.get_xlim()
    inside = [tick for tick in axes.xaxis.get_majorticklocs() if left <= tick <= right]
    assert len(inside) >= 2
    text = axes.xaxis.get_major_formatter()
    assert [text(value, 0) for value in (0, 5e7, 2.5e9, 1.25e9, 200, 1e12)] == [
        "0",
        "50M",
        "2.5G",
        "1.25G",
        "200",
        "1T",
    ]


def test_runs_are_compared_on_a_panel_per_cost_and_a_line_per_dataset(make_run: MakeRun, tmp_path: Path) -> None:
    rows = [final_row(RunDirectory(make_run(f"a{seed}", seed=seed))) for seed in range(3)]
    rows += [final_row(RunDirectory(make_run("b", method="train", dataset="cifar10", backbone="vgg16")))]
    rows += [final_row(RunDirectory(make_run("c", finished=False)))]
    figure = comparison.score_against_cost(rows)
    assert len(figure.axes) == 6
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        "Pareto front", "lenet, adenel", "vgg16, train",
    ]  # fmt: skip
    assert_drawn(drawing.save(figure, tmp_path / "figure.png"), 1500)


def test_a_comparison_without_a_finished_run_says_so(make_run: MakeRun) -> None:
    figure = comparison.score_against_cost([final_row(RunDirectory(make_run(finished=False)))])
    assert figure.axes[0].texts[0].get_text() == "no finished run"
