"""A trained network that images leave early, from Python: the module, and the files that a run exports of it."""

from __future__ import annotations

import json
import math
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from budgetnet.backbones.exits import ExitNetwork
from budgetnet.channels import ChannelGraph
from budgetnet.errors import RunError
from budgetnet.methods.exits.budgeted import NEVER, Lazy, early_exit
from budgetnet.methods.exits.imta import Collaborating

ABOUT = "exits.json"


@dataclass(frozen=True)
class Prediction:
    """Of N images: the likeliest classes, int64 (N,), probabilities (N, classes), and exits from 0, int64 (N,)."""

    classes: Tensor
    probabilities: Tensor
    exits: Tensor


class EarlyExit(nn.Module):
    """A network whose images leave at the first exit that is confident enough.

    Images (N, channels, height, width), normalised as in training, go to the logits (N, classes) of the exits that they
    take. network: an ExitNetwork, or `ExportedExits`. thresholds: by exit; the last is -inf.
    """

    def __init__(self, network: Lazy, thresholds: Sequence[float]) -> None:
        super().__init__()
        self.network = network
        self.limits = tuple(thresholds)
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        return self.leave(images)[0]

    def leave(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(logits (N, classes), number of the exit int64 (N,)), as `budgeted.early_exit`."""
        return early_exit(self.network, images, torch.tensor(self.limits, dtype=torch.float64))

    def predict(self, images: Tensor) -> Prediction:
        """What the network makes of the images, and where they leave it."""
        logits, exits = self.leave(images)
        return Prediction(logits.argmax(1), logits.softmax(1), exits)


def in_phase(net: nn.Module, state: Mapping[str, Any]) -> nn.Module:
    """The network in the form that a checkpoint has it: with the classifiers of method.imta=true, if it was trained so.

    net: the traced backbone. state: the entry "budgetnet" of the checkpoint.
    """
    taught = state["method"].get("taught")
    if taught is None:
        return net
    assert isinstance(net, ExitNetwork)
    shape = ChannelGraph.of(net).input_shape
    collaborating = Collaborating(net)
    ChannelGraph.trace(collaborating, torch.empty(shape))
    return collaborating.freeze(taught)


def leaving_early(net: nn.Module, weights: Mapping[str, Any]) -> nn.Module:
    """An ExitNetwork with the thresholds that its run chose, as an EarlyExit; another network as it is.

    weights: the entry "state_dict" of the checkpoint. Without a mean budget every image goes to the last exit.
    """
    if not isinstance(net, ExitNetwork):
        return net
    chosen = weights.get("own.settings._extra_state", {}).get("chosen") or [[0.0] * 3 + [NEVER] * net.exits]
    return EarlyExit(net, [*chosen[0][3:-1], -math.inf])


class ExportedExits:
    """The stages that a run has exported, run by onnxruntime on the CPU."""

    def __init__(self, files: Sequence[Path]) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        self._sessions = [
            onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"]) for file in files
        ]

    def lazily(self, images: Tensor) -> Generator[Tensor, Tensor | None, None]:
        """As `ExitNetwork.lazily`."""
        maps = {"images": images.float().numpy()}
        for session in self._sessions:
            logits, *rest = session.run(None, {each.name: maps[each.name] for each in session.get_inputs()})
            going_on = yield torch.from_numpy(logits)
            here = slice(None) if going_on is None else going_on.numpy()
            maps = {f"map_{number}": each[here] for number, each in enumerate(rest, start=1)}


def from_export(directory: str | Path) -> EarlyExit:
    """What a run has exported, ready to predict: exits.json and the files of its stages; nothing else is read.

    Raises RunError for files that are missing or damaged.
    """
    path = Path(directory, ABOUT)
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
        thresholds = [-math.inf if each is None else float(each) for each in about["thresholds"]]
        return EarlyExit(ExportedExits([path.parent / name for name in about["stages"]]), thresholds)
    except Exception as error:  # onnxruntime raises what it likes
        text = " ".join(str(error).split())[:200]
        raise RunError(f"{path} cannot be used ({type(error).__name__}: {text}): export=true writes it") from error
