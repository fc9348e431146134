"""python -m experiments.peers --data DIR [--network vgg8] [--cost ours|usual|example] [--seeds 0 1 2]

Train a full network, let each tool bring it to the budget, train what is left, and write a row for each to results.csv.
Rows that are there are not made again. --table writes the table of README.md alone; --runs FOLDER takes this project's
own runs at the tools' costs, in FOLDER/peers, FOLDER/peers_example and FOLDER/peers_resnet20, to own.csv first.
"""

from __future__ import annotations

import argparse
import copy
import csv
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import nn

from budgetnet.data.datamodule import DataModule
from budgetnet.reports.tables import markdown_table
from budgetnet.runs.directory import find_run_directories
from budgetnet.runs.records import write_text
from experiments.peers.training import PROBLEMS, SHAPE, Problem, accuracy, data, flops, train
from experiments.study_capacity.__main__ import read_csv
from experiments.study_capacity.summary import RUNS as COLUMNS_OF_RUNS
from experiments.study_capacity.summary import as_csv, runs

HERE = Path(__file__).parent
RESULTS = HERE / "results.csv"
BEGIN, END = "<!-- the table, by python -m experiments.peers --table -->", "<!-- end of the table -->"
COLUMNS = ("network", "cost", "tool", "seed", "test_top1", "val_top1", "flops", "params", "train_cost", "search_cost",
           "seconds", "widths", "versions")  # fmt: skip
OWN = HERE / "own.csv"
RUNS = {
    ("vgg8", "usual"): "peers",
    ("vgg8", "example"): "peers_example",
    ("resnet20", "usual"): "peers_resnet20",
}
"""The folder of this project's own runs, by network and cost."""
STUDIES = {
    "vgg8": HERE.parent / "study_capacity" / "results" / "study.csv",
    "resnet20": HERE.parent / "study_residual" / "results" / "study_resnet20.csv",
}
COSTS = ("ours", "usual", "example")
TOOLS = ("Torch-Pruning", "FastNAS")
SCORED = 1000
"""Held-out images on which FastNAS scores a candidate; its guide says to take a part of them."""
CALIBRATED = 50 * 128
"""Training images with which it estimates the batch norms of each candidate anew: a queue of 50 batches."""
Row = dict[str, object]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m experiments.peers", description=__doc__)
    parser.add_argument("--data", default="data")
    parser.add_argument("--network", choices=PROBLEMS, default="vgg8")
    parser.add_argument("--cost", choices=COSTS, default="ours")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--runs", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.runs is not None:
        take(options.runs)
    rows: list[Row] = list(csv.DictReader(RESULTS.open(encoding="utf-8"))) if RESULTS.exists() else []
    there = {(row["network"], row["cost"], row["seed"], row["tool"]) for row in rows}
    for seed in [] if options.table or options.runs else options.seeds:
        tools = [tool for tool in TOOLS if (options.network, options.cost, str(seed), tool) not in there]
        for row in compared(PROBLEMS[options.network], options.cost, seed, options.data, tools) if tools else ():
            rows.append(row)
            with RESULTS.open("w", encoding="utf-8", newline="") as file:
                writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
                writer.writeheader()
                writer.writerows(rows)
    before, _, rest = (HERE / "README.md").read_text(encoding="utf-8").partition(BEGIN)
    write_text(HERE / "README.md", f"{before}{BEGIN}\n{table([*rows, *own_rows()])}{END}{rest.partition(END)[2]}")


