"""What looks at images besides training and validation, in a network that is not of single precision."""

from __future__ import annotations

import pytest
from short_run import Fit, metrics

PRUNED = ("prune.epochs=2", "finetune.epochs=1", "epochs=3", "prune.images=40")


OPTIONS = {
    "firefly": ("growth.init=firefly", "growth.policy=firefly", "growth.max_rounds=1"),
    "gradmax": ("growth.init=gradmax", "growth.policy=gradient", "growth.max_rounds=1"),
    "thinet": ("method=thinet", *PRUNED),
    "pfp": ("method=pfp", *PRUNED),
}
DOUBLE = ("firefly", "thinet")
"""In double precision by every run of the tests, the others in bfloat16."""


@pytest.mark.parametrize(
    ("name", "precision"),
    [
        pytest.param(name, precision, marks=[] if (name in DOUBLE) == (precision == "64-true") else [pytest.mark.soak])
        for name in OPTIONS
        for precision in ("bf16-true", "64-true")
    ],
)
def test_a_round_that_looks_at_images_has_them_in_the_networks_precision(name: str, precision: str, fit: Fit) -> None:
    few = ("dataset.limit_train=60", "dataset.batch_size=20", "epochs=3", "finetune.epochs=1")
    parts = fit(*few, f"trainer.precision={precision}", "trainer.test_every_epoch=true", *OPTIONS[name])
    rows = metrics(parts)
    assert len({row["flops"] for row in rows}) > 1
    assert all(0 <= float(row["test_top1"]) <= 100 for row in rows)
