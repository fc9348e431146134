"""Callbacks and loggers of Lightning's: they see the metrics, and those that cannot work are refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from budgetnet.command.build import Components, build
from budgetnet.command.compose import composed
from budgetnet.errors import UsageError

TINY = (
    "dataset=digits", "backbone=lenet5", "budget.flops=80%", "growth.seed_shape=equal", "growth.epochs_per_round=1",
    "growth.cost_ratio=2", "finetune.epochs=3", "epochs=6", "dataset.limit_train=80", "dataset.batch_size=20",
    "threads=1", "trainer.progress=false", "trainer.accelerator=cpu",
)  # fmt: skip
CALLBACK = "+callbacks.one._target_=pytorch_lightning.callbacks."


def fitted(directory: Path, *overrides: str) -> Components:
    run = build(composed([*TINY, *overrides]), directory)
    directory.mkdir(exist_ok=True)
    run.trainer.fit(run.learner, datamodule=run.data)
    return run


def test_early_stopping_sees_the_validation_metric(tmp_path: Path) -> None:
    stopping = (f"{CALLBACK}EarlyStopping", "+callbacks.one.monitor=val_top1", "+callbacks.one.mode=max",
                "+callbacks.one.min_delta=200", "+callbacks.one.patience=2")  # fmt: skip
    run = fitted(tmp_path / "run", "logger=csv", *stopping)
    assert run.trainer.current_epoch == 3  # the first value, then two that are no 200 points better
    assert float(run.trainer.callback_metrics["val_top1"]) == pytest.approx(run.learner.results["val_top1"])
    assert {"train_loss", "train_top1", "val_loss", "val_top5"} <= set(run.trainer.callback_metrics)


def test_a_checkpoint_of_lightnings_own_is_chosen_by_a_metric(tmp_path: Path) -> None:
    chosen = (f"{CALLBACK}ModelCheckpoint", "+callbacks.one.monitor=val_loss", f"+callbacks.one.dirpath={tmp_path}/own")
    run = fitted(tmp_path / "run", "logger=csv", *chosen)
    assert [path.suffix for path in (tmp_path / "own").iterdir()] == [".ckpt"]
    assert run.trainer.callbacks is not None


def test_any_logger_by_target_has_every_number_of_metrics_csv_and_the_learning_rate(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    fitted(tmp_path / "run", "logger=tensorboard", f"{CALLBACK}LearningRateMonitor")
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    tags = set(events.Tags()["scalars"])
    assert {"train_loss", "val_top1", "flops", "train_cost_flops", "growth/round"} <= tags
    assert any(tag.startswith("lr") for tag in tags)
    assert len(events.Scalars("val_top1")) == len((tmp_path / "run" / "metrics.csv").read_text().splitlines()) - 1


@pytest.mark.parametrize(
    ("callback", "text"),
    [
        (
            ("StochasticWeightAveraging", "+callbacks.one.swa_lrs=0.1"),
            "averages weights of networks",
        ),
        (("GradientAccumulationScheduler", "+callbacks.one.scheduling={1:2}"), "use trainer.micro_batches"),
        (("ModelPruning", "+callbacks.one.pruning_fn=l1_unstructured"), "use a pruning method"),
        (("BatchSizeFinder",), "set dataset.batch_size"),
        (("LearningRateFinder",), "set optim.lr"),
        (("SpikeDetection",), "methods take their own steps"),
    ],
)
def test_callbacks_that_cannot_work_with_a_changing_network_are_refused(
    callback: tuple[str, ...], text: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=f"{callback[0]} cannot be used here: .*{text}"):
        build(composed([*TINY, "logger=csv", f"{CALLBACK}{callback[0]}", *callback[1:]]), tmp_path)


@pytest.mark.parametrize(
    ("logger", "text"),
    [
        ("no_such.Logger", r"logger._target_=no_such.Logger cannot be built \(ModuleNotFoundError"),
        ("torch.nn.Flatten", r"logger._target_=torch.nn.Flatten made a Flatten: expected a logger"),
    ],
)
def test_what_is_no_logger_is_refused_in_one_line(logger: str, text: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=text):
        fitted(tmp_path / "run", "logger=own", f"logger._target_={logger}")
