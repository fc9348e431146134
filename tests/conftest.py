"""What tests of several parts share."""

from __future__ import annotations

import gc
import os
import signal
from pathlib import Path

import pytest
from files_once import parse_once

# A shell that runs the tests in the background, or nohup, ignores these.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
parse_once()


def pytest_collection_finish() -> None:
    """What has been imported stays: the garbage collector need not look at it again and again."""
    gc.freeze()


@pytest.fixture
def data_root() -> Path:
    """The folder that holds the published datasets: $BUDGETNET_DATA. A test of the real data is skipped without it."""
    root = os.environ.get("BUDGETNET_DATA")
    if not root:
        pytest.skip("BUDGETNET_DATA is not set: there is no real data to check")
    return Path(root)
