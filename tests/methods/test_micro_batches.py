"""Batches passed in parts, and half precision: what a step is does not depend on how it is computed."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from short_run import Fit, metrics, weights
from torch import nn

from budgetnet.command.made import check_smallest_batch
from budgetnet.errors import UsageError


@pytest.mark.parametrize(
    ("precision", "epochs", "tolerance"), [("64-true", 12, 1e-9), ("32-true", 4, 1e-5)], ids=["float64", "float32"]
)
def test_a_batch_in_parts_is_the_same_step(fit: Fit, precision: str, epochs: int, tolerance: float) -> None:
    options = (f"trainer.precision={precision}", f"epochs={epochs}")
    whole, cut = fit(*options), fit(*options, "trainer.micro_batches=3")  # parts of 3, 3 and 2 images
    first, second = weights(whole), weights(cut)
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert value.shape == second[name].shape
        assert (value - second[name]).abs().max() <= tolerance, name
    differing = [
        {key for key in one if one[key] != other[key]} - {"seconds"} for one, other in zip(metrics(whole), metrics(cut))
    ]
    assert set().union(*differing) <= {"train_loss", "val_loss"}  # rounding; the same steps, cost, rates and accuracy
    assert whole.method.training.ledger.spent == cut.method.training.ledger.spent > 0
    assert whole.trainer.global_step == cut.trainer.global_step


def test_more_parts_than_images_are_as_many_parts_as_images(fit: Fit) -> None:
    options = ("trainer.precision=64-true", "epochs=4", "dataset.batch_size=4", "dataset.limit_train=24")
    first, second = weights(fit(*options)), weights(fit(*options, "trainer.micro_batches=9"))
    assert all((value - second[name]).abs().max() <= 1e-9 for name, value in first.items())


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_a_network_grows_and_learns_in_bf16(fit: Fit, precision: str) -> None:
    parts = fit(
        f"trainer.precision={precision}", "finetune.epochs=5", "trainer.micro_batches=2", "dataset.limit_train=80"
    )
    dtype = torch.bfloat16 if precision == "bf16-true" else torch.float32
    assert {value.dtype for value in weights(parts).values()} == {dtype}
    rows = metrics(parts)
    assert [row["phase"] for row in rows].count("grow") >= 3
    assert len({row["flops"] for row in rows}) >= 4
    assert rows[-1]["phase"] == "finetune"
    assert float(rows[-1]["train_loss"]) < 0.7 * float(rows[0]["train_loss"])
    assert float(rows[-1]["val_top1"]) > 50


@pytest.mark.parametrize(
    ("images", "parts", "refused"), [(8, 8, True), (7, 3, True), (1, 1, True), (8, 4, False), (2, 1, False)]
)
def test_one_value_where_a_norm_needs_two_is_refused_before_training(images: int, parts: int, refused: bool) -> None:
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    with (
        pytest.raises(UsageError, match="a norm has one value of a channel where 1 of the")
        if refused
        else nullcontext()
    ):
        check_smallest_batch("mine", head, (3, 8, 8), images, parts)
    pixels = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    check_smallest_batch("mine", pixels, (3, 8, 8), images, parts)  # one image has many values of a channel
