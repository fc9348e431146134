"""Executes the notebooks: `python tests/notebook_runner.py` (make notebooks) in place.

`python -m tests.notebook_runner NUMBER FOLDER` writes a shorter one, executed, to a folder: the tests do.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
CELL_SECONDS = 300  # many times what any takes
SHORTER = {  # the same cells with fewer epochs and images: what the tests state does not depend on their number
    "01": [("finetune.epochs=12", "finetune.epochs=2 growth.epochs_per_round=1 dataset.limit_train=640")],
    "02": [
        ("stripes(2000, seed=0), stripes(1000, seed=1)\n", "stripes(420, seed=0), stripes(100, seed=1)\n"),
        ("batch_size=50, validation=400)", "batch_size=10, validation=100)"),
        ("(*stripes(2000, seed=0)), ImageArrays", "(*stripes(420, seed=0)), ImageArrays"),
        ("(*stripes(1000, seed=1))", "(*stripes(100, seed=1))"),
        ("dataset.batch_size=50 dataset.validation=400", "dataset.batch_size=10 dataset.validation=100"),
        ("range(1, 21)", "range(1, 7)"),
        ("train_epochs(6)", "train_epochs(1)"),
        ("finetune.epochs=6", "finetune.epochs=1 epochs=13"),
    ],
    "03": [
        (
            "epochs=12 growth.epochs_per_round=2 finetune.epochs=6",
            "epochs=6 growth.epochs_per_round=1 finetune.epochs=2",
        ),
    ],
    "04": [
        ("epochs=18 finetune.epochs=12", "epochs=5 finetune.epochs=2"),
        ("epochs=8 dataset.batch_size", "epochs=1 dataset.batch_size"),
        ("epochs=4 finetune.epochs=4", "epochs=1 finetune.epochs=1"),
        ("epochs=12 finetune.epochs=8", "epochs=3 finetune.epochs=1"),
        ("range(60)", "range(16)"),
    ],
}


def execute(path: Path, changes: Sequence[tuple[str, str]] = ()) -> Any:
    """The notebook at `path`, executed from the root of the repository. Raises where a cell does.

    changes: texts of its cells and what is executed in their place.
    """
    notebook = nbformat.read(path, as_version=4)
    for old, new in changes:
        (cell,) = (cell for cell in notebook.cells if cell.cell_type == "code" and old in cell.source)
        cell.source = cell.source.replace(old, new)
    client = NotebookClient(
        notebook,
        timeout=CELL_SECONDS,
        kernel_name="python3",
        record_timing=False,  # what is written depends on the results alone
        coalesce_streams=True,
        resources={"metadata": {"path": str(ROOT)}},
    )
    client.execute(env={**os.environ, "OMP_NUM_THREADS": "1"})
    notebook.metadata["language_info"] = {"name": "python"}
    return notebook


def execute_shorter(number: str, folder: Path) -> None:
    """Execute the notebook whose name starts with a number, shorter, into `folder`."""
    (path,) = (path for path in NOTEBOOKS if path.name.startswith(number))
    nbformat.write(execute(path, SHORTER[number]), folder / path.name)


if __name__ == "__main__" and len(sys.argv) > 1:
    execute_shorter(sys.argv[1], Path(sys.argv[2]))
elif __name__ == "__main__":
    for path in NOTEBOOKS:
        nbformat.write(execute(path), path)
        print(path.relative_to(ROOT))
