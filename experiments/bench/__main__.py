"""Measures, and writes results/HARDWARE.csv and the table of all hardware.

make bench                                   # everything, on the GPU if there is one, else on the CPU
python -m experiments.bench -d cpu LBI       # the rows whose name contains LBI
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import traceback
from concurrent.futures import ProcessPoolExecutor

import torch

from .measures import MEASURES, figures
from .table import Figure, add, show


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m experiments.bench", description=__doc__.splitlines()[0])
    parser.add_argument("rows", nargs="*", help="parts of the names of rows; default: all of them")
    parser.add_argument("-d", "--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("-t", "--threads", type=int, default=1, help="CPU threads of torch (default: 1)")
    options = parser.parse_args()
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print(f"error: --device {options.device}: there is no GPU here", file=sys.stderr)
        return 2
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    chosen = [
        number
        for number, measure in enumerate(MEASURES)
        if measure.target(device.type) is not None
        and (not options.rows or any(part.lower() in measure.name.lower() for part in options.rows))
    ]
    if not chosen:
        print(f"error: no row of this device is called {' or '.join(options.rows)}", file=sys.stderr)
        return 2
    failed = {}
    for number in chosen:
        name = MEASURES[number].name
        print(f"{name} ...", file=sys.stderr, flush=True)
        try:  # each in a process of its own: what one has allocated or imported does not touch the next
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
                values = pool.submit(figures, number, options.device, options.threads).result()
        except Exception as error:
            failed[name] = "".join(traceback.format_exception_only(error)).strip()
            continue
        add(Figure.of(MEASURES[number], values, device, options.threads))
    show()
    for name, reason in failed.items():
        print(f"failed, any figure above is of before: {name} ({reason})", file=sys.stderr)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
