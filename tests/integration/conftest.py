"""Whole runs that several files of tests look at."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from commands import FORGETFUL, SHORT, run
from zygote import Forked


@pytest.fixture(autouse=True)
def no_run_is_left() -> Iterator[None]:
    """A test that fails leaves no process behind."""
    yield
    for process in list(Forked.running):
        process.kill()


@pytest.fixture(scope="session")
def short_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished short run that was never interrupted."""
    return _finished(tmp_path_factory.mktemp("short") / "run", *SHORT)


@pytest.fixture(scope="session")
def forgetful_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same of a network with dropout."""
    return _finished(tmp_path_factory.mktemp("forgetful") / "run", *SHORT, *FORGETFUL)


def _finished(directory: Path, *overrides: str) -> Path:
    finished = run(*overrides, f"run.dir={directory}")
    assert finished.returncode == 0, finished.stderr
    return directory
