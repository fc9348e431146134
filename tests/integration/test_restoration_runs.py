"""Whole runs that restore pictures: super-resolution and denoising of parts of real photographs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from commands import refusal, run
from covering import covered
from killed import At, learned, rows
from pictures import photograph, save, save_folder

import budgetnet
from budgetnet.data.picture_loaders import PictureLoader, Scale
from budgetnet.data.picture_sets import super_resolution
from budgetnet.reports.page import page
from budgetnet.runs.directory import RunDirectory
from budgetnet.tasks import SuperResolution

COMMON = (
    "dataset.validation=1", "dataset.source.patches=8", "dataset.batch_size=4", "optim.lr=0.002",
    "optim.optimizer=adam", "optim.weight_decay=0", "logger=csv", "trainer.progress=false", "threads=1",
)  # fmt: skip
DOUBLED = (
    *COMMON, "dataset=super_resolution", "dataset.source.patch=24", "dataset.source.test=[Set5,Set14]", "epochs=2",
)  # fmt: skip
LARGER = (*DOUBLED, "backbone=edsr", "backbone.width=6", "backbone.blocks=1")
CLEANER = (
    *COMMON, "dataset=denoising", "dataset.source.patch=16", "dataset.source.sigma=40", "dataset.source.test=Set5",
    "epochs=2", "export=false",
)  # fmt: skip
LWDNA = (*LARGER, "method=lwdna", "budget.flops=100%")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("pictures")
    save_folder(root / "train", 3)
    save_folder(root / "Set5", 2, name="china")
    save(photograph(40, 64, name="china"), root / "Set14" / "a.png")
    return root


@pytest.fixture(scope="module")
def doubled(folder: Path) -> Path:
    finished = run(*LWDNA, f"dataset.root={folder}", f"run.dir={folder}/run", figures=True)
    assert finished.returncode == 0, finished.stderr
    assert "Test PSNR dB" in " ".join(finished.stdout.split())
    return folder / "run"


def test_psnr_selects_and_stands_everywhere_with_ssim_beside_it(doubled: Path) -> None:
    directory = RunDirectory(doubled)
    summary = json.loads((doubled / "summary.json").read_text())
    assert summary["flops"] <= summary["budget"]["flops"]["limit"] and summary["stop_reason"] == "flops"
    best = max(rows(doubled / "metrics.csv"), key=lambda row: float(row["val_psnr"]))
    assert summary["val_psnr"] == float(best["val_psnr"]) and summary["best_epoch"] == int(best["epoch"])
    assert {"test_psnr", "test_ssim", "test_psnr_last", "test_psnr_Set14", "test_ssim_Set14"} <= set(summary)
    for text in ((doubled / "report.md").read_text(), page([directory])):
        assert f"{summary['test_psnr']:.2f}" in text
    examples = np.load(doubled / "examples.npz")
    assert {name: examples[name].shape for name in examples} == {
        "input": (2, 3, 24, 24), "output": (2, 3, 48, 48), "truth": (2, 3, 48, 48),
    }  # fmt: skip
    assert (doubled / "figures" / "examples.png").stat().st_size > 1000


def test_the_exported_network_has_the_scores_of_the_summary_on_pictures_of_any_size(
    doubled: Path, folder: Path
) -> None:
    summary = json.loads((doubled / "summary.json").read_text())
    _, test = super_resolution(folder, patch=24, test=["Set14", "Set5"])
    session = onnxruntime.InferenceSession(doubled / "model.onnx", providers=["CPUExecutionProvider"])
    program, task = torch.export.load(doubled / "model.pt2").module(), SuperResolution(2)
    for name, pictures in {"_Set14": test, "": test.others["Set5"]}.items():
        loader = PictureLoader(pictures, Scale((0,) * 3, (1,) * 3, "cpu", channels_last=False))
        sums = torch.zeros(3, dtype=torch.float64)
        for inputs, truth in loader:
            output = torch.from_numpy(session.run(None, {"images": inputs.numpy()})[0])
            torch.testing.assert_close(program(inputs), output, atol=1e-4, rtol=1e-3)
            sums += task.sums(output, truth)
        scores = task.compute(sums)
        assert scores["psnr"] == pytest.approx(summary[f"test_psnr{name}"], abs=0.01)


def test_a_run_that_is_loaded_makes_a_picture_of_a_file_of_any_size(doubled: Path, folder: Path) -> None:
    file, net = folder / "Set14" / "a.png", budgetnet.load(doubled)
    pixels = net.predict(file)
    assert (pixels.dtype, tuple(pixels.shape)) == (torch.uint8, (80, 128, 3))
    output = net(net.preprocess(file))[0].detach().movedim(0, -1)
    assert (pixels - 255 * output.clamp(0, 1)).abs().max() <= 0.5 + 1e-4


@pytest.mark.soak
def test_a_run_that_is_killed_goes_on_to_the_same_bits(doubled: Path, folder: Path, tmp_path: Path) -> None:
    command = (*LWDNA, f"dataset.root={folder}", f"run.dir={tmp_path}/run", "export=false")
    step = At("budgetnet.training.learner.Learner.training_step", 7)
    assert run(*command, "checkpoint.every_n_steps=1", before=step).returncode == -9
    finished = run(*command)
    assert finished.returncode == 0, finished.stderr
    assert learned(tmp_path / "run") == learned(doubled)


ENDING = {
    "l1": (*LARGER, "method=l1", "budget.flops=70%", "prune.epochs=1", "prune.steps=1", "finetune.epochs=1",
           "dataset.source.test=Set5", "export=false"),
    "width": (*CLEANER, "method=width", "backbone=unet", "backbone.width=8", "backbone.levels=2", "budget.flops=50%"),
    "adenel": (
        *CLEANER, "method=adenel", "backbone=dncnn", "backbone.width=8", "backbone.layers=2", "budget.flops=60%",
        "optim.optimizer=sgd", "optim.lr=0.01", "epochs=8", "finetune.epochs=1", "growth.epochs_per_round=1",
        "growth.seed_width=2", "growth.cost_ratio=1",
    ),
    "dhp": (
        *CLEANER, "method=dhp", "backbone=unet", "backbone.width=4", "backbone.levels=2", "budget.flops=60%",
        "epochs=2", "finetune.epochs=1", "method.floor=1",
    ),
    "lwdna": (
        *LARGER, "method=lwdna", "budget.flops=100%", "backbone=srresnet", "dataset.source.scale=4",
        "dataset.source.patch=24", "dataset.source.test=Set5", "epochs=1",
    ),
}  # fmt: skip


@pytest.mark.parametrize("method", covered(ENDING, ("width", "adenel")))
def test_other_methods_end_within_their_budget(method: str, folder: Path, tmp_path: Path) -> None:
    finished = run(*ENDING[method], f"dataset.root={folder}", f"run.dir={tmp_path}/run")
    assert finished.returncode == 0, finished.stderr
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    limit = summary["budget"]["flops"]["limit"]
    assert 0.8 * limit < summary["flops"] <= limit and summary["test_psnr"] > 0


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (("dataset.source.patch=26", "dataset.source.scale=3"), "dataset.source.patch=26: expected a number of pixels"),
        (("dataset.source.patch=64",), "less than a patch: remove it, or set dataset.source.patch to 48 at most"),
        (("dataset.source.patch=12",), "too small for SSIM"),
        (("dataset.validation=3",), "dataset.validation=3: expected less than the 3 training images"),
        (("backbone=resnet20",), "backbone=resnet20: it gives (2, 3) for two images: expected a tensor of shape"),
        (
            ("backbone=unet",),
            "backbone=unet: it gives (2, 3, 12, 12) for two images: expected a tensor of shape (2, 3,",
        ),
        (("task=classification",), "but the labels of dataset=super_resolution are of pictures to restore"),
        (("optim.label_smoothing=0.1",), "optim.label_smoothing=0.1: task=budgetnet.tasks.SuperResolution does not"),
        (("dataset.imbalance=0.1",), "dataset.imbalance=0.1: expected a class for each image"),
        (("method=adenel",), "optim.optimizer=adam: method=adenel has an optimizer of its own"),
    ],
)
def test_bad_input_is_one_line_before_anything_is_written(
    options: tuple[str, ...], text: str, folder: Path, tmp_path: Path
) -> None:
    command = (*DOUBLED, "backbone=edsr", "budget.flops=50%", "method=l1", *options)
    assert text in refusal(tmp_path / "run", *command, f"dataset.root={folder}")
