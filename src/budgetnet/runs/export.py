"""Export of a trained network for deployment, with a check that the files compute what the network computes."""

from __future__ import annotations

import json
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.spectral_norm import SpectralNorm

from budgetnet.channels.shadow import copy_of
from budgetnet.errors import RunError, in_one_line
from budgetnet.internals import no_onnx_log
from budgetnet.runs.records import write_text
from budgetnet.tasks import Output, each_of

About = Mapping[str, Any]

TOLERANCE = 1e-4
"""The largest difference of logits, relative to the largest logit, that counts as rounding."""

ABOUT = "preprocessing.json"
OPSET = 17
"""ONNX operator set of model.onnx."""

_TRACED_BATCH = 2  # a batch of 1 would be traced as a constant
_CHECKED_BATCHES = (1, 3)
_OTHER_SIZE = (3, 8)
"""What is added to height and width in the larger batch to check a network of any size."""


def export_model(
    net: nn.Module,
    input_shape: Sequence[int],
    directory: str | Path,
    names: Sequence[str] = ("model.pt2", "model.onnx"),
    any_size: bool = False,
    about: Mapping[str, Any] | None = None,
) -> dict[str, float]:
    """Write model.pt2 (torch.export) and model.onnx to `directory`, and check both against `net`.

    net: a network from images to logits, or to a tuple of them. A copy (CPU, float32, eval mode) is exported, and the
    network does not change.
    input_shape: (channels, height, width) of one image, normalised as in training. The batch size is dynamic.
    names: the files to write. Each format has networks that it cannot hold.
    any_size: whether height and width are dynamic, too, if the network allows it, as one from images to images may.
    about: plain values about how the network is used, as preprocessing.json has them. They are the metadata of
    model.onnx and the extra file preprocessing.json of model.pt2, with the operator set of the former.
    Returns the largest difference of logits, relative to the largest logit, by file name.
    Raises RunError, naming the file and the difference, if logits differ by more than rounding, and naming what a
    format does not hold; then no file is written or replaced.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    net = copy_of(net).to("cpu", torch.float32).eval().requires_grad_(False)
    for tensor in (*net.parameters(), *net.buffers()):
        tensor.data = tensor.data.contiguous()
    about = {} if about is None else {**about, "opset": OPSET}
    if any_size:
        try:
            return _written(net, input_shape, directory, names, True, about)
        except Exception:  # the network computes with its sizes in a way that an export cannot keep open
            pass
    return _written(net, input_shape, directory, names, False, about)


def _written(
    net: nn.Module, input_shape: Sequence[int], directory: Path, names: Sequence[str], any_size: bool, about: About
) -> dict[str, float]:
    example = torch.zeros(_TRACED_BATCH, *input_shape)
    dynamic = {0: "batch", 2: "height", 3: "width"} if any_size else {0: "batch"}
    differences = {}
    with tempfile.TemporaryDirectory(dir=directory, prefix=".export-") as work:
        for name in names:
            write, load = _FORMATS[name]
            with _blamed_on(name):
                write(_settled(net), example, dynamic, Path(work, name), about)
                exported = load(Path(work, name))
            differences[name] = _largest_difference(name, net, exported, input_shape, any_size)
        for name in differences:
            os.replace(Path(work, name), directory / name)
    return differences


def _settled(net: nn.Module) -> nn.Module:
    """A copy with plain weights where each pass computes them anew, as by spectral_norm, which ONNX cannot hold."""
    net = copy_of(net)
    for module in list(net.modules()):
        if parametrize.is_parametrized(module):  # remove_parametrizations alters the class, which copies share
            computed = module.get_submodule("parametrizations").named_children()
            weights = {name: getattr(module, name).detach() for name, _ in computed}
            module.__class__ = parametrize.type_before_parametrizations(module)
            del module.parametrizations
            for name, weight in weights.items():
                module.register_parameter(name, nn.Parameter(weight, False))
        for hook in list(module._forward_pre_hooks.values()):
            if isinstance(hook, SpectralNorm):
                nn.utils.remove_spectral_norm(module, hook.name)
    return net


@contextmanager
def _blamed_on(name: str) -> Iterator[None]:
    """A context in which whatever an exporter raises becomes RunError, except that a file cannot be written.

    What it prints, such as the whole graph, is not shown.
    """
    try:
        with redirect_stdout(StringIO()):
            yield
    except OSError:
        raise
    except Exception as error:
        reason = in_one_line(error, 150)
        raise RunError(
            f"{name} cannot hold this network ({reason}): deploy from best.ckpt, with budgetnet.load"
        ) from error


def write_predictor(directory: Path) -> None:
    """Write predict.py, which needs neither this package nor torch, but model.onnx and preprocessing.json beside it."""
    write_text(directory / "predict.py", (Path(__file__).parent / "predict_template.py").read_text(encoding="utf-8"))


def _write_pt2(net: nn.Module, example: Tensor, dynamic: Mapping[int, str], path: Path, about: About) -> None:
    sizes = {dim: torch.export.Dim(name) if dim == 0 else torch.export.Dim.AUTO for dim, name in dynamic.items()}
    program = torch.export.export(net, (example,), dynamic_shapes=(sizes,), strict=False)
    torch.export.save(program, path, extra_files={ABOUT: json.dumps(about)})


def _load_pt2(path: Path) -> Callable[[Tensor], Output]:
    return torch.export.load(path).module()


def _write_onnx(net: nn.Module, example: Tensor, dynamic: Mapping[int, str], path: Path, about: About) -> None:
    with torch.no_grad():
        names = _output_names(net(example))
    with warnings.catch_warnings(), no_onnx_log():
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
            dynamic_axes={
                "images": dict(dynamic),
                **{
                    name: {dim: size if dim == 0 else f"{size}_{name}" for dim, size in dynamic.items()}
                    for name in names
                },
            },
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
    name: str, net: nn.Module, exported: Callable[[Tensor], Output], input_shape: Sequence[int], any_size: bool
) -> float:
    """The largest relative difference of logits on random images in several batch sizes, and image sizes if `any_size`.

    Raises RunError if it is too large.
    """
    generator = torch.Generator().manual_seed(0)
    largest = 0.0
    for batch in _CHECKED_BATCHES:
        more = _OTHER_SIZE if any_size and batch > 1 else (0, 0)
        sides = (side + other for side, other in zip(input_shape[1:], more, strict=True))
        images = torch.randn(batch, input_shape[0], *sides, generator=generator)
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
