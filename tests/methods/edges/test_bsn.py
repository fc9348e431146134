"""Budgeted super networks: what a run draws, learns, books and keeps."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch
from short_run import SHORT, Fit, fitted, metrics

from budgetnet.command.build import Components, build
from budgetnet.command.compose import composed
from budgetnet.costs.edges import EdgeCosts
from budgetnet.errors import RunError, UsageError
from budgetnet.methods.edges.bsn import BSN
from budgetnet.runs.checkpoints import load_checkpoint
from budgetnet.seeding import keyed_generator

SEARCH = (
    "method=bsn", "backbone=cnf", "backbone.columns=2", "backbone.channels=4", "dataset=digits",
    "dataset.limit_train=16", "dataset.batch_size=8", "method.warmup_epochs=1",
    "method.search_epochs=3", "method.images=16", "finetune.epochs=1", "epochs=4", "method.lr=20",
)  # fmt: skip
"""One epoch with every edge on, two of drawing edges, one of tuning; two steps each. Probabilities move fast."""


def edges(parts: object) -> list[dict[str, str]]:
    with open(Path(parts.trainer.default_root_dir, "edges.csv")) as file:  # type: ignore[attr-defined]
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Components:
    """A whole run of 40 % of the FLOPs."""
    return fitted(tmp_path_factory.mktemp("searched"), *SEARCH, "budget.flops=40%")


def test_phases_follow_each_other_and_the_network_that_is_left_is_the_one_that_was_chosen(searched: Components) -> None:
    parts, method = searched, searched.method
    assert isinstance(method, BSN)
    assert [row["phase"] for row in metrics(parts)] == ["warmup", "sample", "sample", "finetune"]
    limit = method.training.budget.limits["flops"]
    costs = method.training.pricing.model.costs()
    assert costs["flops"] <= limit < method.full["flops"]
    kept = method.search.layout.names(method.mask)
    assert kept == tuple(edge.name for edge in method.supernet.layout.edges) == tuple(method.supernet.edges)
    assert {kind: method.costs()[kind] for kind in costs} == costs
    round = json.loads(Path(parts.trainer.default_root_dir, "growth.jsonl").read_text())
    assert tuple(round["edges"]) == kept and round["flops"] == costs["flops"] and round["stop"] == "flops"
    state = parts.trainer.optimizers[0]
    assert {p for group in state.param_groups for p in group["params"]} == set(method.net.parameters())


def test_costs_sampled_pruned_and_full_stand_side_by_side(searched: Components) -> None:
    rows, method = edges(searched), searched.method
    assert isinstance(method, BSN)
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    assert {int(row["full_flops"]) for row in rows} == {method.full["flops"]}
    assert float(rows[0]["sampled_flops"]) == int(rows[0]["pruned_flops"]) == method.full["flops"]
    assert float(rows[2]["sampled_flops"]) < float(rows[1]["sampled_flops"]) < method.full["flops"]
    assert int(rows[2]["pruned_flops"]) == method.training.pricing.model.flops()
    gamma = [float(rows[2][edge.name]) for edge in method.search.layout.edges]
    assert gamma == method.search.probabilities.tolist() and rows[2]["decided"] == str(method.search.decided())
    assert rows[0]["weight_flops"] == "0.0" and float(rows[2]["weight_flops"]) > 0  # masks cost more than 40 %
    assert float(rows[2]["weight_flops"]) == method.search.multipliers.weights()["flops"]


@pytest.mark.parametrize("samples", [None, 4])
def test_the_ledger_holds_what_was_computed_of_every_choice(fit: Fit, samples: int | None) -> None:
    """Random choices have probabilities that do not move, so that every draw can be repeated."""
    shared = f"method.samples={'null' if samples is None else samples}"
    parts = fit(*SEARCH, "budget.flops=40%", "method.choice=random", "method.initial=0.0", shared)
    method = parts.method
    assert isinstance(method, BSN) and torch.equal(method.search.logits, torch.zeros(len(method.mask)))
    layout, costs = method.search.layout, method.search.costs
    spent = 16 * method.full["flops"] + 16 * method.training.pricing.model.flops()
    for epoch in (1, 2):
        for step in range(2):
            key = keyed_generator("edges", 0, epoch, step)
            on = torch.rand(samples or 8, len(layout.edges), generator=key, dtype=torch.float64) < 0.5
            computed = layout.alive(on) if samples else layout.alive(on).any(0)[None]
            spent += sum(8 // len(computed) * f for f in costs.of(computed, ("flops",))["flops"].tolist())
    assert method.training.ledger.spent == spent < 4 * 16 * method.full["flops"]


def test_a_cost_on_machines_is_learned_as_any_other(fit: Fit) -> None:
    parts = fit(*SEARCH, "budget.flops=null", "budget.sequential_ops=16", "budget.machines=2")
    method = parts.method
    assert isinstance(method, BSN)
    assert EdgeCosts(method.supernet, machines=2).full()["sequential_ops"] == method.costs()["sequential_ops"] <= 16
    assert method.full["sequential_ops"] > 16
    rows = edges(parts)
    assert float(rows[2]["sampled_sequential_ops"]) < float(rows[1]["sampled_sequential_ops"])


def test_random_edges_use_the_budget_by_draws_of_the_seed_alone(fit: Fit) -> None:
    kept, brief = {}, ("dataset.limit_train=8", "finetune.epochs=0", "method.search_epochs=2", "epochs=2")
    for name, options in {
        "a": (), "b": ("method.lr=0.1", "optim.lr=0.001"), "c": ("seed=1",)
    }.items():  # fmt: skip
        method = fit(*SEARCH, "budget.flops=40%", "method.choice=random", *brief, *options).method
        assert isinstance(method, BSN)
        kept[name] = method.mask
        assert method.training.pricing.model.flops() <= method.training.budget.limits["flops"]
    assert torch.equal(kept["a"], kept["b"]) and not torch.equal(kept["a"], kept["c"])


def test_without_fine_tuning_the_network_is_left_as_it_was_chosen_with_statistics_of_its_own(fit: Fit) -> None:
    parts = fit(*SEARCH, "budget.flops=40%", "finetune.epochs=0")
    method = parts.method
    assert isinstance(method, BSN)
    assert len(metrics(parts)) == 3 and parts.learner.phase.name == "finetune"
    norms = [norm for norm in method.net.modules() if isinstance(norm, torch.nn.BatchNorm2d)]
    assert {int(norm.num_batches_tracked) for norm in norms} == {2}  # method.images=16, in batches of 8
    assert {norm.momentum for norm in norms} == {0.1}


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (("budget.sequential_ops=9",), "budget.sequential_ops=9 is below the 12 of the shortest path from end to end"),
        (("budget.flops=1k",), "of the shortest path from end to end: raise it"),
        (("budget.params=1%",), "of the shortest path from end to end: raise it"),
        (
            ("budget.flops=50%", "budget.train_cost=1M"),
            "method.search_epochs=3 of the whole network and finetune.epochs=1",
        ),
        (("budget.latency=1us",), "budget.latency=1us is below the"),
        (("budget.latency=50%",), "budget.latency=50%: expected a positive time such as"),
        (("budget.flops=50%", "budget.machines=0"), "budget.machines=0: expected a whole number"),
        ((), "no budget: state at least one of"),
        (("budget.flops=50%", "method.warmup_epochs=3"), "leaves no epoch of method.search_epochs=3"),
        (("budget.flops=50%", "method.search_epochs=4"), "do not fit into epochs=4: raise it to 5"),
        (("budget.flops=50%", "method.choice=learnt"), "did you mean 'learned'?"),
        (("budget.flops=50%", "method.samples=0"), "method.samples=0: expected 1 or more"),
        (("budget.flops=50%", "backbone=lenet5"), "backbone=lenet5 has no edges to choose from"),
        (
            ("method=l1", "budget.sequential_ops=20"),
            "budget.sequential_ops is not kept by method=l1: use method=bsn, or state",
        ),
        (("method=l1", "budget.flops=50%", "finetune.epochs=0"), "finetune.epochs=0: expected a number above 0"),
    ],
)
def test_what_cannot_run_is_said_in_one_line(options: tuple[str, ...], text: str, tmp_path: Path) -> None:
    replaced = {"backbone=lenet5": "backbone", "method=l1": "method"}
    gone = tuple(group for option, group in replaced.items() if option in options)
    chosen = [option for option in SEARCH if not option.startswith(gone)] if gone else SEARCH
    short = ("logger=csv", "threads=1", "trainer.progress=false")
    config = composed([*chosen, *short, *options])
    with pytest.raises(UsageError) as refused:
        build(config, tmp_path)
    assert text in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (("method.samples=3",), "method.samples=3: expected a multiple of the number of processes"),
        (("method.samples=1",), "method.baseline=mean takes the mean over a step's other samples"),
        (("method.samples=8",), "8 images in 8 slices"),
        (("trainer.micro_batches=8",), "1 of the 8 images that a process has of a batch are passed at once"),
    ],
)
def test_choices_that_cannot_be_shared_out_are_refused(fit: Fit, options: tuple[str, ...], text: str) -> None:
    with pytest.raises(UsageError, match=text):
        fit(*SEARCH, "budget.flops=40%", *options)


def test_a_moving_average_takes_one_choice_and_learns_too(fit: Fit) -> None:
    method = fit(*SEARCH, "budget.flops=40%", "method.samples=1", "method.baseline=ema").method
    assert isinstance(method, BSN) and method.search.average is not None
    assert not torch.equal(method.search.logits, torch.full_like(method.search.logits, 3.0))


def test_a_limit_on_latency_holds_for_the_network_itself_and_a_continued_run_measures_nothing_anew(
    fit: Fit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every edge takes 100 microseconds by itself, and in a network twice as long."""
    module = "budgetnet.methods.edges.bsn"
    monkeypatch.setattr(f"{module}.edge_latencies", lambda net, shape: torch.full((9, 1 + len(net.edges)), 100))
    monkeypatch.setattr(f"{module}.latency_of", lambda net, alive, shape: 200 * (1 + int(alive.sum())))
    parts = fit(*SEARCH, "budget.flops=null", "budget.latency=2.5ms")
    bsn = parts.method
    assert isinstance(bsn, BSN) and bsn.costs()["latency"] == bsn.latency == 200 * (1 + int(bsn.mask.sum())) <= 2500
    assert bsn.full["latency"] == 2700 and parts.learner.phase.name == "finetune"

    def refuse(*_: object) -> None:
        raise AssertionError("measured")

    monkeypatch.setattr(f"{module}.edge_latencies", refuse)
    directory = Path(parts.trainer.default_root_dir)
    again = build(composed([*SHORT, *SEARCH, "budget.flops=null", "budget.latency=2.5ms"]), directory)
    state = load_checkpoint(directory / "last.ckpt")
    again.learner.on_load_checkpoint(state)
    again.learner.load_state_dict(state["state_dict"])
    assert again.method.costs() == bsn.costs() and again.method.facts() == bsn.facts()


def test_a_limit_that_even_the_shortest_path_turns_out_to_exceed_ends_the_run(
    fit: Fit, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = "budgetnet.methods.edges.bsn"
    monkeypatch.setattr(f"{module}.edge_latencies", lambda net, shape: torch.full((9, 1 + len(net.edges)), 100))
    times = iter([2000, *[3000] * 100])
    monkeypatch.setattr(f"{module}.latency_of", lambda net, alive, shape: next(times))
    with pytest.raises(RunError, match="was measured to take 3,000us now, above budget"):
        fit(*SEARCH, "budget.flops=null", "budget.latency=2.5ms")


def test_a_frozen_module_of_an_edge_may_go_with_it(fit: Fit) -> None:
    frozen = "+backbone.frozen=[edges.c1s0_from_c0s0.0,stem.0]"
    method = fit(*SEARCH, "budget.flops=40%", "method.choice=random", frozen).method
    assert "edges.c1s0_from_c0s0.0" not in dict(method.net.named_modules())
    assert method.graph.frozen == {"stem.0"}
