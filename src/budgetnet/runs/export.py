"""Export of a trained network for deployment, with a check that the files compute what the network computes."""

from __future__ import annotations

import copy
import json
import os
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from budgetnet.errors import RunError
from budgetnet.runs.records import write_text
from budgetnet.tasks import Output, each_of

TOLERANCE = 1e-4
"""The largest difference of logits, relative to the largest logit, that counts as rounding."""

ABOUT = "preprocessing.json"
OPSET = 17
"""ONNX operator set of model.onnx."""

_TRACED_BATCH = 2  # a batch of 1 would be traced as a constant
_CHECKED_BATCHES = (1, 3)


def export_model(
    net: nn.Module, input_shape: Sequence[int], directory: str | Path, about: Mapping[str, Any] | None = None
) -> dict[str, float]:
    """Write model.pt2 (torch.export) and model.onnx to `directory`, and check both against `net`.

    net: a network from images to logits, or to a tuple of them. A copy (CPU, float32, eval mode) is exported, and the
    network does not change.
    input_shape: (channels, height, width) of one image, normalised as in training. The batch size is dynamic.
    about: plain values about how the network is used, as preprocessing.json has them. They are the metadata of
    model.onnx and the extra file preprocessing.json of model.pt2, with the operator set of the former.
    Returns the largest difference of logits, relative to the largest logit, by file name.
    Raises RunError, naming the file and the reason, for a format that cannot hold the network, and if logits differ by
    more than rounding; that file is not written or replaced, the other one is.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    net = copy.deepcopy(net).to("cpu", torch.float32).eval().requires_grad_(False)
    for tensor in (*net.parameters(), *net.buffers()):
        tensor.data = tensor.data.contiguous()
    example = torch.zeros(_TRACED_BATCH, *input_shape)
    about = {} if about is None else {**about, "opset": OPSET}
    differences, failures = {}, []
    with tempfile.TemporaryDirectory(dir=directory, prefix=".export-") as work:
        for name, (write, load) in _FORMATS.items():
            try:
                write(net, example, Path(work, name), about)
                differences[name] = _largest_difference(name, net, load(Path(work, name)), input_shape)
            except RunError as error:
                failures.append(str(error))
            except Exception as error:  # exporters raise anything for what they do not know
                reason = (str(error).strip().splitlines() or [""])[0][:200]
                failures.append(f"{name} cannot hold this network ({type(error).__name__}: {reason})")
        for name in differences:
            os.replace(Path(work, name), directory / name)
    if failures:
        raise RunError(f"{'; '.join(failures)}: deploy from best.ckpt with budgetnet.load")
    return differences


def write_predictor(directory: Path) -> None:
    """Write predict.py, which needs neither this package nor torch, but model.onnx and preprocessing.json beside it."""
    write_text(directory / "predict.py", (Path(__file__).parent / "predict_template.py").read_text())


def _write_pt2(net: nn.Module, example: Tensor, path: Path, about: Mapping[str, Any]) -> None:
    batch = torch.export.Dim("batch")
    program = torch.export.export(net, (example,), dynamic_shapes=({0: batch},), strict=False)
    torch.export.save(program, path, extra_files={ABOUT: json.dumps(about)})


def _load_pt2(path: Path) -> Callable[[Tensor], Output]:
    return torch.export.load(path).module()


def _write_onnx(net: nn.Module, example: Tensor, path: Path, about: Mapping[str, Any]) -> None:
    with torch.no_grad():
        names = _output_names(net(example))
    with warnings.catch_warnings():
        # the exporter that replaces this one takes 11 s instead of 0.4 s and writes small models as two files
        warnings.simplefilter("ignore")
        torch.onnx.export(
            net,
            (example,),
            path,
            dynamo=False,
            opset_version=OPSET,
            input_names=["images"],
            output_names=names,
            dynamic_axes={name: {0: "batch"} for name in ("images", *names)},
        )
    if about:
        import onnx

        model = onnx.load(path)
        values = {name: value if isinstance(value, str) else json.dumps(value) for name, value in about.items()}
        onnx.helper.set_model_props(model, values)
        onnx.save(model, path)


def _output_names(output: Output) -> list[str]:
    """The name "logits" or, for several outputs, "logits_1" and so on."""
    return ["logits"] if isinstance(output, Tensor) else [f"logits_{n}" for n in range(1, len(output) + 1)]


def _load_onnx(path: Path) -> Callable[[Tensor], Output]:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda images: tuple(map(torch.from_numpy, session.run(None, {"images": images.numpy()})))


_FORMATS = {"model.pt2": (_write_pt2, _load_pt2), "model.onnx": (_write_onnx, _load_onnx)}


def _largest_difference(
    name: str, net: nn.Module, exported: Callable[[Tensor], Output], input_shape: Sequence[int]
) -> float:
    """The largest relative difference of logits on random images in several batch sizes.

    Raises RunError if it is too large.
    """
    generator = torch.Generator().manual_seed(0)
    largest = 0.0
    for batch in _CHECKED_BATCHES:
        images = torch.randn(batch, *input_shape, generator=generator)
        with torch.no_grad():
            expected, got = each_of(net(images)), each_of(exported(images))
        scale = torch.stack([one.abs().max() for one in expected]).max().clamp(min=torch.finfo(torch.float32).tiny)
        differences = [(one - other).abs().max() / scale for one, other in zip(expected, got, strict=True)]
        difference = torch.stack(differences).max().item()
        if not difference <= TOLERANCE:  # also true for nan
            raise RunError(
                f"{name} does not compute what the network computes: logits differ by {difference:.3g} of the "
                f"largest on a batch of {batch}, expected at most {TOLERANCE:g}"
            )
        largest = max(largest, difference)
    return largest
