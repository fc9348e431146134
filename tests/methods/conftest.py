from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from short_run import Fit, fitted


@pytest.fixture
def fit(tmp_path: Path) -> Iterator[Fit]:
    """Train a configuration as a run does, in this process."""
    threads = torch.get_num_threads()

    yield lambda *overrides: fitted(Path(tempfile.mkdtemp(dir=tmp_path)), *overrides)
    torch.set_num_threads(threads)
