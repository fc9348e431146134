"""What tests of several parts share."""

from __future__ import annotations

import gc
import os
import signal
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from zygote import SHARED, share

# A shell that runs the tests in the background, or nohup, ignores these.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)


def pytest_collection_finish() -> None:
    """What has been imported stays: the garbage collector need not look at it from here on."""
    gc.freeze()
    gc.enable()


def pytest_configure(config: pytest.Config) -> None:
    """Of several workers each knows where the first process, which runs no tests, says what they fork."""
    if config.getoption("numprocesses", None) and not hasattr(config, "workerinput"):
        folder = tempfile.TemporaryDirectory()
        config.add_cleanup(folder.cleanup)
        os.environ[SHARED] = str(Path(folder.name, "address"))
    else:
        gc.disable()  # it would look again and again at what is imported, and finds nothing
        import lightning_first  # noqa: F401
        from files_once import read_once

        read_once()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_node_collection_finished(node: Any, ids: Sequence[str]) -> None:
    """One process is forked for the tests of all workers: its imports take seconds."""
    if not Path(os.environ[SHARED]).exists() and any(name.startswith("tests/integration/") for name in ids):
        share()


@pytest.fixture
def data_root() -> Path:
    """The folder that holds the published datasets: $BUDGETNET_DATA. A test of the real data is skipped without it."""
    root = os.environ.get("BUDGETNET_DATA")
    if not root:
        pytest.skip("BUDGETNET_DATA is not set: there is no real data to check")
    return Path(root)