def compared(problem: Problem, cost: str, seed: int, root: str, tools: Sequence[str]) -> Iterator[Row]:
    """A row for each tool, all of which start from the same trained network."""
    images, full = data(root, seed), problem.network(seed)
    first, last = getattr(problem, cost)
    begin, full_flops = time.process_time(), flops(full)
    train(full, images, first)
    trained = time.process_time() - begin
    held_out, test = list(images.val_dataloader()), list(images.test_dataloader())
    for tool in tools:
        begin, counter = time.process_time(), Counter(held_out[: SCORED // len(held_out[0][0])])
        net = smaller(tool, copy.deepcopy(full), problem.limit, counter, images)
        left = flops(net)
        if left > problem.limit:
            raise SystemExit(f"{tool} left {left:,} FLOPs of {problem.name}, where {problem.limit:,} were asked for")
        train(net, images, last)
        row: Row = {
            "network": problem.name, "cost": cost, "tool": tool, "seed": str(seed),
            "test_top1": accuracy(net, test), "val_top1": accuracy(net, held_out), "flops": left,
            "params": sum(each.numel() for each in net.parameters()), "train_cost": first * full_flops + last * left,
            "search_cost": round(counter.flops / 3 / images.train_size), "widths": widths(net),
            "seconds": round(trained + time.process_time() - begin), "versions": versions(tool),
        }  # fmt: skip
        print(row, flush=True)
        yield row


class Counter:
    """The score of a candidate, and the FLOPs of all scores so far."""

    def __init__(self, batches: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
        self.batches, self.flops = batches, 0

    def __call__(self, net: nn.Module) -> float:
        self.flops += counted(net) * (CALIBRATED + sum(len(labels) for _, labels in self.batches))
        return accuracy(net, self.batches)


def counted(net: nn.Module) -> int:
    """FLOPs of the active channels of a network that is being searched."""
    from modelopt.torch.nas.utils import inference_flops

    return int(inference_flops(net, torch.randn(SHAPE), unit=1.0)) // 2  # it counts two for one


def smaller(
    tool: str, net: nn.Module, limit: int, score: Callable[[nn.Module], float], images: DataModule
) -> nn.Module:
    """The network that a tool makes of a trained one."""
    if tool == "Torch-Pruning":
        from experiments.peers import pruned

        return pruned.to_budget(net, limit, net.get_submodule("fc"))
    from experiments.peers import fastnas

    with TemporaryDirectory() as folder:
        return fastnas.to_budget(net, limit, score, images.train_dataloader(), Path(folder))


def widths(net: nn.Module) -> str:
    return "-".join(str(each.out_channels) for each in net.modules() if isinstance(each, nn.Conv2d))


def versions(tool: str) -> str:
    from importlib.metadata import version

    name = "torch-pruning" if tool == "Torch-Pruning" else "nvidia-modelopt"
    return f"{name} {version(name)}, torch {torch.__version__}"


def take(folder: Path) -> None:
    """Put the finished runs of this project into own.csv, in the place of those of the same name."""
    found = [
        {"network": network, "cost": cost, **line}
        for (network, cost), name in RUNS.items() if (folder / name).is_dir()
        for line in runs(find_run_directories([folder / name]))
    ]  # fmt: skip

    def place(line: Row) -> tuple[str, ...]:
        return str(line["network"]), str(line["cost"]), str(line["row"]), str(line["seed"])

    lines = {place(line): line for line in [*read_csv(OWN), *found]}
    write_text(OWN, as_csv(("network", "cost", *COLUMNS_OF_RUNS), [lines[key] for key in sorted(lines)]))


def own_rows() -> list[Row]:
    """Rows of this project's own runs: at our cost from the studies, at the others from own.csv."""
    lines: list[Row] = [
        {"network": network, "cost": "ours", **line} for network, file in STUDIES.items() for line in read_csv(file)
    ]
    lines += read_csv(OWN)
    default = {"vgg8": "path", "resnet20": "proportional"}
    named = {"width": "scaled down", **dict.fromkeys(default.values(), "grown, the default")}
    return [
        {**line, "tool": named[str(line["row"])], "search_cost": 0}
        for line in lines if line["row"] in ("width", default[str(line["network"])])
    ]  # fmt: skip


def table(rows: Sequence[Row]) -> str:
    """Mean ± sample deviation over the seeds."""
    header = ("Network", "Cost", "Tool", "n", "Test top-1 %", "FLOPs", "Params", "Train cost", "Search", "Seconds")
    lines = []
    groups = dict.fromkeys((str(r["network"]), str(r["cost"]), str(r["tool"])) for r in rows)
    for network, cost, tool in sorted(groups, key=lambda g: (list(PROBLEMS).index(g[0]), COSTS.index(g[1]))):
        its = [r for r in rows if (r["network"], r["cost"], r["tool"]) == (network, cost, tool)]
        lines.append([network, cost, tool, str(len(its)), _mean(its, "test_top1", "{:.2f}")])
        lines[-1] += [_mean(its, "flops", "{:.2f}M", 1e6), _mean(its, "params", "{:.0f}k", 1e3)]
        lines[-1] += [_mean(its, name, "{:.1f}M", 1e6) for name in ("train_cost", "search_cost")]
        lines[-1].append(_mean(its, "seconds", "{:.0f}") if "seconds" in its[0] else "")
    return markdown_table(header, lines)


def _mean(rows: Sequence[Row], name: str, text: str, unit: float = 1.0) -> str:
    values = [float(str(row[name])) / unit for row in rows]
    mean = text.format(statistics.fmean(values))
    return mean if len(set(values)) == 1 else f"{mean} ± {text.format(statistics.stdev(values))}"


if __name__ == "__main__":
    main()
