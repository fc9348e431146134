"""The study's runs as CSV, and the tables and figures made of those."""

from __future__ import annotations

import csv
import io
import itertools
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from budgetnet.costs.budget import format_quantity
from budgetnet.reports.drawing import BLUE, COLOURS, GREY, VERMILION, new_figure, save, styled
from budgetnet.reports.tables import markdown_table
from budgetnet.runs.directory import RunDirectory

Line = Mapping[str, Any]

RUNS = (
    "row",
    "seed",
    "test_top1",
    "val_top1",
    "flops",
    "params",
    "train_cost",
    "rounds",
    "widths",
    "hardware",
    "versions",
)
SATURATION = ("row", "seed", "round", "layer", "saturation", "before", "after")
READOUTS = ("rescaled", "readout", "seed", "round", "layer", "saturation")
PUBLISHED_BAR = 0.512
"""Norm of the mean weights above which the authors' ν, λ and J select a filter, on CIFAR-10 with batches of 128."""


# -- from run directories ---------------------------------------------------------------------------------------------


def runs(directories: Iterable[RunDirectory]) -> list[dict[str, Any]]:
    """A line per finished run. train_cost: FLOPs of the network times epochs, summed over the epochs."""
    lines = []
    for run in directories:
        if (summary := run.summary) is None:
            continue
        images = {row["train_cost_flops"] / row["flops"] for row in run.metrics[:1]}.pop()
        widths = [width for name, width in summary["widths"].items() if name != "fc"]
        lines.append({
            "row": run.path.name.rpartition("-")[0], "seed": summary["seed"],
            **{name: summary[name] for name in ("test_top1", "val_top1", "flops", "params", "rounds")},
            "train_cost": summary["train_cost_flops"] / images, "widths": "-".join(map(str, widths)),
            **{name: ", ".join(f"{k} {v}" for k, v in summary[name].items()) for name in ("hardware", "versions")},
        })  # fmt: skip
    return lines


def saturations(directories: Iterable[RunDirectory]) -> list[dict[str, Any]]:
    """A line per layer, round and finished run: what was read, and what the layer grew to."""
    return [
        {
            "row": run.path.name.rpartition("-")[0], "seed": run.config["seed"],
            "round": record["round"], "layer": layer, "saturation": s,
            "before": record["plan"].get(layer, [record["widths"][layer]])[0], "after": record["widths"][layer],
        }
        for run in directories if run.summary for record in run.rounds for layer, s in record["saturation"].items()
    ]  # fmt: skip


def readouts(directories: Iterable[RunDirectory]) -> list[dict[str, Any]]:
    """What every read-out would have said of one and the same path: a line per read-out, layer, round and run."""
    lines = []
    for run in directories:
        for number, file in enumerate(sorted((run.path / "selection").glob("round_*.csv")), start=1):
            layers: dict[str, list[float]] = {}
            for row in csv.DictReader(io.StringIO(file.read_text())):
                layers.setdefault(row["layer"], []).append(float(row["mean_norm"]))
            lines += [
                {
                    "rescaled": run.config["growth"]["rescale"], "readout": readout, "seed": run.config["seed"],
                    "round": number, "layer": layer, "saturation": s,
                }
                for readout, said in what_is_read(layers).items() for layer, s in said.items()
            ]  # fmt: skip
    return lines


def what_is_read(norms: Mapping[str, Sequence[float]]) -> dict[str, dict[str, float]]:
    """Read-out -> layer -> s, of a chain of 3×3 convolutions behind images of three channels.

    norms: layer -> of every filter the norm of its weights' mean over a round.
    """
    bars = {"published λ": PUBLISHED_BAR} | {f"clock, bar {bar}": bar * math.sqrt(2) for bar in (0.7, 0.9, 1.1)}
    said = {name: _above(norms, bar) for name, bar in bars.items()}
    said |= {f"path, {quantile:.0%}": _first(norms, quantile) for quantile in (0.3, 0.5, 0.7)}
    inputs = dict(zip(norms, [3, *map(len, norms.values())], strict=False))
    per_root = {layer: [norm / math.sqrt(9 * inputs[layer]) for norm in found] for layer, found in norms.items()}
    return said | {"path, 50%, norm per root of its size": _first(per_root, 0.5)}


def _first(scores: Mapping[str, Sequence[float]], quantile: float) -> dict[str, float]:
    everything = torch.cat([torch.tensor(found, dtype=torch.float64) for found in scores.values()])
    return _above(scores, torch.quantile(everything, 1 - quantile).item())


def _above(scores: Mapping[str, Sequence[float]], bar: float) -> dict[str, float]:
    return {layer: sum(score > bar for score in found) / len(found) for layer, found in scores.items()}


# -- tables -----------------------------------------------------------------------------------------------------------


def table(lines: Sequence[Line], read: Sequence[Line], rows: Mapping[str, str]) -> str:
    """A line per row of `rows` (name -> what it is) that has runs: mean ± deviation over the seeds."""
    header = (
        "Row",
        "What",
        "Seeds",
        "Test top-1 %",
        "FLOPs",
        "Params",
        "Train cost",
        "Widths, seed 0",
        "Agreement",
        "Spread of s",
    )
    cells = []
    for row, what in rows.items():
        own = sorted((line for line in lines if line["row"] == row), key=lambda line: int(line["seed"]))
        if not own:
            continue
        ends = [[float(w) for w in line["widths"].split("-")] for line in own]
        spread = _spread([line for line in read if line["row"] == row])
        cells.append([
            row, what, str(len(own)), plus_minus([float(line["test_top1"]) for line in own]),
            format_quantity(statistics.fmean(float(line["flops"]) for line in own)),
            format_quantity(statistics.fmean(float(line["params"]) for line in own)),
            format_quantity(statistics.fmean(float(line["train_cost"]) for line in own)), own[0]["widths"],
            f"{agreement(ends):.2f}" if int(own[0]["rounds"] or 0) and len(own) > 1 else "", spread,
        ])  # fmt: skip
    return markdown_table(header, cells)


