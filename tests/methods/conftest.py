from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from short_run import SHORT, Fit

from budgetnet.command.build import Components, build
from budgetnet.command.compose import composed


@pytest.fixture
def fit(tmp_path: Path) -> Iterator[Fit]:
    """Train a configuration as a run does, in this process."""
    threads = torch.get_num_threads()

    def fitted(*overrides: str) -> Components:
        directory = Path(tempfile.mkdtemp(dir=tmp_path))
        parts = build(composed([*SHORT, *overrides]), directory)
        parts.trainer.fit(parts.learner, datamodule=parts.data)
        return parts

    yield fitted
    torch.set_num_threads(threads)
