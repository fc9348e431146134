"""From a folder of photographs to a predicted name: the command, `budgetnet.load`, and predict.py on its own."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from commands import run
from PIL import Image

import budgetnet
from budgetnet.data.class_folders import scan

CLASSES, EACH = 10, 20
SIZE = 32
NETWORK = """
from torch import nn
from torch.nn import functional as F

class Plain(nn.Module):
    def __init__(self, num_classes, in_channels, width=8):
        super().__init__()
        self.first = nn.Conv2d(in_channels, width, 3, stride=2, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.second = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(2 * width)
        self.head = nn.Linear(2 * width, num_classes)

    def forward(self, x):
        x = F.relu(self.norm1(self.first(x)))
        return self.head(F.relu(self.norm2(self.second(x))).mean((2, 3)))
"""
NEEDED = ("numpy", "numpy.libs", "PIL", "pillow.libs", "onnxruntime")
"""What predict.py is given to import."""


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two hundred photographs of ten classes: crops of one photograph of each."""
    sample = Path(os.environ.get("BUDGETNET_DATA", ""), "imagenet-sample")
    if not sample.is_dir():
        pytest.skip("BUDGETNET_DATA does not hold imagenet-sample")
    root, draw = tmp_path_factory.mktemp("own") / "my pictures", np.random.default_rng(0)
    for folder in sorted(sample.iterdir())[::20][:CLASSES]:
        photograph = Image.open(next(folder.iterdir())).convert("RGB")
        (root / folder.name).mkdir(parents=True)
        for number in range(EACH):
            part = draw.uniform(0.6, 0.9)
            width, height = (round(part * side) for side in photograph.size)
            left, top = (int(draw.integers(0, side - some)) for side, some in zip(photograph.size, (width, height)))
            crop = photograph.crop((left, top, left + width, top + height)).resize((96, 80))
            crop.save(root / folder.name / f"{number}.{'png' if number % 5 else 'jpg'}", quality=95)
    return root


@pytest.fixture(scope="module")
def trained(pictures: Path) -> Path:
    """The run of a network that lies in a folder of its own."""
    code, directory = pictures.parent / "code", pictures.parent / "run"
    code.mkdir()
    (code / "plain_net.py").write_text(NETWORK)
    finished = run(
        "dataset=folder", f"dataset.root='{pictures}'", f"dataset.image_size={SIZE}", "dataset.workers=0",
        "backbone=own", "backbone._target_=plain_net.Plain", "budget.flops=60%", "growth.seed_width=4",
        "growth.epochs_per_round=2", "epochs=12", "finetune.epochs=8", "dataset.batch_size=16",
        "optim.lr=0.05", "logger=csv", "threads=1",
        f"run.dir={directory}",
        module="budgetnet.command.main", variables={"PYTHONPATH": f"src:.:{code}"},
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr
    return directory


def test_a_picture_has_the_same_name_with_and_without_this_package(
    trained: Path, pictures: Path, tmp_path: Path
) -> None:
    net = budgetnet.load(trained)
    assert sorted(net.classes) == sorted(path.name for path in pictures.iterdir())
    data = scan(pictures)
    files = [data.path(number) for number in range(0, len(data), 3)]
    named = [net.predict(file) for file in files]
    for pairs in named:
        assert abs(sum(value for _, value in pairs) - 1) < 1e-5
        assert [value for _, value in pairs] == sorted((value for _, value in pairs), reverse=True)
    right = np.mean([pairs[0][0] == file.parent.name for pairs, file in zip(named, files)])
    assert right > 0.3  # a tenth by chance

    alone = tmp_path / "alone"
    alone.mkdir()
    installed = Path(np.__file__).parents[1]
    for name in NEEDED:
        if (installed / name).exists():
            (alone / name).symlink_to(installed / name)
    for name in ("predict.py", "preprocessing.json", "model.onnx"):
        (tmp_path / name).write_bytes((trained / name).read_bytes())
    start = f"import runpy, sys; sys.path.append({str(alone)!r}); sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0])"
    words = [sys.executable, "-I", "-S", "-c", start, str(tmp_path / "predict.py"), *map(str, files)]
    done = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path, timeout=120)
    assert done.returncode == 0, done.stderr
    said = re.findall(r"^(.*): (n\d+) ([\d.]+) %$", done.stdout, re.MULTILINE)[::5]
    assert [file for file, _, _ in said] == list(map(str, files))
    for (_, name, percent), pairs in zip(said, named, strict=True):
        assert name == pairs[0][0]
        assert abs(float(percent) / 100 - pairs[0][1]) < 1e-3
    for wrong, said in (["predict.py"], "predict.py cannot be read as a picture"), ([], "usage: python predict.py"):
        refused = subprocess.run([*words[:6], *wrong], capture_output=True, text=True, cwd=tmp_path, timeout=120)
        assert refused.returncode == 1 and refused.stderr.startswith(said), refused.stderr


def test_the_export_says_how_it_is_used(trained: Path) -> None:
    about = json.loads((trained / "preprocessing.json").read_text())
    assert about["task"] == "classification" and len(about["classes"]) == CLASSES
    assert (about["size"], about["mode"], about["scale"], about["crop"]) == ([SIZE, SIZE], "RGB", 1 / 255, 0.875)
    model = onnx.load(trained / "model.onnx")
    held = {entry.key: entry.value for entry in model.metadata_props}
    assert json.loads(held["classes"]) == about["classes"] and json.loads(held["mean"]) == about["mean"]
    assert held["mode"] == "RGB" and int(held["opset"]) == model.opset_import[0].version
    extra = {"preprocessing.json": ""}
    torch.export.load(trained / "model.pt2", extra_files=extra)
    assert json.loads(extra["preprocessing.json"])["size"] == [SIZE, SIZE]
    batch = onnxruntime.InferenceSession(trained / "model.onnx").get_inputs()[0].shape[0]
    assert isinstance(batch, str)


def test_last_and_best_are_loaded_at_their_widths(trained: Path) -> None:
    net, last = budgetnet.load(trained), budgetnet.load(trained, "last")
    assert net.widths == last.widths == net.summary["widths"] and net.net.first.out_channels == net.widths["first"]
    assert (net.epoch, last.epoch) == (net.summary["best_epoch"], net.summary["epochs"])
    assert not net.training and "plain_net" not in str(sys.path)
    with pytest.raises(budgetnet.UsageError, match="expected best or last"):
        budgetnet.load(trained, "first")
    with pytest.raises(budgetnet.UsageError, match="is not a run directory"):
        budgetnet.load(trained.parent)
