"""Trace, price, prove, grow and narrow back every network of networks.csv: `make zoo`.

    python -m experiments.zoo [--only TEXT] [--quick] [--pruning] [--out results.csv]

--quick leaves the proof and the growth out; --pruning asks Torch-Pruning as well. Rows are written as they come.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

from experiments.zoo.measures import COLUMNS, measure
from experiments.zoo.networks import networks
from experiments.zoo.table import table

HERE = Path(__file__).parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="networks whose family or name holds this")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--pruning", action="store_true")
    parser.add_argument("--list", type=Path, default=HERE / "networks.csv")
    parser.add_argument("--out", type=Path, default=HERE / "results.csv")
    options = parser.parse_args()
    wanted = [n for n in networks(options.list) if options.only in n.name or options.only in n.family]
    with options.out.open("w", newline="") as lines:
        writer = csv.DictWriter(lines, COLUMNS, lineterminator="\n")
        writer.writeheader()
        for network in wanted:
            row = measure(network, proof=not options.quick, pruning=options.pruning)
            writer.writerow(row)
            lines.flush()
            print(" | ".join(str(row[name])[:160] for name in COLUMNS), flush=True)
    print(table(options.out))


if __name__ == "__main__":
    main()
