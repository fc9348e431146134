"""The text of the paper's tables beside ours: experiments.paper.tables has the files."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence

from budgetnet.costs.budget import format_quantity
from budgetnet.reports.tables import markdown_table
from experiments.paper.rows import PSNR, PaperRow, Result, top1_of_exits


def _mean(lines: Sequence[Result], measure: str, text: Callable[[float], str]) -> str:
    """Mean ± sample standard deviation over runs; empty where one lacks the number or there is none."""
    values = [line[measure] for line in lines]
    if not values or "" in values:
        return ""
    numbers = [float(value) for value in values]
    deviation = statistics.stdev(numbers) if len(numbers) > 1 else 0.0
    return f"{text(statistics.fmean(numbers))} ± {text(deviation)}" if deviation else text(numbers[0])


def _ours(lines: Sequence[Result], top5: bool, machines: str) -> dict[str, str]:
    """What our runs of one row say, by column. machines: of a table of sequential operations, else empty."""
    percent = "{:.2f}".format
    measures: dict[str, tuple[str, Callable[[float], str]]] = {
        "last epoch": ("test_top1_last", percent),
        "selected epoch": ("test_top1", percent),
        "best test epoch": ("test_top1_best", percent),
        **({"top-5, last": ("test_top5_last", percent), "top-5, selected": ("test_top5", percent)} if top5 else {}),
        "params": ("params", format_quantity),
        "FLOPs": ("flops", format_quantity),
        **({"operations": ("sequential_ops", "{:.4g}".format)} if machines else {}),
        "train cost (a) %": ("train_cost_baseline_percent", percent),
        "(b) %": ("train_cost_final_percent", percent),
    }
    cells = {name: _mean(lines, measure, text) for name, (measure, text) in measures.items()}
    return cells | {"seeds": str(len(lines)) if lines else ""}


def beside(rows: Sequence[PaperRow], results: Sequence[Result]) -> str:
    """The paper's numbers beside ours, a line per row."""
    top5, machines = any(row.top5 for row in rows), rows[0].machines
    lines = []
    for row in rows:
        ours = _ours([line for line in results if line["row"] == row.row], top5, machines)
        method = f"{row.method} ({row.second_hand})" if row.second_hand else row.method
        line = {"Row": row.row, "Method": method, "Budget": row.budget, "Top-1 %: paper": row.top1}
        line |= {name: ours.pop(name) for name in ("last epoch", "selected epoch", "best test epoch")}
        if row.exits:  # all of them, after the last epoch
            its = [line for line in results if line["row"] == row.row]
            found = [_mean(its, name, "{:.2f}".format) for name in top1_of_exits(row.exits)]
            line = {**line, "last epoch": " / ".join(found) if all(found) else ""}
            del line["selected epoch"], line["best test epoch"], line["Budget"]
        if top5:
            line |= {"Top-5 %: paper": row.top5}
            line |= {name: ours.pop(name) for name in ("top-5, last", "top-5, selected")}
        if row.psnr:
            line.pop("Top-1 %: paper")
            for name in ("last epoch", "selected epoch", "best test epoch"):
                line.pop(name)
            its = [each for each in results if each["row"] == row.row]
            line["PSNR dB, BSD68/DIV2K: paper"] = row.psnr
            line |= {name: _mean(its, column, "{:.2f}".format) for name, column in zip(("BSD68", "DIV2K"), PSNR)}
        if machines:  # and none of the other costs
            line |= {f"Operations, n = {machines}: paper": row.sequential_ops, "operations": ours.pop("operations")}
            line |= ours
        else:
            line |= {"Params: paper": f"{row.params_M}M" if row.params_M else "", "params": ours.pop("params")}
            line["FLOPs: paper" if not row.counted else f"FLOPs {row.counted}: paper"] = (
                f"{row.flops_G}G" if row.flops_G else ""
            )
            line["FLOPs"] = ours.pop("FLOPs")
            against = f" ({row.cost})" if row.cost else ""
            line |= {} if row.exits or row.counted else {"Train cost %: paper": row.train_cost_percent + against}
            line |= ours
        lines.append(line)
    return markdown_table(list(lines[0]), [list(line.values()) for line in lines])


def alone(rows: Sequence[PaperRow], results: Sequence[Result], length: str) -> str:
    """Our runs of this length, with none of the paper's numbers beside them."""
    lines = []
    for row in rows:
        if its := [line for line in results if line["row"] == row.row]:
            lines.append({"Row": f"{row.row} ({length})", **_ours(its, bool(row.top5), row.machines)})
    return markdown_table(list(lines[0]), [list(line.values()) for line in lines])
