"""best.ckpt is what last.ckpt tells, is made of it again, or is said to be lost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from budgetnet.errors import RunError
from budgetnet.runs.best import best_epoch, fingerprint, lost_best
from budgetnet.runs.checkpoints import CHECKPOINT_FORMAT, load_checkpoint


def checkpoint(epochs: int, weight: float, best: int, best_weight: float) -> dict[str, Any]:
    """A checkpoint after some epochs, which tells of the weights of the best epoch."""
    told = {"best_epoch": best, "best_value": 91.25, "best_weights": fingerprint({"w": torch.tensor([best_weight])})}
    return {
        "state_dict": {"w": torch.tensor([weight])},
        "callbacks": {"Checkpoint": told},
        "budgetnet": {"format": CHECKPOINT_FORMAT, "epochs": epochs, "batches": 0},
    }


def write(directory: Path, last: dict[str, Any], best: dict[str, Any] | None) -> dict[str, Any]:
    torch.save(last, directory / "last.ckpt")
    if best is not None:
        torch.save(best, directory / "best.ckpt")
    return load_checkpoint(directory / "last.ckpt")


BEST, LAST = checkpoint(6, 1.0, 6, 1.0), checkpoint(9, 2.0, 6, 1.0)


def test_the_file_that_is_told_of_is_taken_as_it_is(tmp_path: Path) -> None:
    last = write(tmp_path, LAST, BEST)
    before = (tmp_path / "best.ckpt").read_bytes()
    assert best_epoch(last) == 6 and lost_best(tmp_path, last) is None
    assert (tmp_path / "best.ckpt").read_bytes() == before


def test_a_missing_file_is_said_to_be_lost_with_its_epoch_and_value(tmp_path: Path) -> None:
    assert lost_best(tmp_path, write(tmp_path, LAST, None)) == (
        "best.ckpt with the weights of epoch 6, whose validation metric was 91.25, is lost: the result is selected "
        "among the epochs from 9 on"
    )


@pytest.mark.parametrize("other", [None, b"half", checkpoint(6, 3.0, 6, 3.0), checkpoint(4, 0.5, 4, 0.5)])
def test_it_is_made_again_of_a_last_checkpoint_with_the_same_weights(other: Any, tmp_path: Path) -> None:
    last = write(tmp_path, checkpoint(6, 1.0, 6, 1.0), other if isinstance(other, dict) else None)
    if isinstance(other, bytes):
        (tmp_path / "best.ckpt").write_bytes(other)
    assert lost_best(tmp_path, last) is None
    assert (tmp_path / "best.ckpt").read_bytes() == (tmp_path / "last.ckpt").read_bytes()


def test_a_damaged_file_is_named_with_what_removing_it_means_and_left_alone(tmp_path: Path) -> None:
    last = write(tmp_path, LAST, BEST)
    damaged = (tmp_path / "best.ckpt").read_bytes()[:200]
    (tmp_path / "best.ckpt").write_bytes(damaged)
    with pytest.raises(
        RunError, match=r"best.ckpt is damaged \(.*epoch 6.*91.25.*restore it, or remove it to go on wit"
    ):
        lost_best(tmp_path, last)
    assert (tmp_path / "best.ckpt").read_bytes() == damaged


@pytest.mark.parametrize("foreign", [checkpoint(6, 3.0, 6, 3.0), checkpoint(7, 1.0, 7, 1.0)])
def test_the_file_of_another_run_of_the_same_widths_is_not_taken(foreign: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"best.ckpt is of another run: it should hold the weights of epoch 6"):
        lost_best(tmp_path, write(tmp_path, LAST, foreign))


def test_before_the_first_best_epoch_nothing_is_lost(tmp_path: Path) -> None:
    early = checkpoint(2, 1.0, 0, 0.0)
    assert lost_best(tmp_path, write(tmp_path, early, checkpoint(6, 3.0, 6, 3.0))) is None and best_epoch(early) is None


def test_a_damaged_last_checkpoint_is_said_with_what_is_left(tmp_path: Path) -> None:
    write(tmp_path, LAST, BEST)
    (tmp_path / "last.ckpt").write_bytes(b"half")
    with pytest.raises(
        RunError, match=r"put best.ckpt, of an earlier epoch, in its place, or remove it to start again"
    ):
        load_checkpoint(tmp_path / "last.ckpt")
