"""What is to come in a run, and how long it takes, by closed forms."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from budgetnet import backbones
from budgetnet.channels import ChannelGraph
from budgetnet.command import plan
from budgetnet.command.build import build
from budgetnet.command.compose import composed
from budgetnet.methods.growth.growing import growth_limits
from budgetnet.methods.phases import Stretch
from budgetnet.tasks import Classification
from budgetnet.training.forecast import Clock, Timed, calibrate, duration

DIGITS = ("dataset=digits", "dataset.limit_train=64", "dataset.batch_size=16", "backbone=lenet5", "logger=csv")


def test_a_step_has_a_fixed_time_and_one_in_proportion_to_flops() -> None:
    clock = Clock()
    clock.calibrated({100.0: Timed(2.0), 300.0: Timed(4.0)}, 10, 100)  # 1 second and 1 for every 100 FLOPs
    assert clock.relative(200, 100) == pytest.approx(1.5) and clock.relative(100, 300) == pytest.approx(0.5)
    clock.stepped(4.0)  # the machine is half as fast as when it was calibrated
    stretches = [Stretch("grow", 2, 100.0), Stretch("finetune", 3, 300.0)]
    assert clock.left(stretches, 100.0, steps=10, done=0, others=0.0) == pytest.approx(4 * 10 * (2 + 3 * 2))
    assert clock.left(stretches, 100.0, steps=10, done=5, others=0.0) == pytest.approx(4 * 10 * (2 + 3 * 2) - 20)


def test_a_step_that_waited_for_something_else_does_not_count() -> None:
    clock = Clock()
    for seconds in (9.0, 1.0, 1.0, 1.0, 30.0):
        clock.stepped(seconds)
    assert clock.left([Stretch("train", 2, 100.0)], 100.0, steps=10, done=5, others=0.0) == pytest.approx(15)


def test_an_evaluation_has_a_time_of_its_own() -> None:
    clock = Clock()
    clock.calibrated({100.0: Timed(1.0, 10.0), 300.0: Timed(2.0, 40.0)}, 10, 100)
    clock.stepped(2.0)
    stretches = [Stretch("grow", 1, 100.0), Stretch("finetune", 1, 300.0)]
    assert clock.left(stretches, 100.0, steps=10, done=0, others=0.0) == pytest.approx(2 * (10 + 10) + 2 * (20 + 40))


def test_epochs_that_were_measured_replace_what_was_expected() -> None:
    clock = Clock()
    clock.stepped(1.0)
    clock.epoch(100.0, 20.0)
    assert clock.left([Stretch("train", 4, 100.0)], 100.0, steps=10, done=0, others=0.5) == pytest.approx(80)
    assert clock.left([Stretch("train", 4, 200.0)], 100.0, steps=10, done=0, others=0.5) == pytest.approx(160)
    clock.epoch(200.0, 30.0)  # two sizes: 10 seconds and 10 for every 100 FLOPs
    assert clock.left([Stretch("train", 1, 400.0)], 200.0, steps=10, done=0, others=0.5) == pytest.approx(50)


def test_networks_are_timed_without_a_change_to_the_network_or_to_what_is_drawn() -> None:
    torch.manual_seed(0)
    net = backbones.build("lenet5", in_channels=1)
    graph = ChannelGraph.trace(net, torch.empty(1, 1, 28, 28))
    before, state = {name: value.clone() for name, value in net.state_dict().items()}, torch.get_rng_state()
    batch, passed = (torch.randn(4, 1, 28, 28), torch.arange(4)), set[int]()
    net.register_forward_pre_hook(lambda _, given: passed.add(len(given[0])))
    state = torch.get_rng_state()
    points = calibrate(net, Classification(), batch, [416_520.0, 200_000.0], held_out=30, size=10)
    assert passed == {4}  # a batch of evaluation may be as long as minutes
    assert torch.equal(torch.get_rng_state(), state) and ChannelGraph.of(net).widths == graph.widths
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert (
        len(points) == 2
        and min(points) <= 200_000
        and all(0 < each.step < 1000 * each.evaluation for each in points.values())
    )


def test_a_network_without_convolutions_is_timed_at_both_ends(recwarn: pytest.WarningsRecorder) -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 24), nn.ReLU(), nn.Linear(24, 10))
    ChannelGraph.trace(net, torch.empty(1, 1, 8, 8))
    batch = torch.rand(4, 1, 8, 8), torch.zeros(4, dtype=torch.int64)
    least, full = calibrate(net, Classification(), batch, [1000.0, 64.0 * 32 + 32 * 24 + 24 * 10])
    assert 900 < least <= 1000 and full == 64 * 32 + 32 * 24 + 24 * 10
    assert not recwarn.list


def test_what_a_loader_does_once_is_no_part_of_a_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    components = build(composed([*DIGITS, "method=train", "epochs=7"]), tmp_path / "run")
    now = {"seconds": 0.0}

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        now["seconds"] += 60.0  # such as starting workers
        for batch in [(torch.rand(16, 1, 8, 8), torch.zeros(16, dtype=torch.int64))] * 4:
            now["seconds"] += 0.5
            yield batch

    monkeypatch.setattr(components.data, "train_dataloader", batches)
    monkeypatch.setattr(plan, "time", SimpleNamespace(perf_counter=lambda: now["seconds"]))
    flops = float(components.full["full_flops"])
    monkeypatch.setattr(plan, "calibrate", lambda *_: {flops: Timed(1.0)})
    assert components.data.options.workers == 0
    assert plan.estimate(components) == pytest.approx(7 * 4 * (1.0 + 0.5))


def test_the_rounds_that_growth_will_need_are_those_that_it_took(tmp_path: Path) -> None:
    grown = ("budget.flops=90%", "growth.seed_width=2", "growth.epochs_per_round=2", "finetune.epochs=5", "epochs=40")
    learner = build(composed([*DIGITS, *grown]), tmp_path / "run").learner
    course = learner.course(0)
    limits = growth_limits(learner.method.training, learner.method.growth, learner.method.finetune)
    rounds = math.ceil(math.log(1 / learner.method.planner.used(limits)) / math.log(1.5))  # growth.cost_ratio=0.5
    assert [stretch.name for stretch in course] == [*(f"round {n}" for n in range(1, rounds + 1)), "finetune"]
    assert [stretch.epochs for stretch in course[:-1]] == [2] * (len(course) - 1) and course[-1].epochs == 5
    assert course[-1].flops == pytest.approx(learner.method.training.budget.limits["flops"], rel=0.01)
    assert learner.method.shortfall() is None


def test_a_run_that_is_too_short_for_its_budget_says_so_and_what_would_do(tmp_path: Path) -> None:
    short = ("budget.flops=400%", "growth.seed_width=2", "growth.epochs_per_round=2", "finetune.epochs=5", "epochs=8")
    said = build(composed([*DIGITS, *short]), tmp_path / "run").learner.method.shortfall()
    assert said is not None and said.startswith("growth will end at about ")
    assert "after 1 of " in said and "raise epochs=8 to " in said


def test_pruning_trains_the_full_network_and_then_that_of_the_budget(tmp_path: Path) -> None:
    pruned = ("method=l1", "budget.flops=50%", "prune.epochs=6", "epochs=20", "finetune.epochs=4")
    learner = build(composed([*DIGITS, *pruned]), tmp_path / "run").learner
    full = learner.method.training.ledger.full_flops
    assert [(stretch.epochs, stretch.flops) for stretch in learner.course(0)] == [(6, full), (4, full // 2)]
    assert [stretch.epochs for stretch in learner.course(5)] == [1, 4]


def test_durations_have_two_digits_or_so() -> None:
    assert list(map(duration, (45, 140, 754, 12345, 181440))) == ["45 s", "2.3 min", "13 min", "3.4 h", "2.1 days"]
