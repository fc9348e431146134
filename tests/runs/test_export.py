from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from covering import covered
from torch import Tensor, nn

from budgetnet import backbones
from budgetnet.backbones import match_channels
from budgetnet.errors import RunError
from budgetnet.runs import export
from budgetnet.runs.export import export_model


class Residual(nn.Module):
    """A small network with a parameter-free shortcut that pads once and crops once."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.slim = nn.Conv2d(8, 5, 3, padding=1)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(5, 4)

    def forward(self, images: Tensor) -> Tensor:
        wide = self.norm(self.wide(images))
        wide = torch.relu(wide + match_channels(images, wide))
        slim = self.slim(wide)
        slim = torch.relu(slim + match_channels(wide, slim))
        logits: Tensor = self.head(self.drop(slim.mean((2, 3))))
        return logits


@pytest.fixture
def net() -> nn.Module:
    torch.manual_seed(0)
    net = Residual()
    for _ in range(3):
        net(torch.randn(8, 3, 8, 8))  # running statistics away from 0 and 1
    return net


def logits_of_files(directory: Path, images: Tensor) -> dict[str, Tensor]:
    session = onnxruntime.InferenceSession((directory / "model.onnx").read_bytes())
    return {
        "model.pt2": torch.export.load(directory / "model.pt2").module()(images),
        "model.onnx": torch.from_numpy(session.run(None, {"images": images.numpy()})[0]),
    }


def test_exported_files_repeat_the_logits_for_any_batch_after_a_copy(net: nn.Module, tmp_path: Path) -> None:
    differences = export_model(net, (3, 8, 8), tmp_path / "run")
    copies = tmp_path / "copies"
    copies.mkdir()
    for name in differences:
        (copies / name).write_bytes((tmp_path / "run" / name).read_bytes())
    net.eval()
    for batch in (1, 2, 7):
        images = torch.randn(batch, 3, 8, 8)
        for name, logits in logits_of_files(copies, images).items():
            assert logits.shape == (batch, 4)
            torch.testing.assert_close(logits, net(images), rtol=1e-4, atol=1e-5, msg=name)


def test_only_the_two_files_are_left_and_differences_are_rounding(net: nn.Module, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"of an earlier run")
    differences = export_model(net, (3, 8, 8), tmp_path)
    assert sorted(differences) == sorted(path.name for path in tmp_path.iterdir()) == ["model.onnx", "model.pt2"]
    assert all(0 <= difference < 1e-4 for difference in differences.values())


def test_the_network_and_the_random_state_stay_as_they_are(net: nn.Module, tmp_path: Path) -> None:
    net = net.to(memory_format=torch.channels_last).train()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    random = torch.get_rng_state()
    export_model(net, (3, 8, 8), tmp_path)
    assert torch.equal(torch.get_rng_state(), random)
    assert net.training
    assert all(parameter.requires_grad for parameter in net.parameters())
    assert not net.get_submodule("slim").weight.is_contiguous()
    for name, tensor in net.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_export_warns_of_nothing(net: nn.Module, tmp_path: Path, recwarn: pytest.WarningsRecorder, capfd: Any) -> None:
    export_model(net, (3, 8, 8), tmp_path)
    assert [str(warning.message) for warning in recwarn if "onnx" in str(warning.message).lower()] == []
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize("wrong", ["model.pt2", "model.onnx"])
def test_a_file_with_one_altered_weight_is_caught_and_not_written(
    net: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: str
) -> None:
    write, load = export._FORMATS[wrong]

    def write_altered(net: nn.Module, example: Tensor, dynamic: Any, path: Path, about: Any) -> None:
        altered = Residual()
        altered.load_state_dict(net.state_dict())
        with torch.no_grad():
            altered.head.bias[2] += 0.01
        write(altered.eval(), example, dynamic, path, about)

    monkeypatch.setitem(export._FORMATS, wrong, (write_altered, load))
    (tmp_path / wrong).write_bytes(b"of an earlier run")
    with pytest.raises(RunError, match=rf"{wrong} does not compute what the network computes.* differ by 0\.\d+ of"):
        export_model(net, (3, 8, 8), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [wrong]
    assert (tmp_path / wrong).read_bytes() == b"of an earlier run"


def test_a_format_that_cannot_hold_a_network_is_named_and_the_other_one_can_be_written(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    class Inverse(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.eye(3))

        def forward(self, images: Tensor) -> Tensor:
            return images.mean((2, 3)) @ torch.linalg.pinv(self.weight)

    with pytest.raises(RunError, match=r"^model.onnx cannot hold this network \(.*pinv.*deploy from best.ckpt"):
        export_model(Inverse(), (3, 8, 8), tmp_path, ["model.onnx"])
    export_model(Inverse(), (3, 8, 8), tmp_path, ["model.pt2"])
    assert [path.name for path in tmp_path.iterdir()] == ["model.pt2"] and capfd.readouterr().out == ""


def test_logits_that_are_not_numbers_are_caught(net: nn.Module, tmp_path: Path) -> None:
    with torch.no_grad():
        net.get_submodule("head").bias[0] = np.nan
    with pytest.raises(RunError, match="differ by nan"):
        export_model(net, (3, 8, 8), tmp_path)


@pytest.mark.parametrize("name", covered(("resnet20", "vgg16"), ("resnet20",)))
def test_backbones_are_exported(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = backbones.build(name, num_classes=10, seed_width=4)
    export_model(net, (3, 32, 32), tmp_path)
    images = torch.randn(3, 3, 32, 32)
    for logits in logits_of_files(tmp_path, images).values():
        torch.testing.assert_close(logits, net.eval()(images), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("norm", [nn.utils.spectral_norm, nn.utils.parametrizations.spectral_norm])
def test_weights_that_are_computed_in_every_pass_are_exported_as_they_are_now(
    norm: Callable[[nn.Module], nn.Module], tmp_path: Path
) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), norm(nn.Conv2d(4, 5, 3)), nn.Flatten(), nn.Linear(80, 2))
    for _ in range(3):
        net(torch.randn(4, 3, 8, 8))
    names = list(net.state_dict())
    assert max(export_model(net, (3, 8, 8), tmp_path).values()) < 1e-5
    assert list(net.state_dict()) == names
