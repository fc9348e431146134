"""What looks at images besides training and validation, in a network that is not of single precision."""

from __future__ import annotations

import pytest
from short_run import Fit, metrics

PRUNED = ("prune.epochs=2", "finetune.epochs=1", "epochs=3", "prune.images=40")


@pytest.mark.parametrize("precision", ["bf16-true", "64-true"])
@pytest.mark.parametrize(
    "options",
    [
        ("growth.init=firefly", "growth.policy=firefly", "growth.max_rounds=1"),
        ("growth.init=gradmax", "growth.policy=gradient", "growth.max_rounds=1"),
        ("method=thinet", *PRUNED),
        ("method=pfp", *PRUNED),
    ],
    ids=["firefly", "gradmax", "thinet", "pfp"],
)
def test_a_round_that_looks_at_images_has_them_in_the_networks_precision(
    fit: Fit, precision: str, options: tuple[str, ...]
) -> None:
    few = ("dataset.limit_train=60", "dataset.batch_size=20", "epochs=3", "finetune.epochs=1")
    parts = fit(*few, f"trainer.precision={precision}", "trainer.test_every_epoch=true", *options)
    rows = metrics(parts)
    assert len({row["flops"] for row in rows}) > 1
    assert all(0 <= float(row["test_top1"]) <= 100 for row in rows)
