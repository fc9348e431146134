"""What happens while a network grows: learning rates, and filters that get their length back."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from short_run import Fit, metrics
from torch import Tensor, nn

from budgetnet import ChannelGraph, UsageError
from budgetnet.command.build import build
from budgetnet.command.compose import composed
from budgetnet.methods.growth.growing import must_reach
from budgetnet.training.learner import Learner

NORMED = ("backbone=own", "backbone._target_=nets.Small", "growth.seed_width=3", "budget.flops=50%")


class Lengths(Callback):
    """Norms of the filters behind batch norms, right after every growth."""

    def __init__(self) -> None:
        self.rounds, self.found = 0, list[torch.Tensor]()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Comes after the growth round."""
        assert isinstance(pl_module, Learner)
        method = pl_module.method
        if method.training.round > self.rounds:
            self.rounds = method.training.round
            weights = [method.net.get_parameter(f"{name}.weight") for name in method.graph.norm_after]
            self.found.append(torch.cat([weight.detach().flatten(1).norm(dim=1) for weight in weights]))


class Grouped(nn.Sequential):
    """A convolution that a grouped one reads."""

    def __init__(self, num_classes: int, in_channels: int) -> None:
        grouped = nn.Conv2d(8, 8, 3, groups=2)
        super().__init__(nn.Conv2d(in_channels, 8, 3, stride=4), grouped, nn.Flatten(), nn.Linear(200, num_classes))


class Compared(nn.Module):
    """Two convolutions that a product alone reads."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.head = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1), nn.Conv2d(3, 5, 1), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (layer(x).flatten(2).transpose(1, 2) for layer in (self.q, self.k, self.v))
        return self.head((torch.softmax(q @ k.transpose(1, 2), -1) @ v).mean(1))


LENGTHS = "+callbacks.lengths._target_=test_growing.Lengths"


def test_the_rate_rises_while_the_network_grows_and_is_held_until_fine_tuning(fit: Fit) -> None:
    rows = metrics(fit("optim.warmup_epochs=2", "growth.policy=cost_aware", "growth.cost_ratio=0.2"))
    growing = [float(row["lr"]) for row in rows if row["phase"] == "grow"]
    assert growing[:2] == pytest.approx([0.01, 0.02]) and len(growing) > 2
    assert growing[2:] == pytest.approx([0.02] * (len(growing) - 2))
    assert float(rows[-1]["lr"]) < 0.01


@pytest.mark.parametrize("rescale", [True, False])
def test_filters_behind_batch_norms_have_the_norm_of_fresh_ones_after_every_growth(fit: Fit, rescale: bool) -> None:
    parts = fit(*NORMED, LENGTHS, f"growth.rescale={rescale}", "finetune.epochs=1")
    (lengths,) = (callback for callback in parts.trainer.callbacks if isinstance(callback, Lengths))
    assert len(lengths.found) > 1
    for norms in lengths.found:
        assert torch.allclose(norms, torch.full_like(norms, math.sqrt(2)), rtol=1e-4) == rescale


def test_a_relative_read_out_selects_half_of_all_filters_in_every_round(fit: Fit) -> None:
    parts = fit(*NORMED, "growth.policy=cost_aware", "growth.readout=path", "finetune.epochs=1")
    text = (Path(parts.trainer.default_root_dir) / "saturation.csv").read_text().splitlines()
    read = [[float(cell) for cell in line.split(",")[2:]] for line in text[1:]]
    assert all(0.2 < sum(line) / len(line) < 0.8 for line in read)
    assert any(max(line) - min(line) > 0.1 for line in read)


@pytest.mark.parametrize("shape", ["proportional", "equal"])
def test_grown_by_one_factor_layers_stay_in_the_proportions_of_the_backbone_or_of_an_equal_seed(
    fit: Fit, shape: str
) -> None:
    options = ("growth.policy=uniform", f"growth.seed_shape={shape}", "growth.cost_ratio=9", "finetune.epochs=1")
    method = fit(*options).learner.method
    first, second = (method.graph.widths[name] for name in ("conv1", "conv2"))
    ratio = 6 / 16 if shape == "proportional" else 1  # LeNet-5 has 6 and 16 filters
    assert method.training.round > 0 and first == pytest.approx(ratio * second, abs=1) and second > 5


class Wide(torch.nn.Sequential):
    """Most of its FLOPs are of a hidden linear layer."""

    def __init__(self, num_classes: int, in_channels: int) -> None:
        convolution = torch.nn.Conv2d(in_channels, 4, 3, stride=4)
        hidden = torch.nn.Linear(4 * 49, 64)
        super().__init__(convolution, torch.nn.Flatten(), hidden, torch.nn.ReLU(), torch.nn.Linear(64, num_classes))


@pytest.mark.parametrize(
    ("overrides", "chosen"),
    [
        ((), "growth.policy=cost_aware, linear layers as they are (growth.linear)"),
        (("growth.policy=random",), "linear layers as they are (growth.linear)"),
        (("growth.linear=true",), "growth.policy=cost_aware"),
        (("backbone=lenet5",), "growth.policy=cost_aware"),
    ],
)
def test_it_is_said_that_most_of_a_network_does_not_grow(
    overrides: tuple[str, ...], chosen: str, tmp_path: Path
) -> None:
    own = ["dataset=digits", "backbone=own", "backbone._target_=test_growing.Wide", "budget.flops=100%", "logger=csv"]
    if "backbone=lenet5" in overrides:
        own.remove("backbone._target_=test_growing.Wide")
    assert build(composed([*own, *overrides]), tmp_path).method.chosen() == chosen


@pytest.mark.parametrize(
    ("option", "why"),
    [
        ("init=gradmax", "the grouped convolution '1' reads those of '0'"),
        ("policy=gradient", "the grouped convolution '1' reads those of '0'"),
        ("init=firefly", "the channels of '0' are in 2 blocks"),
        ("readout=firefly", "the channels of '0' are in 2 blocks"),
    ],
)
def test_what_new_channels_cannot_be_made_or_scored_by_is_said_before_training(option: str, why: str, fit: Fit) -> None:
    policy = "growth.policy=cost_aware"
    with pytest.raises(UsageError, match=rf"growth\.{option} does not reach all channels of Grouped: {why}; leave"):
        fit("backbone=own", "backbone._target_=test_growing.Grouped", policy, f"growth.{option}")


def test_channels_that_a_product_alone_reads_are_reached_by_neither() -> None:
    graph = ChannelGraph.trace(Compared(), torch.empty(1, 3, 4, 4))
    for init in ("gradmax", "firefly"):
        with pytest.raises(UsageError, match="no layer reads the channels of 'q'"):
            must_reach(graph, ["q"], init=init)
        must_reach(graph, ["v"], init=init)
    must_reach(graph, ["q", "v"], init="net2wider", policy="uniform", readout="path")
