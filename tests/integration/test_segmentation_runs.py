"""Whole runs whose labels are of pixels."""

from __future__ import annotations

import json
import re
from pathlib import Path

import onnxruntime
import pytest
import torch
from commands import run
from killed import At, learned, rows

from budgetnet.command.build import build
from budgetnet.command.compose import composed
from budgetnet.data import shapes
from budgetnet.errors import UsageError
from budgetnet.reports.page import page
from budgetnet.reports.rows import final_row
from budgetnet.reports.tables import as_csv, header
from budgetnet.runs.directory import RunDirectory
from budgetnet.runs.records import metric_columns
from budgetnet.tasks import Segmentation

SMALL = (
    "dataset=shapes", "dataset.source.image_size=16", "dataset.source.train=120", "dataset.source.test=40",
    "dataset.validation=40", "dataset.batch_size=16", "logger=csv",
)  # fmt: skip
TINY = (
    *SMALL, "backbone=own", "backbone._target_=tests.nets.Convolutional", "budget.flops=90%", "epochs=6",
    "growth.epochs_per_round=1", "growth.init=gradmax", "finetune.epochs=3", "trainer.test_every_epoch=true",
    "threads=1",
)  # fmt: skip


@pytest.fixture(scope="module")
def segmented(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run that grew."""
    directory = tmp_path_factory.mktemp("segmented") / "run"
    finished = run(*TINY, f"run.dir={directory}")
    assert finished.returncode == 0, finished.stderr
    assert "Test mIoU %" in finished.stdout
    return directory


def test_mean_iou_selects_and_stands_everywhere_with_the_accuracy_of_pixels_beside_it(segmented: Path) -> None:
    run_directory = RunDirectory(segmented)
    summary, metrics, row = run_directory.summary, run_directory.metrics, final_row(run_directory)
    assert summary is not None and summary["rounds"] > 1 and summary["stop_reason"] == "flops"
    assert tuple(metrics[0]) == metric_columns(["miou", "pixel_accuracy"])
    assert all(0 < line["val_miou"] < line["val_pixel_accuracy"] <= 100 for line in metrics)
    final = [line for line in metrics if line["phase"] == "finetune"]
    best = max(final, key=lambda line: (line["val_miou"], line["epoch"]))
    assert summary["best_epoch"] == best["epoch"]
    assert all(summary[f"val_{name}"] == best[f"val_{name}"] for name in ("miou", "pixel_accuracy"))
    assert {"test_miou", "test_miou_last", "test_miou_best", "test_pixel_accuracy"} <= set(summary)
    assert not [name for name in summary if "top" in name and name.startswith(("val_", "test_"))]
    assert row.number("test_miou") == summary["test_miou"] and "Test mIoU %" in header([row])
    assert "test_miou" in as_csv([row]).splitlines()[0].split(",")
    for text in ((segmented / "report.md").read_text(), page([run_directory])):
        assert f"{summary['test_miou']:.2f}" in text and "Test mIoU" in text.replace("<span>", "")


def test_the_exported_network_has_the_scores_of_the_summary(segmented: Path) -> None:
    summary = json.loads((segmented / "summary.json").read_text())
    _, test = shapes(image_size=16, train=1, test=40)
    images = (test.images.float() / 255 - 0.5) / 0.5
    session = onnxruntime.InferenceSession(segmented / "model.onnx", providers=["CPUExecutionProvider"])
    logits = torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])
    assert logits.shape == (40, 4, 16, 16)
    task = Segmentation()
    scores = task.compute(task.sums(logits, test.labels.long()))
    assert scores == {name: pytest.approx(summary[f"test_{name}"], abs=0.02) for name in scores}
    assert torch.allclose(torch.export.load(segmented / "model.pt2").module()(images), logits, atol=1e-3)


def test_a_network_that_is_left_as_its_search_ends_has_the_validation_scores_of_the_summary(tmp_path: Path) -> None:
    """They are measured anew: the last epoch's are of other batch-norm statistics."""
    options = (
        *SMALL, "method=bsn", "backbone=cnf", "backbone.columns=2", "backbone.channels=4", "budget.flops=50%",
        "method.warmup_epochs=1", "method.lr=20", "method.search_epochs=2", "method.images=64", "finetune.epochs=0",
        "epochs=2", "threads=1", "seed=1",  # with others a network of two epochs sees the background alone
    )  # fmt: skip
    finished = run(*options, f"run.dir={tmp_path}/run")
    assert finished.returncode == 0, finished.stderr
    directory = RunDirectory(tmp_path / "run")
    summary, data = directory.summary, build(composed(options), tmp_path / "again").data
    assert summary is not None and data.splits.validation is not None
    images = (data.splits.validation.images.float() / 255 - 0.5) / 0.5
    session = onnxruntime.InferenceSession(directory.path / "model.onnx", providers=["CPUExecutionProvider"])
    logits = torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])
    task = Segmentation()
    scores = task.compute(task.sums(logits, data.splits.validation.labels.long()))
    assert scores == {name: pytest.approx(summary[f"val_{name}"], abs=0.02) for name in scores}
    assert scores["miou"] != pytest.approx(directory.metrics[-1]["val_miou"], abs=0.02)


@pytest.mark.soak
def test_a_killed_segmentation_goes_on_to_the_same_bits(segmented: Path, tmp_path: Path) -> None:
    command = [*TINY, f"run.dir={tmp_path}/run"]
    killed = run(*command, "export=false", before=At("budgetnet.training.learner.Learner.training_step", 17))
    assert killed.returncode == -9 and len(rows(tmp_path / "run" / "metrics.csv")) == 3
    continued = run(*command, "export=false", "task=segmentation")
    assert continued.returncode == 2 and "(differing: task._target_, task.name)" in continued.stderr
    assert run(*command, "export=false").returncode == 0
    assert learned(tmp_path / "run") == learned(segmented)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("backbone=resnet20",), "backbone=resnet20 classifies whole images: choose one that segments, such as cnf"),
        (("backbone=own", "backbone._target_=tests.nets.Small"), "backbone=tests.nets.Small classifies whole images"),
        (
            ("backbone=own", "backbone._target_=tests.nets.Coarse"),
            "it gives (2, 4, 8, 8) for two images: expected a tensor of shape (2, 4, 16, 16)",
        ),
        (("task=classification",), "task=classification, but the labels of dataset=shapes are of pixels: leave"),
        (("task=segmentation", "dataset=digits"), "but the labels of dataset=digits are of whole images: leave"),
        (("dataset.validation=null",), "dataset.validation=null: shapes has no validation set of its own"),
        (("dataset=part_labels", "dataset.root=/nowhere"), "/nowhere/parts_train.txt cannot be read"),
        (("dataset=image_masks", "dataset.root=/nowhere"), "dataset.root=/nowhere holds no folder train"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_what_does_not_fit_a_task_is_refused_in_one_line(
    overrides: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    own = any(override.startswith("dataset=") for override in overrides)
    small = [override for override in SMALL if not (own and override.startswith("dataset"))]
    config = composed([*small, *overrides, "budget.flops=90%"])
    with pytest.raises(UsageError, match=re.escape(message)) as error:
        build(config, tmp_path / "run")
    assert "\n" not in str(error.value) and not (tmp_path / "run").exists()


def test_a_task_that_is_not_there_is_refused_with_those_that_are(tmp_path: Path) -> None:
    refused = run(*SMALL, "task=detection", f"run.dir={tmp_path}/run")
    (line,) = refused.stderr.splitlines()
    assert refused.returncode == 2 and line.startswith("error: ")
    assert all(word in line for word in ("task", "detection", "classification", "segmentation"))
