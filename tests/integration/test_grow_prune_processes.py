"""Sampled networks on two processes."""

from __future__ import annotations

from pathlib import Path

from several import DDP, forked, of_each_rank

COMMAND = (
    "method=grow_prune", "backbone=own", "backbone._target_=nets.Small", "dataset=digits", "dataset.limit_train=80",
    "dataset.batch_size=8", "dataset.validation=0", "budget.flops=50%", "method.search_epochs=3", "finetune.epochs=1",
    "epochs=4", "optim.lr=0.02", "export=false", "logger=csv", *DDP, "+callbacks.waiting._target_=ranks.Waiting",
)  # fmt: skip


def test_they_sample_the_same_network_and_keep_the_same_of_the_rest(tmp_path: Path) -> None:
    """Without validation, which would give both the running statistics of the first."""
    for ended in forked(tmp_path / "notes", *COMMAND, f"run.dir={tmp_path}/run"):
        assert ended.code == 0, ended.errors
    epochs = of_each_rank(tmp_path / "notes", "epoch")
    assert len(epochs) == 4 and len({str(first["widths"]) for first, _ in epochs}) > 1
    for first, second in epochs[:-1]:  # in the last, of fine-tuning, each has the statistics of its own images
        assert first == second
