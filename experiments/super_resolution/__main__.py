"""The photographs of experiments/super_resolution, and its table and figure.

pip install -e '.[photographs]'
python -m experiments.super_resolution photographs                        # writes photographs/train and test
python -m src.run -m experiment=photographs
python -m src.run -m experiment=photographs method=train 'run.name=train-${seed}'
python -m experiments.super_resolution photographs runs/photographs       # results.csv, table.md and the figure
"""

from __future__ import annotations

import csv
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from budgetnet.command.build import build
from budgetnet.data.picture_loaders import PictureLoader, Scale
from budgetnet.data.picture_sets import super_resolution
from budgetnet.data.pictures import files_of
from budgetnet.data.restoration import bicubic
from budgetnet.runs.checkpoints import load_checkpoint
from budgetnet.runs.directory import RunDirectory
from budgetnet.tasks import SuperResolution

HERE = Path(__file__).parent
SCALE = 2
TRAINING = ("astronaut", "brick", "camera", "coffee", "coins", "grass", "gravel")
"""Photographs of scikit-image to train on, with the left one of its pair of motorcycles and scikit-learn's flower."""
TEST = ("chelsea", "rocket")
"""Those held out, with scikit-learn's photograph of China."""
SHOWN = {"chelsea": (100, 150), "china": (170, 260), "rocket": (170, 250)}
"""The corner of the part of each held-out photograph that the figure shows."""
SIDE = 96


def write_photographs(root: Path) -> None:
    """The photographs that come with scikit-image and scikit-learn, as PNG files in root/train and root/test."""
    import skimage.data
    from sklearn.datasets import load_sample_image

    pictures: dict[str, np.ndarray] = {f"train/{name}": getattr(skimage.data, name)() for name in TRAINING}
    pictures["train/motorcycle"] = skimage.data.stereo_motorcycle()[0]
    pictures["train/flower"] = load_sample_image("flower.jpg")
    pictures |= {f"test/{name}": getattr(skimage.data, name)() for name in TEST}
    pictures["test/china"] = load_sample_image("china.jpg")
    for name, pixels in pictures.items():
        path = root / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)


def interpolated(inputs: Tensor) -> Tensor:
    """Bicubic interpolation of a batch of one picture in 0..1, to bytes as an image file holds them."""
    _, _, height, width = inputs.shape
    pixels = (255 * inputs[0]).round().to(torch.uint8)
    return bicubic(pixels, (SCALE * height, SCALE * width))[None].float() / 255


def restored(directory: Path) -> Callable[[Tensor], Tensor]:
    """The network of a finished run, with the weights that validation selects."""
    config = RunDirectory(directory).config
    learner = build({**config, "logger": {"name": "csv"}}, directory).learner
    state = load_checkpoint(directory / "best.ckpt")
    learner.on_load_checkpoint(state)
    learner.load_state_dict(state["state_dict"])
    net = learner.net.eval()

    @torch.no_grad()
    def restore(inputs: Tensor) -> Tensor:
        output: Tensor = net(inputs)
        return output

    return restore


def measure(root: Path, runs: Path) -> None:
    """PSNR and SSIM of every held-out photograph by every run and by bicubic interpolation, and the figure."""
    _, test = super_resolution(root, scale=SCALE, patch=48)
    names = [path.stem for path in files_of(root / "test")]
    loader, task = PictureLoader(test, Scale((0,) * 3, (1,) * 3, "cpu", channels_last=False)), SuperResolution(SCALE)
    finished = sorted(path.parent for path in runs.glob("*/done.json"))
    networks = {"bicubic": interpolated, **{path.name: restored(path) for path in finished}}
    rows, parts = [], dict[str, dict[str, Tensor]]()
    for name, (inputs, truth) in zip(names, loader, strict=True):
        top, left = SHOWN[name]
        cut = (..., slice(top, top + SIDE), slice(left, left + SIDE))
        parts[name] = {"truth": truth[0][cut] / 255}
        for run, network in networks.items():
            output = network(inputs)
            rows.append({"run": run, "picture": name, **task.compute(task.sums(output, truth))})
            parts[name][run] = output[0].clamp(0, 1)[cut]
    with open(HERE / "results.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, ["run", "picture", "psnr", "ssim"])
        writer.writeheader()
        writer.writerows(rows)
    (HERE / "table.md").write_text(_table(rows, names))
    _draw(parts, rows, ["bicubic", "train-0", "lwdna-0"])


def _table(rows: list[dict[str, object]], names: list[str]) -> str:
    """PSNR of every picture and of all: mean ± sample deviation over the seeds of a method."""
    lines = ["| | " + " | ".join(names) + " | mean PSNR (dB) | mean SSIM |", "| --- " * (len(names) + 3) + "|"]
    for method in dict.fromkeys(str(row["run"]).split("-")[0] for row in rows):
        runs = [run for run in dict.fromkeys(str(row["run"]) for row in rows) if run.split("-")[0] == method]
        cells = []
        for measure, among in [*(("psnr", [name]) for name in names), ("psnr", names), ("ssim", names)]:
            digits = 2 if measure == "psnr" else 4
            values = [
                statistics.mean(float(str(r[measure])) for r in rows if r["run"] == run and r["picture"] in among)
                for run in runs
            ]
            spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):.{digits}f}{spread}")
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _draw(parts: dict[str, dict[str, Tensor]], rows: list[dict[str, object]], runs: list[str]) -> None:
    from budgetnet.reports.drawing import new_figure, styled

    columns = [run for run in runs if any(row["run"] == run for row in rows)] + ["truth"]
    with styled():
        figure = new_figure(height=2.1 * len(parts) + 0.3)
        panels = figure.subplots(len(parts), len(columns), squeeze=False)
        for panel_row, (name, images) in zip(panels, parts.items(), strict=True):
            for axes, column in zip(panel_row, columns, strict=True):
                axes.imshow(images[column].permute(1, 2, 0).numpy(), interpolation="nearest")
                axes.set_xticks([])
                axes.set_yticks([])
                decibels = [float(str(r["psnr"])) for r in rows if r["run"] == column and r["picture"] == name]
                axes.set_title(f"{column}, {decibels[0]:.2f} dB" if decibels else column, fontsize=8)
            panel_row[0].set_ylabel(name)
        figure.savefig(HERE / "photographs.png", dpi=150)


if __name__ == "__main__":
    root, *runs = map(Path, sys.argv[1:])
    if runs:
        measure(root, runs[0])
    else:
        write_photographs(root)
