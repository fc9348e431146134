"""results.csv as a table by family."""

from __future__ import annotations

import csv
from pathlib import Path


def table(path: Path) -> str:
    """A Markdown table: how many networks of each family trace, are free, priced exactly and proven."""
    with path.open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    families = list(dict.fromkeys(row["family"] for row in rows))
    text = ["| family | networks | traced | half free | exact price | proven | Torch-Pruning |", "|---" * 7 + "|"]
    for family in [*families, "all"]:
        own = [row for row in rows if family in (row["family"], "all")]
        traced = [row for row in own if row["state"] == "traced"]
        numbers = (
            len(own),
            len(traced),
            sum(float(row["free"] or 0) >= 0.5 for row in traced),
            sum(row["params"] == row["params_true"] and row["flops"] == row["flops_fvcore"] for row in traced),
            sum("keep the function" in row["proof"] for row in traced),
            sum(row["torch_pruning"] == "runs" for row in own) if any(row["torch_pruning"] for row in own) else "",
        )
        text.append(f"| {family} | {' | '.join(map(str, numbers))} |")
    return "\n".join(text)
