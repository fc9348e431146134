"""What cannot be asked of a network with exits is refused in one line, before anything is written."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from budgetnet.backbones import msdnet
from budgetnet.channels import ChannelGraph
from budgetnet.command.build import build
from budgetnet.command.compose import composed
from budgetnet.costs import Budget
from budgetnet.costs.exits import ExitCosts
from budgetnet.costs.pricing import ExitPricing, pricing_of
from budgetnet.errors import UsageError
from budgetnet.tasks import Classification
from budgetnet.tasks.distilled import Distilled
from budgetnet.tasks.multi_exit import MultiExit, task_of

TINY = (
    "method=l2w", "backbone=msdnet", "backbone.exits=2", "backbone.channels=2", "backbone.growth=2", "dataset=digits",
    "dataset.validation=100", "budget.mean_flops=60%", "logger=csv",
)  # fmt: skip


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (("~backbone.exits", "~backbone.channels", "~backbone.growth", "backbone=lenet5"),
         "backbone=lenet5 has one output: a method with exits takes msdnet or ranet"),
        (("budget.mean_flops=1000",),
         "budget.mean_flops=1000: expected 969536, of the first exit, to 1988008, of the last"),
        (("budget.mean_flops=101%",), "of the last: choose another budget or network"),
        (("dataset.validation=0",), "set dataset.validation to how many"),
        (("trainer.check_val_every_n_epoch=2",), "thresholds are set after every epoch; leave it out"),
        (("dataset.batch_size=1",), "dataset.batch_size=1 gives each process 1 image, which cannot be halved"),
        (("trainer.micro_batches=2",), "trainer.micro_batches=2: method=l2w halves a batch"),
        (("trainer.compile=inductor",), "differentiates through its gradients"),
        (("trainer.sync_batchnorm=true",), "trainer.sync_batchnorm=true cannot be differentiated forwards"),
        (("budget.flops=50%",), "budget.flops is not kept by method=l2w"),
        (("method=adenel",), "budget.mean_flops is not kept by method=adenel: use method=exits, l2w"),
        (("method.centring=column",), "method.centring='column' is unknown"),
        (("method.imta=true", "epochs=150"),
         "and finetune.epochs=150 do not fit into epochs=150: raise it to 151 or shorten one of them"),
        (("method.q=0",), "method.q=0.0: expected a number above 0"),
    ],
)  # fmt: skip
def test_it_is_refused(options: tuple[str, ...], text: str, tmp_path: Path) -> None:
    words = [word for word in TINY if f"~{word.partition('=')[0]}" not in options]
    with pytest.raises(UsageError) as refused:
        build(composed([*words, *(word for word in options if word[0] != "~")]), tmp_path / "run")
    assert text in str(refused.value) and "\n" not in str(refused.value)
    assert not (tmp_path / "run").exists()


def test_an_exit_is_priced_by_its_number_as_the_network_is_now() -> None:
    net = msdnet.build(10, 1, (16, 16), exits=2, channels=2, growth=2)
    ChannelGraph.trace(net, torch.empty(1, 1, 16, 16))
    pricing = pricing_of(net)
    assert isinstance(pricing, ExitPricing)
    assert pricing.costs(1)["flops"] == pricing.costs()["flops"] == pricing.flops
    first = pricing.costs(0)
    lazy = ExitCosts(net, (1, 16, 16)).lazy
    assert first == {kind: lazy[kind][0] for kind in ("params", "macs", "flops")}
    assert first["flops"] < pricing.flops


def test_a_mean_budget_in_percent_is_of_the_whole_network() -> None:
    assert Budget(mean_flops="50%").resolve({"flops": 81}).limits == {"mean_flops": 40}


def test_the_loss_is_the_sum_over_exits_and_each_exit_has_its_metric() -> None:
    torch.manual_seed(0)
    task, single = MultiExit(Classification(0.1), 2), Classification(0.1)
    logits, targets = (torch.randn(6, 3), torch.randn(6, 3)), torch.randint(3, (6,))
    assert torch.equal(task.loss(logits, targets), single.loss(logits[0], targets) + single.loss(logits[1], targets))
    torch.testing.assert_close(task.training_losses(logits, targets).mean(), task.loss(logits, targets))
    torch.testing.assert_close(task.losses(logits, targets), sum(single.losses(each, targets) for each in logits))
    values = task.compute(task.sums(logits, targets).double())
    first, last = (single.compute(single.sums(each, targets).double()) for each in logits)
    assert values == {**last, "exit1_top1": first["top1"], "exit2_top1": last["top1"]}
    assert list(values) == [metric.name for metric in task.metrics] and task.metric == single.metric


def test_a_teacher_of_a_network_with_exits_is_refused() -> None:
    net = msdnet.build(10, 1, (16, 16), exits=2, channels=2, growth=2)
    assert isinstance(task_of(net, Classification()), MultiExit)
    with pytest.raises(
        UsageError, match=r"distill.teacher: a network with exits has no one output .* method.imta=true"
    ):
        task_of(net, Distilled(Classification(), lambda _: lambda images: images, teacher_flops=5))


@pytest.mark.parametrize(
    ("output", "text"),
    [
        (torch.zeros(2, 3), "it gives a Tensor for two images: expected a tuple of 2, one for each exit"),
        ((torch.zeros(2, 3),), "it gives 1 outputs"),
        ((torch.zeros(2, 3), torch.zeros(2, 4)), r"it gives \(2, 4\) for two images"),
    ],
)
def test_an_output_without_all_exits_is_refused(output: object, text: str) -> None:
    with pytest.raises(UsageError, match=text):
        MultiExit(Classification(), 2).check(output, 3, (1, 8, 8))
