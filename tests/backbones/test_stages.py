"""Stages of a network with exits give its logits, in Python and from ONNX files."""

from __future__ import annotations

import warnings
from functools import partial
from pathlib import Path

import onnxruntime
import pytest
import torch

from budgetnet.backbones import msdnet, ranet
from budgetnet.backbones.exits import ExitNetwork
from budgetnet.backbones.stages import stages
from budgetnet.methods.exits.imta import Collaborating

NETWORKS: dict[str, partial[ExitNetwork]] = {
    "msdnet": partial(msdnet.build, 10, 3, (16, 16), exits=3, channels=4, growth=4),
    "ranet": partial(ranet.build, 10, 3, (16, 16), channels=4, growth=4, step=1, first_blocks=1, more_blocks=1),
}


def trained(name: str) -> ExitNetwork:
    torch.manual_seed(0)
    network = NETWORKS[name]()
    network(torch.randn(8, 3, 16, 16))
    return network.eval()


@pytest.mark.parametrize("collaborating", [False, True])
@pytest.mark.parametrize("name", NETWORKS)
def test_one_stage_after_the_other_gives_the_bits_of_the_network(name: str, collaborating: bool) -> None:
    network = trained(name)
    if collaborating:
        network = Collaborating(network).eval()
    images = torch.randn(5, 3, 16, 16)
    maps: tuple[torch.Tensor, ...] = (images,)
    with torch.no_grad():
        for stage, expected in zip(stages(network, (3, 16, 16)), network(images), strict=True):
            logits, *rest = stage(*maps)
            assert torch.equal(logits, expected)
            maps = tuple(rest)
    assert maps == ()


@pytest.mark.parametrize("name", NETWORKS)
def test_a_file_for_each_stage_gives_the_logits_of_the_network(name: str, tmp_path: Path) -> None:
    """Of other numbers of images than those that were traced."""
    network, images = trained(name), torch.randn(5, 3, 16, 16)
    example: tuple[torch.Tensor, ...] = (torch.zeros(2, 3, 16, 16),)
    maps = [images.numpy()]
    with torch.no_grad():
        expected = network(images)
    for number, stage in enumerate(stages(network, (3, 16, 16))):
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            out = stage(*example)
            names = [f"in{i}" for i in range(len(example))], [f"out{i}" for i in range(len(out))]
            free = {name: {0: "batch"} for side in names for name in side}
            torch.onnx.export(
                stage, example, tmp_path / "stage.onnx", dynamo=False, opset_version=17, dynamic_axes=free,
                input_names=names[0], output_names=names[1],
            )  # fmt: skip
        session = onnxruntime.InferenceSession(tmp_path / "stage.onnx", providers=["CPUExecutionProvider"])
        read = {each.name for each in session.get_inputs()}  # the output of a finished sub-network goes on unread
        logits, *maps = session.run(
            None, {name: each for name, each in zip(names[0], maps, strict=True) if name in read}
        )
        torch.testing.assert_close(torch.from_numpy(logits), expected[number], rtol=1e-3, atol=1e-5)
        example = tuple(out[1:])
