"""Whole runs that several files of tests look at."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from commands import SHORT, TINY, run
from zygote import Forked


@pytest.fixture(autouse=True)
def no_run_is_left() -> Iterator[None]:
    """A test that fails leaves no process behind."""
    yield
    for process in list(Forked.running):
        process.kill()


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished tiny run that was never interrupted."""
    return _finished(tmp_path_factory.mktemp("tiny") / "run", *TINY, figures=True)


@pytest.fixture(scope="session")
def short_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished short run that was never interrupted."""
    return _finished(tmp_path_factory.mktemp("short") / "run", *SHORT)


def _finished(directory: Path, *overrides: str, figures: bool = False) -> Path:
    finished = run(*overrides, f"run.dir={directory}", figures=figures)
    assert finished.returncode == 0, finished.stderr
    return directory
