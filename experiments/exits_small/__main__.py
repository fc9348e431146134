"""python -m experiments.exits_small runs/exits_small      results.csv, curves.png, and the table in README.md"""

from __future__ import annotations

import argparse
import csv
import io
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path

from budgetnet.reports.drawing import BLUE, GREY, VERMILION, in_quantities, new_figure, save, styled
from budgetnet.reports.rows import listed
from budgetnet.reports.tables import markdown_table
from budgetnet.runs.directory import RunDirectory, find_run_directories
from budgetnet.runs.records import write_text

HERE = Path(__file__).parent
BUDGETS = {"1M": 1_000_000, "1.5M": 1_500_000}
"""Mean FLOPs. The first is the one that the runs were selected by."""
ROWS = {("l2w", 8): "weighted", ("exits", 14): "equal, at its train cost", ("exits", 8): "equal, as many epochs"}
COLOURS = dict(zip(ROWS.values(), (VERMILION, BLUE, GREY), strict=True))
BEGIN, END = "<!-- the table, by python -m experiments.exits_small -->", "<!-- end of the table -->"
EXITS = ("exit 1", "exit 2", "exit 3")

Line = dict[str, str]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m experiments.exits_small", description=__doc__)
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    runs = [run for run in find_run_directories([options.folder]) if run.done]
    lines = sorted((result(run) for run in runs), key=lambda line: (line["samples"], line["seed"]))
    text = io.StringIO()
    writer = csv.DictWriter(text, list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    write_text(HERE / "results.csv", text.getvalue())
    write_text(HERE / "README.md", with_table((HERE / "README.md").read_text(), lines))
    draw(runs, HERE / "curves.png")


def with_table(readme: str, lines: Sequence[Line]) -> str:
    """The text of README.md with its table made anew."""
    before, _, rest = readme.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{table(lines)}{END}{after}"


def samples(run: RunDirectory) -> str:
    """How the samples of a run are weighted, and how long."""
    config = run.config
    return ROWS[config["method"]["name"], config["epochs"]]


def result(run: RunDirectory) -> Line:
    """A line of results.csv: accuracies of the selected epoch on the test set, in percent."""
    summary = run.summary or {}
    line = {"samples": samples(run), "seed": str(summary["seed"]), "epoch": str(summary["best_epoch"])}
    line["train_cost_flops"] = str(summary["train_cost_flops"])
    for number, name in enumerate(EXITS, start=1):
        line[name] = str(summary[f"test_exit{number}_top1"])
    for name, most in BUDGETS.items():
        fits = [row for row in run.table("budgeted") if row["val_mean_flops"] <= most]
        chosen = max(fits, key=lambda row: (row["val_accuracy"], -row["val_mean_flops"]))
        line |= {name: str(chosen["test_accuracy"]), f"{name} mean_flops": str(chosen["test_mean_flops"])}
        line[f"{name} val_mean_flops"] = str(chosen["val_mean_flops"])
    return line | {where: listed(summary[where]) for where in ("hardware", "versions")}


def table(lines: Sequence[Line]) -> str:
    """Mean ± sample standard deviation over the seeds, a line for each of ROWS."""
    header = ("Samples", "n", "Train cost (10⁹ FLOPs)", *(f"{name} %" for name in EXITS),
              *(text for name in BUDGETS for text in (f"{name} FLOPs %", "of which used")))  # fmt: skip
    cells = []
    for row in ROWS.values():
        its = [line for line in lines if line["samples"] == row]
        if its:
            cells.append([row, str(len(its)), _mean(its, "train_cost_flops", lambda value: f"{value / 1e9:.0f}")])
            cells[-1] += [_mean(its, name) for name in EXITS]
            for name in BUDGETS:
                used = _mean(its, f"{name} mean_flops", lambda value: f"{value / 1e6:.3f}M")
                cells[-1] += [_mean(its, name), used]
    return markdown_table(header, cells)


def _mean(lines: Sequence[Line], name: str, text: Callable[[float], str] = "{:.2f}".format) -> str:
    values = [float(line[name]) for line in lines]
    if len(set(values)) == 1:
        return text(values[0])
    return f"{text(statistics.fmean(values))} ± {text(statistics.stdev(values))}"


def draw(runs: Sequence[RunDirectory], path: Path) -> None:
    """Accuracy on the test set against mean FLOPs: means over the seeds at each of the 39 settings, and each exit."""
    with styled():
        figure = new_figure()
        axes = figure.add_subplot(
            title="CIFAR-100 at 16×16, test set", xlabel="mean FLOPs of an image", ylabel="top-1 (%)"
        )
        for row, colour in COLOURS.items():
            its = [run for run in runs if samples(run) == row]
            if not its:
                continue
            settings = zip(*(run.table("budgeted") for run in its), strict=True)
            points = [[(each["test_mean_flops"], each["test_accuracy"]) for each in setting] for setting in settings]
            flops, scores = ([[point[k] for point in setting] for setting in points] for k in (0, 1))
            means = [statistics.fmean(values) for values in scores]
            spread = [statistics.stdev(values) if len(values) > 1 else 0.0 for values in scores]
            across = [statistics.fmean(values) for values in flops]
            axes.plot(across, means, color=colour, label=f"{row} (n = {len(its)})")
            low, high = ([mean + sign * by for mean, by in zip(means, spread, strict=True)] for sign in (-1, 1))
            axes.fill_between(across, low, high, color=colour, alpha=0.15, linewidth=0)
            summaries = [run.summary or {} for run in its]
            for number in range(1, 1 + len(EXITS)):
                values = [summary[f"test_exit{number}_top1"] for summary in summaries]
                at = summaries[0]["exits"]["flops"][number - 1]
                deviation = statistics.stdev(values) if len(values) > 1 else 0.0
                axes.errorbar(at, statistics.fmean(values), deviation, color=colour, marker="s", capsize=3)
        in_quantities(axes.xaxis)
        axes.legend(loc="lower right")
        save(figure, path)


if __name__ == "__main__":
    main()