def readout_table(lines: Sequence[Line]) -> str:
    """A line per read-out: how far it tells layers apart, and how far seeds and rounds agree about them."""
    cells = []
    for rescaled, readout in dict.fromkeys((line["rescaled"], line["readout"]) for line in lines):
        said: dict[tuple[int, int], list[float]] = {}
        for line in lines:
            if (line["rescaled"], line["readout"]) == (rescaled, readout):
                said.setdefault((int(line["round"]), int(line["seed"])), []).append(float(line["saturation"]))
        seeds = [[s for (at, _), s in said.items() if at == number] for number in {number for number, _ in said}]
        successive = [
            agreement([said[number, seed], said[number + 1, seed]])
            for number, seed in said
            if (number + 1, seed) in said
        ]
        numbers = [
            itertools.chain.from_iterable(said.values()),
            (statistics.pstdev(s) for s in said.values()),
            (agreement(group) for group in seeds),
            successive,
        ]
        means = [f"{statistics.fmean(each):.2f}" for each in numbers]
        cells.append(["yes" if rescaled == "True" else "no", readout, *means])
    return markdown_table(
        ("Rescaled", "Read-out", "Mean s", "Spread over layers", "Seeds agree", "Rounds agree"), cells
    )


def plus_minus(values: Sequence[float]) -> str:
    """Mean ± sample standard deviation."""
    return f"{statistics.fmean(values):.2f} ± {statistics.stdev(values):.2f}" if len(values) > 1 else f"{values[0]:.2f}"


def agreement(vectors: Sequence[Sequence[float]]) -> float:
    """Spearman's rank correlation, mean over all pairs; 0 where a vector is constant."""
    return statistics.fmean(_spearman(a, b) for a, b in itertools.combinations(vectors, 2))


def _spearman(a: Sequence[float], b: Sequence[float]) -> float:
    ranks = [[statistics.fmean(i for i, w in enumerate(sorted(v)) if w == x) for x in v] for v in (a, b)]
    if any(len(set(rank)) == 1 for rank in ranks):
        return 0.0
    return statistics.correlation(*ranks)


def _spread(read: Sequence[Line]) -> str:
    """Standard deviation of s over the layers, mean over rounds and runs."""
    rounds: dict[tuple[str, str], list[float]] = {}
    for line in read:
        rounds.setdefault((str(line["seed"]), str(line["round"])), []).append(float(line["saturation"]))
    return f"{statistics.fmean(statistics.pstdev(s) for s in rounds.values()):.2f}" if rounds else ""


def as_csv(columns: Sequence[str], lines: Sequence[Line]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


# -- figures ----------------------------------------------------------------------------------------------------------


def draw_accuracy(lines: Sequence[Line], rows: Mapping[str, str], path: Path) -> None:
    """Test accuracy by row: a dot a seed, a bar of one standard deviation around the mean."""
    named = [row for row in rows if any(line["row"] == row for line in lines)]
    with styled():
        figure = new_figure(8.0, 0.34 * len(named) + 1.1)
        axes = figure.add_subplot(xlabel="test top-1 %")
        figure.suptitle("Every row at its train cost: mean, deviation, and each seed", x=0.01, ha="left", fontsize=10)
        for place, row in enumerate(reversed(named)):
            values = [float(line["test_top1"]) for line in lines if line["row"] == row]
            colour = VERMILION if rows[row].endswith("from scratch") else BLUE
            deviation = statistics.stdev(values) if len(values) > 1 else 0.0
            axes.errorbar(
                statistics.fmean(values), place, xerr=deviation, fmt="o", color=colour, capsize=3, markersize=5
            )
            axes.scatter(values, [place] * len(values), s=9, color=GREY, zorder=3)
        axes.set_ylim(-0.5, len(named) - 0.5)
        axes.set_yticks(range(len(named)), [f"{rows[row]}  ({row})" for row in reversed(named)])
        axes.grid(axis="x", color="#EEEEEE")
        axes.set_axisbelow(True)
        save(figure, path)


def draw_readouts(lines: Sequence[Line], chosen: Sequence[str], path: Path) -> None:
    """s of every layer by round, a line a seed, a panel a read-out."""
    layers = list(dict.fromkeys(line["layer"] for line in lines))
    with styled():
        figure = new_figure(9.0, 3.0)
        for place, readout in enumerate(chosen, start=1):
            axes = figure.add_subplot(1, len(chosen), place, title=readout, xlabel="layer", ylim=(-0.03, 1.05))
            axes.set_ylabel("s" if place == 1 else "")
            own = [line for line in lines if (line["rescaled"], line["readout"]) == ("True", readout)]
            numbers = sorted({int(line["round"]) for line in own})
            for number, colour in zip(numbers, itertools.cycle(COLOURS)):
                for seed in sorted({int(line["seed"]) for line in own}):
                    s = {
                        line["layer"]: float(line["saturation"])
                        for line in own if (int(line["round"]), int(line["seed"])) == (number, seed)
                    }  # fmt: skip
                    if s:
                        label = f"round {number}" if seed == 0 and place == 1 else None
                        height = [s[layer] for layer in layers]
                        axes.plot(
                            range(1, len(layers) + 1), height, color=colour, linewidth=0.9, alpha=0.8, label=label
                        )
        figure.axes[0].legend(loc="lower left")
        save(figure, path)
