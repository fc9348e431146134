"""The weights of a trained ResNet in the layout of torchvision, for trackers and detectors that load such files.

python -m budgetnet.runs.torchvision runs/default/RUN          writes RUN/torchvision.pt and RUN/torchvision.json
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from budgetnet.backbones import resnet
from budgetnet.errors import RunError, UsageError
from budgetnet.runs.checkpoints import load_checkpoint
from budgetnet.runs.directory import RunDirectory

WEIGHTS, WIDTHS = "torchvision.pt", "torchvision.json"


def export_torchvision(run: str | Path) -> dict[str, Tensor]:
    """Write the selected weights of a finished run of a ResNet-18, 34 or 50, and its widths, to its directory.

    torchvision.pt holds a state dict, which `torch.load(..., weights_only=True)` reads, with the keys of
    `torchvision.models.resnet50` and the widths that the run ended with. torchvision.json has the name of the
    network, its depths, the filters of every convolution and, under "plain", whether torchvision's own forward pass
    computes the same once its layers have these widths: where no shortcut without a convolution joins unequal widths.
    Returns the state dict.
    Raises UsageError for a run that is not finished or of another network, RunError for a damaged one.
    """
    directory = RunDirectory(run)
    if not directory.done:
        raise UsageError(f"{run} is not the directory of a finished run: continue it with its own command first")
    name = str(directory.config["backbone"].get("name"))
    if name not in resnet.DEPTHS:
        raise UsageError(f"{run} is a run of {name}: expected one of {', '.join(resnet.DEPTHS)}")
    best = directory.path / "best.ckpt"
    state = load_checkpoint(best if best.exists() else directory.path / "last.ckpt")["state_dict"]
    weights = {key.removeprefix("net."): value.contiguous() for key, value in state.items() if key.startswith("net.")}
    depths = resnet.DEPTHS[name]
    widths = {key.removesuffix(".weight"): len(value) for key, value in weights.items() if value.dim() == 4}
    missing = set(resnet.full_widths(depths, bottleneck=name == "resnet50")) - widths.keys()
    if missing:
        raise RunError(f"{best} has no weights of {sorted(missing)[0]}: expected those of {name}")
    torch.save(weights, directory.path / WEIGHTS)
    facts = {"network": name, "depths": depths, "widths": widths, "plain": plain(widths, depths)}
    (directory.path / WIDTHS).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    return weights


def plain(widths: Mapping[str, int], depths: Sequence[int]) -> bool:
    """Whether all blocks of a stage are as wide as its first, where a shortcut without a convolution is a plain sum.

    widths: the filters of every convolution. Without a convolution in its first shortcut, a stage also has to be as
    wide as what it reads.
    """
    before = widths["conv1"]
    for stage, depth in enumerate(depths, start=1):
        blocks = [f"layer{stage}.{number}" for number in range(depth)]
        last = "conv3" if f"{blocks[0]}.conv3" in widths else "conv2"
        out = [widths[f"{block}.{last}"] for block in blocks]
        if f"{blocks[0]}.downsample.0" not in widths:
            out = [before, *out]
        if len(set(out)) > 1:
            return False
        before = out[-1]
    return True


if __name__ == "__main__":
    try:
        for path in sys.argv[1:]:
            export_torchvision(path)
            print(Path(path) / WEIGHTS)
        if len(sys.argv) < 2:
            raise UsageError("python -m budgetnet.runs.torchvision RUN: expected the directories of finished runs")
    except (UsageError, RunError) as error:
        sys.exit(f"error: {error}")
