"""Two processes on one machine: what they share, what each has of its own, and how they end together."""

from __future__ import annotations

import json
import re
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import TINY, refusal, run
from covering import covered
from killed import kept, learned, rows
from omegaconf import OmegaConf
from ranks import notes, sha
from several import DDP, SECONDS, TORCHRUN, WATCHED, Ended, forked, launched, of_each_rank
from zygote import Forked

from budgetnet.command.configuration import parse
from budgetnet.command.made import make_data
from budgetnet.command.methods import method_class

COMMAND = (
    *(o for o in TINY if not o.startswith(("backbone=", "budget."))), *DDP, *WATCHED, "backbone=own",
    "backbone._target_=nets.Small", "growth.seed_width=3", "budget.flops=50%", "finetune.epochs=1", "epochs=8",
    "dataset.limit_train=96", "dataset.batch_size=8", "dataset.validation=60", "dataset.limit_test=60",
)  # fmt: skip
"""Four growing epochs and one of fine-tuning, twelve steps each, of a network with a batch norm."""


def troubled(root: Path, name: str, *troubles: str) -> dict[str, Any]:
    """A run that Lightning starts, meets one trouble after the other, and is continued by the same command."""
    found: dict[str, Any] = {}
    overrides = (*COMMAND, f"run.dir={root}/{name}")
    for trouble in troubles:
        found[trouble] = launched(root / f"{name} notes", *overrides, trouble=trouble)
        found[f"{trouble} kept"] = kept(root / name)
    return {**found, name: forked(root / f"{name} notes", *overrides)[0]}


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """An uninterrupted run, and two that meet one trouble after the other and are continued by the same command.

    All at the same time, because most of it is spent on the imports of one process while the other waits.
    """
    root = tmp_path_factory.mktemp("several")

    def uninterrupted() -> dict[str, Any]:
        return {"uninterrupted": launched(root / "notes", *COMMAND, f"run.dir={root}/run")}

    def lightning() -> dict[str, Any]:
        return troubled(root, "lightning", "RunError:1:1:7", "SIGKILL:0:2:3", "SIGTERM:0:3:4")

    def torchrun() -> dict[str, Any]:
        overrides = (*COMMAND, f"run.dir={root}/torchrun", "checkpoint.every_n_steps=4")
        killed = launched(root / "b", *overrides, launcher=TORCHRUN, trouble="SIGKILL:1:1:8")
        found = {"torchrun SIGKILL:1:1:8": killed, "torchrun SIGKILL:1:1:8 kept": kept(root / "torchrun")}
        return {**found, "torchrun": launched(root / "b", *overrides, launcher=TORCHRUN)}

    with ThreadPoolExecutor(3) as pool:
        jobs = [pool.submit(job) for job in (uninterrupted, lightning, torchrun)]
        return {name: value for job in jobs for name, value in job.result().items()} | {"root": root}


