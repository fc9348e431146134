"""A network with exits as files that any runtime can leave early: an ONNX file for each stage, and exits.json.

One file for each stage, and not one with the thresholds inside: in one file a batch shrinks on its way only by
operators that few runtimes have, and thresholds beside the files can be changed for another budget.
"""

from __future__ import annotations

import json
import math
import os
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from budgetnet.backbones.exits import ExitNetwork
from budgetnet.backbones.stages import stages
from budgetnet.channels.shadow import copy_of
from budgetnet.errors import RunError
from budgetnet.internals import no_onnx_log
from budgetnet.methods.exits.allocation import confidences
from budgetnet.methods.exits.budgeted import NEVER, Setting, early_exit
from budgetnet.methods.exits.predict import ABOUT, ExportedExits
from budgetnet.runs.export import OPSET, TOLERANCE

_IMAGES = 8


def export_exits(
    network: ExitNetwork,
    shape: tuple[int, int, int],
    directory: Path,
    flops: Sequence[int],
    chosen: Setting | None,
    curve: Sequence[Setting],
) -> None:
    """Write exit_1.onnx and so on, and exits.json, and check them against the network left early.

    A stage reads `images`, or those of map_1, map_2, ... that it needs, and gives `logits` and next_1, next_2, ...;
    these are map_1, map_2, ... of the stage after it, for the images that are to go on. exits.json has the thresholds,
    by exit (null for the last one, at which all leave), the FLOPs of an image that leaves there, and all of `curve`.
    The thresholds are those of `chosen`; without, no image leaves early. Raises RunError if what the files compute is
    another than what the network does; then no file is written or replaced.
    """
    network = copy_of(network).to("cpu", torch.float32).eval().requires_grad_(False)
    for tensor in (*network.parameters(), *network.buffers()):
        tensor.data = tensor.data.contiguous()
    limits = [NEVER] * (network.exits - 1) if chosen is None else list(chosen.thresholds[:-1])
    names = [f"exit_{number}.onnx" for number in range(1, network.exits + 1)]
    about = {
        "stages": names,
        "confidence": "the largest probability: an image leaves where it is at least the threshold",
        "thresholds": [*limits, None],
        "flops": list(flops),
        "chosen": None if chosen is None else _plain(chosen),
        "settings": [_plain(setting) for setting in curve],
    }
    with tempfile.TemporaryDirectory(dir=directory, prefix=".exits-") as work:
        files = [Path(work, name) for name in names]
        maps: dict[str, Tensor] = {"images": torch.zeros(2, *shape)}
        for stage, file in zip(stages(network, shape), files, strict=True):
            maps = _write(stage, maps, file)
        _check(network, ExportedExits(files), shape, limits)
        Path(work, ABOUT).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
        for file in (*files, Path(work, ABOUT)):
            os.replace(file, directory / file.name)


def _plain(setting: Setting) -> dict[str, Any]:
    return {**asdict(setting), "thresholds": [*setting.thresholds[:-1], None]}


def _write(stage: nn.Module, maps: dict[str, Tensor], file: Path) -> dict[str, Tensor]:
    """Write a stage that reads these tensors, and return what the next one reads."""
    _, *rest = stage(*maps.values())
    out = ["logits", *(f"next_{number}" for number in range(1, len(rest) + 1))]
    with warnings.catch_warnings(), no_onnx_log():
        warnings.simplefilter("ignore")  # of the exporter that is kept for small files, as in runs/export.py
        torch.onnx.export(
            stage,
            tuple(maps.values()),
            file,
            dynamo=False,
            opset_version=OPSET,
            input_names=list(maps),
            output_names=out,
            dynamic_axes={name: {0: "batch"} for name in (*maps, *out)},
        )
    return {f"map_{number}": each for number, each in enumerate(rest, start=1)}


def _check(network: ExitNetwork, exported: ExportedExits, shape: tuple[int, int, int], limits: Sequence[float]) -> None:
    """Raises RunError if logits of an exit differ by more than rounding, or images leave elsewhere for another reason.

    Images leave by the thresholds of the run, and by others that let half of them go at every exit.
    """
    images = torch.randn(_IMAGES, *shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        whole = torch.stack(list(network.lazily(images)))
        scale = whole.abs().max().clamp(min=torch.finfo(torch.float32).tiny)
        confidence = confidences(list(whole)).double()
        halving = confidence.quantile(0.5, 0)[:-1].tolist()
        found = [torch.stack(list(exported.lazily(images)))]
        expected = [whole]
        for thresholds in (limits, halving):
            cut = torch.tensor([*thresholds, -math.inf], dtype=torch.float64)
            (logits, exits), (theirs, left) = (early_exit(each, images, cut) for each in (network, exported))
            apart = (confidence - cut).abs().amin(1) > TOLERANCE  # of images that rounding cannot send elsewhere
            if not torch.equal(exits[apart], left[apart]):
                raise RunError(f"exit_*.onnx: images leave at {left.tolist()}, not at {exits.tolist()}; not written")
            expected.append(logits[exits == left])
            found.append(theirs[exits == left])
    difference = max(float((a - b).abs().max() / scale) for a, b in zip(expected, found) if len(a))
    if not difference <= TOLERANCE:
        raise RunError(
            f"exit_*.onnx do not compute what the network computes: logits differ by {difference:.3g} of the largest, "
            f"expected at most {TOLERANCE:g}; they were not written, the checkpoints are not affected"
        )
