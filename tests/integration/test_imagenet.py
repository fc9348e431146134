"""ResNet-18 on two processes and a folder of JPEGs: grown, killed, continued, and its accuracy counted again."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import TINY
from killed import kept, learned, rows
from PIL import Image
from several import DDP, SECONDS, WATCHED, forked, launched, of_each_rank

from budgetnet import backbones
from budgetnet.data import read_class_folders
from budgetnet.data.folder import IMAGENET_MEAN, IMAGENET_STD, centre_crop, decode

CLASSES, TRAIN, TEST = 8, 14, 6
SIZE = 32
COMMAND = (
    *(o for o in TINY if not o.startswith(("dataset=", "backbone=", "budget.", "growth.seed_shape"))), *DDP, *WATCHED,
    "dataset=imagenet", "backbone=resnet18", "budget.flops=2%", "growth.seed_width=3", "growth.ratio=0.3",
    f"dataset.image_size={SIZE}", "dataset.validation=16", "dataset.batch_size=16", "dataset.eval_batch_size=16",
    "dataset.workers=1", "growth.max_rounds=2", "finetune.epochs=1", "epochs=3", "checkpoint.every_n_steps=2",
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """train/ and val/ with a few photographs a class: of ImageNet where there are some, else generated."""
    root = tmp_path_factory.mktemp("imagenet")
    sample = Path(os.environ.get("BUDGETNET_DATA", "data"), "imagenet-sample")
    photographs = sorted(sample.rglob("*.JPEG"))
    draw = np.random.default_rng(0)
    for label in range(CLASSES):
        for part, count in (("train", TRAIN), ("val", TEST)):
            place = root / part / f"n{label:08d}"
            place.mkdir(parents=True)
            for number in range(count):
                file = place / f"{number}.JPEG"
                if len(photographs) >= CLASSES * (TRAIN + TEST):
                    file.symlink_to(photographs.pop())
                else:
                    pixels = draw.integers(0, 255, (4, 5, 3), dtype=np.uint8)
                    Image.fromarray(pixels).resize((80, 64)).save(file)
    return root


@pytest.fixture(scope="module")
def trained(folder: Path) -> Path:
    """The run that was never interrupted."""
    directory = folder.parent / "trained"
    for ended in forked(folder.parent / "notes", *COMMAND, f"dataset.root={folder}", f"run.dir={directory}"):
        assert (ended.code, ended.said) == (0, []), ended.errors
    return directory


def test_it_grows_on_two_processes_that_read_different_files(trained: Path) -> None:
    notes = trained.parent / "notes"
    epochs = of_each_rank(notes, "epoch")
    assert len({str(first["widths"]) for first, _ in epochs}) == 2
    for first, second in epochs:
        assert first == second
    steps = of_each_rank(notes, "batch")
    assert len(steps) == len(epochs) * ((CLASSES * TRAIN - 16) // 16)
    assert not any(set(first["images"]) & set(second["images"]) for first, second in steps)


def test_top_1_and_top_5_are_those_counted_by_hand(trained: Path, folder: Path) -> None:
    summary = json.loads((trained / "summary.json").read_text())
    state = torch.load(trained / "best.ckpt", weights_only=True)
    net = backbones.build("resnet18", num_classes=CLASSES, widths=state["budgetnet"]["widths"])
    weights = {name.removeprefix("net."): value for name, value in state["state_dict"].items()}
    net.load_state_dict({name: value for name, value in weights.items() if name in net.state_dict()})
    _, test = read_class_folders(folder, image_size=SIZE)
    mean, std = torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_STD)
    places = []
    for index, label in enumerate(test.labels.tolist()):
        pixels = torch.from_numpy(decode(test.path(index), centre_crop, SIZE)).float() / 255
        with torch.no_grad():
            (logits,) = net.eval()(((pixels - mean) / std).permute(2, 0, 1)[None])
        places.append(int((logits > logits[label]).sum()))
    assert len(places) == CLASSES * TEST
    for k in (1, 5):
        right = 100 * sum(place < k for place in places) / len(places)
        assert summary[f"test_top{k}"] == pytest.approx(right, abs=1e-3)
    assert summary["test_top1"] < summary["test_top5"] < 100
    assert all(float(row["val_top1"]) <= float(row["val_top5"]) for row in rows(trained / "metrics.csv"))


@pytest.mark.soak
def test_killed_in_the_middle_of_an_epoch_it_goes_on_to_the_same_bits(trained: Path, folder: Path) -> None:
    directory = folder.parent / "killed"
    overrides = (*COMMAND, f"dataset.root={folder}", f"run.dir={directory}")
    ended = launched(folder.parent / "again", *overrides, trouble="SIGKILL:1:1:4")
    assert ended.code == 1 and ended.seconds < SECONDS
    assert [line for line in ended.said if "the process of rank 1 was killed by SIGKILL" not in line] == []
    assert kept(directory) == (1, 4)
    for again in forked(folder.parent / "again", *overrides):
        assert (again.code, again.said) == (0, []), again.errors
    assert learned(directory) == learned(trained)