@pytest.fixture(scope="session")
def further(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A run that meets three troubles more."""
    root = tmp_path_factory.mktemp("further")
    return troubled(root, "further", "bug:1:-1:-1", "nan:1:1:8", "SIGKILL:1:4:9") | {"root": root}


# -- what they share --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def uninterrupted(runs: dict[str, Any]) -> Path:
    """The directory of the finished run; what its processes noted lies in `notes` beside it."""
    ended: Ended = runs["uninterrupted"]
    assert ended.code == 0, ended.errors
    assert ended.output.count("report: ") == 1
    directory: Path = runs["root"] / "run"
    return directory


def test_all_ranks_hold_the_same_bits_after_every_epoch_and_every_round(uninterrupted: Path) -> None:
    folder = uninterrupted.parent / "notes"
    epochs = of_each_rank(folder, "epoch")
    assert len(epochs) == 5
    for first, second in epochs:
        assert first == second
    rounds = of_each_rank(folder, "round")
    assert len(rounds) == 4 and len({first["z"] for first, _ in rounds}) == 4
    for first, second in rounds:
        assert first == second
    for first, second in of_each_rank(folder, "end"):
        assert first == second


def test_gradients_of_new_channels_are_those_of_all_ranks_whose_images_differ(uninterrupted: Path) -> None:
    folder = uninterrupted.parent / "notes"
    steps = list(zip(of_each_rank(folder, "batch"), of_each_rank(folder, "gradients"), strict=True))
    for (first, second), (gradient, other) in steps:
        assert not set(first["images"]) & set(second["images"])
        assert first["random"] != second["random"]
        assert gradient == other
    grown = [gradient["new"] for _, (gradient, _) in steps if gradient["new"]]
    assert len(grown) == 4
    assert all(norm > 0 for new in grown for _, norm in new.values())


def test_a_plan_is_made_once_and_carried_out_by_all(uninterrupted: Path) -> None:
    folder = uninterrupted.parent / "notes"
    rounds = of_each_rank(folder, "round")
    assert len(list(notes(folder, 0, "planned"))) == len(rounds) >= 3
    assert not list(notes(folder, 1, "planned"))
    written = [json.loads(line) for line in (uninterrupted / "growth.jsonl").read_text().splitlines()]
    assert [first["plan"].split(":")[0] for first, _ in rounds] == [f"WidthPlan(round {r['round']}" for r in written]
    for (first, second), record in zip(of_each_rank(folder, "epoch"), written, strict=False):
        assert first["widths"] == second["widths"] == record["widths"]


def test_an_epoch_is_the_batches_of_one_process_cut_in_two(uninterrupted: Path) -> None:
    config = OmegaConf.to_container(OmegaConf.load(uninterrupted / "config.yaml"))
    assert isinstance(config, dict)
    data = make_data(parse(config, method_class(config)).dataset, config["dataset"])
    loader = data.train_dataloader()
    shares = of_each_rank(uninterrupted.parent / "notes", "batch")
    for epoch in (0, 4):
        loader.set_epoch(epoch)
        whole = [[sha(*pair) for pair in zip(*batch, strict=True)] for batch in loader]
        together = [first["images"] + second["images"] for first, second in shares if first["epoch"] == epoch]
        assert together == whole
        order = torch.cat(loader.parts())
        assert len(order.unique()) == len(order) == 96


def test_a_batch_in_parts_is_averaged_once_a_step_and_is_the_step_of_one_process(tmp_path: Path) -> None:
    precise = (*TINY, "trainer.precision=64-true", "dataset.limit_train=80", "dataset.batch_size=20", "epochs=6")
    overrides = (*DDP, "trainer.micro_batches=3", "+callbacks.reductions._target_=ranks.Reductions")
    for ended in forked(tmp_path / "notes", *precise, *overrides, f"run.dir={tmp_path}/two"):
        assert (ended.code, ended.said) == (0, []), ended.errors
    alone = run(*precise, f"run.dir={tmp_path}/one", "trainer.accelerator=cpu")
    assert alone.returncode == 0, alone.stderr
    one, two = (torch.load(tmp_path / name / "last.ckpt", weights_only=True)["state_dict"] for name in ("one", "two"))
    assert one.keys() == two.keys() and all((one[name] - two[name]).abs().max() < 1e-9 for name in one)
    clock, rounding = ("seconds",), ("train_loss", "val_loss")
    first, second = (rows(tmp_path / name / "metrics.csv", *clock, *rounding) for name in ("one", "two"))
    assert first == second
    assert len({row["flops"] for row in second}) > 3
    assert (tmp_path / "notes" / "reductions").read_text().split() == ["4"] * len(second)


@pytest.mark.soak
def test_in_bf16_with_gradmax_and_carried_state_they_learn_and_are_the_same_on_all_ranks(tmp_path: Path) -> None:
    overrides = (
        *TINY, *DDP, *WATCHED, "trainer.precision=bf16-mixed", "growth.init=gradmax", "growth.state=carry",
        "dataset.limit_train=320", "dataset.batch_size=32",
    )  # fmt: skip
    for ended in forked(tmp_path / "notes", *overrides, f"run.dir={tmp_path}/run"):
        assert (ended.code, ended.said) == (0, []), ended.errors
    epochs = of_each_rank(tmp_path / "notes", "epoch")
    assert len({str(first["widths"]) for first, _ in epochs}) > 3
    for first, second in epochs:
        assert first == second
    learning = rows(tmp_path / "run" / "metrics.csv")
    assert float(learning[-1]["train_loss"]) < 0.5 * float(learning[0]["train_loss"])
    assert float(learning[-1]["val_top1"]) > 60


@pytest.mark.soak
def test_a_process_that_is_started_as_a_users_is_gives_the_same_bits(uninterrupted: Path, tmp_path: Path) -> None:
    ended = launched(tmp_path / "notes", *COMMAND, f"run.dir={tmp_path}/run", figures=True, others=0)
    assert ended.code == 0, ended.errors
    assert learned(tmp_path / "run") == learned(uninterrupted)


# -- how they end -----------------------------------------------------------------------------------------------------


LOST = "lost the connection to the others"
BUDGETS = "the last checkpoint is kept, the same command continues"


def test_what_one_rank_raises_is_said_once_and_ends_all(runs: dict[str, Any]) -> None:
    ended: Ended = runs["RunError:1:1:7"]
    assert ended.code == 1 and ended.seconds < SECONDS
    assert ended.said[0] == "error: rank 1: the disk is on fire"
    assert [line for line in ended.said[1:] if "exit code 1" not in line and LOST not in line] == []
    assert len(ended.said) <= 2 and "Traceback" not in ended.errors
    assert runs["RunError:1:1:7 kept"] == (1, 0)


@pytest.mark.soak
def test_what_one_rank_raises_before_they_have_joined_is_said_once_and_ends_all(further: dict[str, Any]) -> None:
    ended: Ended = further["bug:1:-1:-1"]
    assert ended.code == 1 and ended.seconds < SECONDS
    first, second = ended.said
    assert first.startswith("error: rank 1: ") and first.endswith("a bug in a callback)")
    assert second == f"error: the process of rank 1 ended with exit code 2; {BUDGETS}"
    assert "Traceback" not in ended.errors


@pytest.mark.soak
def test_a_loss_that_is_not_finite_is_said_once(further: dict[str, Any]) -> None:
    ended: Ended = further["nan:1:1:8"]
    assert ended.code == 1 and ended.seconds < SECONDS
    (line,) = ended.said
    assert re.match(r"error: the loss is not finite at step (21|22) \(epoch 2, phase grow\)", line)
    assert further["nan:1:1:8 kept"] == (1, 0)


def test_the_first_process_killed_ends_the_other(runs: dict[str, Any]) -> None:
    ended: Ended = runs["SIGKILL:0:2:3"]
    assert (ended.code, ended.said) == (-signal.SIGKILL, []) and ended.seconds < SECONDS


@pytest.mark.soak
def test_another_process_killed_is_said_and_ends_the_first(further: dict[str, Any]) -> None:
    ended: Ended = further["SIGKILL:1:4:9"]
    assert (ended.code, ended.said) == (1, [f"error: the process of rank 1 was killed by SIGKILL; {BUDGETS}"])
    assert ended.seconds < SECONDS


def test_sigterm_to_the_first_process_ends_both_after_a_checkpoint(runs: dict[str, Any]) -> None:
    ended: Ended = runs["SIGTERM:0:3:4"]
    assert ended.code == 143 and ended.seconds < SECONDS
    (line,) = ended.said
    assert line.startswith("stopped by SIGTERM: ") and "is complete up to epoch 3 and 10 steps; continue" in line
    assert runs["SIGTERM:0:3:4 kept"] == (3, 10)


def test_a_run_of_three_troubles_has_the_bits_of_one_without(runs: dict[str, Any], uninterrupted: Path) -> None:
    assert runs["lightning"].code == 0, runs["lightning"].errors
    assert learned(runs["root"] / "lightning") == learned(uninterrupted)


@pytest.mark.soak
def test_and_so_has_one_of_three_others(further: dict[str, Any], uninterrupted: Path) -> None:
    assert further["further"].code == 0, further["further"].errors
    assert learned(further["root"] / "further") == learned(uninterrupted)


def test_a_process_killed_under_torchrun_ends_the_others(runs: dict[str, Any]) -> None:
    ended: Ended = runs["torchrun SIGKILL:1:1:8"]
    assert ended.code != 0 and ended.seconds < SECONDS
    (line,) = ended.said
    assert line.startswith(f"error: rank 0 {LOST} (") and line.endswith(BUDGETS)
    assert runs["torchrun SIGKILL:1:1:8 kept"] == (1, 8)  # the 20th step


@pytest.mark.soak
@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_that_is_stopped_is_named_and_ends_the_others(rank: int, tmp_path: Path) -> None:
    overrides = (*COMMAND, "trainer.timeout=0.1", f"run.dir={tmp_path}/run")
    start = time.monotonic()
    with ThreadPoolExecutor(1) as pool:
        job = pool.submit(forked, tmp_path / "a", *overrides, trouble=f"SIGSTOP:{rank}:1:3")
        while not (tmp_path / "a" / "trouble").exists() and time.monotonic() < start + 120:
            time.sleep(0.1)
        time.sleep(15)  # more than the timeout: the stopped one is still there, the other has ended
        for process in list(Forked.running):
            process.send_signal(signal.SIGKILL)
        ended = job.result()
    other = ended[1 - rank]
    assert (other.code, len(other.said)) == (1, 1), other.errors
    assert re.match(
        rf"error: the process of rank {rank} is late: it has given no sign of life for \d+ s", other.said[0]
    )
    assert ended[rank].code == -signal.SIGKILL and kept(tmp_path / "run") == (1, 0)


def test_under_torchrun_it_is_continued_to_the_same_bits(runs: dict[str, Any], uninterrupted: Path) -> None:
    ended: Ended = runs["torchrun"]
    assert (ended.code, ended.said) == (0, []), ended.errors
    assert ended.output.count("report: ") == 1
    assert learned(runs["root"] / "torchrun") == learned(uninterrupted)


@pytest.mark.soak
def test_sigterm_to_torchrun_ends_all_after_a_checkpoint(uninterrupted: Path, tmp_path: Path) -> None:
    overrides = (*COMMAND, f"run.dir={tmp_path}/run")
    ended = launched(tmp_path / "d", *overrides, launcher=TORCHRUN, trouble="parent's SIGTERM:0:2:5")
    assert ended.code != 0 and ended.seconds < SECONDS
    (line,) = ended.said
    assert line.startswith("stopped by SIGTERM: ")
    assert (2, 10) <= kept(tmp_path / "run") < (5, 0)  # it takes torchrun a while to pass it on
    assert launched(tmp_path / "d", *overrides, launcher=TORCHRUN).code == 0
    assert learned(tmp_path / "run") == learned(uninterrupted)


@pytest.mark.soak
def test_torchrun_starts_all_anew_after_one_was_killed_and_they_go_on(uninterrupted: Path, tmp_path: Path) -> None:
    again = ("--max-restarts=1", *TORCHRUN)
    ended = launched(tmp_path / "c", *COMMAND, f"run.dir={tmp_path}/run", launcher=again, trouble="SIGKILL:1:2:8")
    assert ended.code == 0 and ended.seconds > 0
    assert learned(tmp_path / "run") == learned(uninterrupted)


@pytest.mark.soak
def test_four_processes_go_on_from_the_middle_of_an_epoch_to_the_same_bits(tmp_path: Path) -> None:
    overrides = (*COMMAND, "trainer.devices=4", "budget.flops=30%", "finetune.epochs=1")
    for ended in forked(tmp_path / "one", *overrides, f"run.dir={tmp_path}/whole", number=4):
        assert (ended.code, ended.said) == (0, []), ended.errors
    again = (*overrides, f"run.dir={tmp_path}/cut")
    codes = [ended.code for ended in forked(tmp_path / "two", *again, trouble="SIGTERM:0:1:4", number=4)]
    assert codes == [143] * 4
    assert kept(tmp_path / "cut") == (1, 10)
    for ended in forked(tmp_path / "two", *again, number=4):
        assert (ended.code, ended.said) == (0, []), ended.errors
    assert learned(tmp_path / "cut") == learned(tmp_path / "whole")


@pytest.mark.parametrize("trouble", covered(("RunError:0:1:3", "bug:1:1:3"), ("bug:1:1:3",)))
def test_without_anyone_to_end_them_all_end_by_themselves(trouble: str, tmp_path: Path) -> None:
    first, second = forked(tmp_path / "notes", *COMMAND, f"run.dir={tmp_path}/run", trouble=trouble)
    assert (first.code, second.code) == (1, 1)
    assert max(first.seconds, second.seconds) < SECONDS
    cause, other = (first, second) if trouble.startswith("RunError:0") else (second, first)
    assert LOST in other.said[0] and "Traceback" not in other.errors
    if trouble.startswith("bug"):
        assert cause.said == [] and cause.errors.count("Traceback") == 1
        assert cause.errors.splitlines()[-1] == "ZeroDivisionError: a bug in a callback"
    else:
        assert (cause.said, "Traceback" in cause.errors) == (["error: the disk is on fire"], False)
    assert kept(tmp_path / "run") == (1, 0)


# -- what they cannot have --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["trainer.strategy=fsdp"], "trainer.strategy=fsdp: it cuts parameters into shards"),
        (["trainer.strategy=deepspeed_stage_2"], "trainer.strategy=deepspeed_stage_2: it cuts parameters into shards"),
        (["trainer.strategy=ddp_find_unused_parameters_true"], "the processes would drift apart"),
        (["trainer.strategy=ddp_spawn"], "trainer.strategy=ddp_spawn: not one that a growing run has been proven with"),
        (["trainer.sync_batchnorm=true"], "trainer.sync_batchnorm=true needs GPUs"),
        (["dataset.batch_size=15"], "dataset.batch_size=15 is of all processes together"),
        (["trainer.micro_batches=0"], "trainer.micro_batches=0: expected 1 or more"),
        (["trainer.accumulate_grad_batches=2"], "use trainer.micro_batches instead"),
    ],
)
def test_what_several_processes_cannot_have_is_refused_in_one_line(
    overrides: list[str], words: str, tmp_path: Path
) -> None:
    plus = [("+" if o.startswith("trainer.accumulate") else "") + o for o in overrides]
    assert words in refusal(tmp_path / "run", *TINY, *DDP, *plus)
