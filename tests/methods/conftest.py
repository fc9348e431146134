from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from short_run import SHORT, Fit

from budgetnet.building import Parts, build
from budgetnet.command import CONF, plain


@pytest.fixture
def fit(tmp_path: Path) -> Iterator[Fit]:
    """Train a configuration as a run does, in this process."""
    threads = torch.get_num_threads()

    def fitted(*overrides: str) -> Parts:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            config = plain(compose("config", overrides=[*SHORT, *overrides]))
        directory = Path(tempfile.mkdtemp(dir=tmp_path))
        parts = build(config, directory)
        parts.trainer.fit(parts.module, datamodule=parts.data)
        return parts

    yield fitted
    torch.set_num_threads(threads)
