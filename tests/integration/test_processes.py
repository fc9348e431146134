"""Two processes on one machine: what they share, what each has of its own, and how they end together."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import time
import uuid
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

import pytest
import torch
from conftest import TINY, arguments, environment, run, start
from hydra.utils import instantiate
from killed import learned, rows
from omegaconf import OmegaConf
from ranks import FOLDER, TROUBLE, notes, sha
from zygote import REPOSITORY

from budgetnet.callbacks.checkpoint import load_checkpoint

DDP = ("trainer=ddp", "trainer.devices=2", "trainer.accelerator=cpu")
COMMAND = (
    *(o for o in TINY if not o.startswith(("backbone=", "budget."))), *DDP, "backbone=own",
    "backbone._target_=nets.Small", "growth.seed_width=3", "budget.flops=50%", "finetune.epochs=2", "epochs=9",
    "dataset.limit_train=240", "dataset.batch_size=16", "+callbacks.witness._target_=ranks.Witness",
    "+callbacks.trouble._target_=ranks.Trouble",
)  # fmt: skip
"""Four growing epochs and two of fine-tuning, 15 steps each, of a network with a batch norm."""
TORCHRUN = ("--standalone", "--nproc_per_node=2", "-m", "src.run")
RANKS = (0, 1)
LOCK = Lock()
"""Held while a process is started: runs are started from several threads."""
SECONDS = 20
"""Within which everything has ended after trouble; it takes 1 to 5 on an idle machine."""


@dataclass
class Ended:
    """How a command ended. seconds: from the trouble to the end of its last process."""

    code: int | None
    output: str
    errors: str
    seconds: float

    @property
    def said(self) -> list[str]:
        """The lines of standard error that are the run's own, without those of the epochs."""
        return [line for line in self.errors.splitlines() if re.match(r"(error|stopped|interrupted)\b", line)]


def variables(folder: Path, trouble: str | None) -> dict[str, str]:
    folder.mkdir(exist_ok=True)
    (folder / "trouble").unlink(missing_ok=True)
    paths = os.pathsep.join(str(REPOSITORY / path) for path in ("src", "tests", "tests/integration"))
    return {FOLDER: str(folder), "PYTHONPATH": paths} | ({} if trouble is None else {TROUBLE: trouble})


def since_trouble(folder: Path) -> float:
    file = folder / "trouble"
    return time.time() - float(file.read_text()) if file.exists() else 0.0


def launched(
    folder: Path, *overrides: str, launcher: Sequence[str] = (), trouble: str | None = None, command: bool = False
) -> Ended:
    """A run whose other processes Lightning starts, or torchrun all; returns when none is left.

    command: the first process too is a new one, rather than a fork.
    """
    mark = uuid.uuid4().hex
    words, extra = [*launcher, *COMMAND, *overrides], {**variables(folder, trouble), "MARK": mark}
    module = "torch.distributed.run" if launcher else "src.run"
    pipe = subprocess.PIPE
    with LOCK:
        process = (
            subprocess.Popen(
                arguments(*words), cwd=REPOSITORY, env=environment() | extra, stdout=pipe, stderr=pipe, text=True
            )
            if command
            else start(*words, module=module, variables=extra)
        )
    try:
        output, errors = process.communicate(timeout=150)
        while (left := marked(mark)) and since_trouble(folder) < SECONDS:
            time.sleep(0.1)
        seconds = since_trouble(folder)
    finally:
        for other in marked(mark):
            os.kill(other, signal.SIGKILL)
    assert not left, f"processes {left} are left: {errors}"
    return Ended(process.returncode, output, errors, seconds)


def marked(mark: str) -> list[int]:
    """The processes that were started with this in their environment."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has just ended
            if mark.encode() in (process / "environ").read_bytes():
                found.append(int(process.name))
    return found


def forked(folder: Path, *overrides: str, trouble: str | None = None) -> list[Ended]:
    """Two processes with the environment that torchrun gives them, and nobody to look after them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {
        "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "GROUP_RANK": "0", "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "none", **variables(folder, trouble),
    }  # fmt: skip
    with LOCK:
        processes = [
            start(*overrides, variables={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}) for rank in RANKS
        ]
    ended = []
    for process in processes:
        output, errors = process.communicate(timeout=150)
        ended.append(Ended(process.returncode, output, errors, since_trouble(folder)))
    return ended


def of_each_rank(folder: Path, event: str) -> list[tuple[dict[str, Any], ...]]:
    """What the ranks have noted of one kind of event, side by side."""
    return list(zip(*(notes(folder, rank, event) for rank in RANKS), strict=True))


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """An uninterrupted run, and two that meet one trouble after the other and are continued by the same command.

    All at the same time, because most of it is spent on the imports of one process while the other waits.
    """
    root = tmp_path_factory.mktemp("several")

    def uninterrupted() -> dict[str, Any]:
        return {"uninterrupted": launched(root / "notes", f"run.dir={root}/run", command=True)}

    def lightning() -> dict[str, Any]:
        found: dict[str, Any] = {}
        for trouble in (
            "bug:1:-1:-1", "RunError:1:1:7", "nan:1:1:11", "SIGKILL:0:2:3", "SIGTERM:0:3:4", "SIGKILL:1:4:9"
        ):  # fmt: skip
            found[trouble] = launched(root / "a", f"run.dir={root}/lightning", trouble=trouble)
            found[f"{trouble} kept"] = kept(root / "lightning")
        found["lightning"] = forked(root / "a", *COMMAND, f"run.dir={root}/lightning")[0]
        return found

    def torchrun() -> dict[str, Any]:
        found: dict[str, Any] = {}
        place, often = f"run.dir={root}/torchrun", "checkpoint.every_n_steps=4"
        for trouble, options in (("SIGKILL:1:1:8", (often,)), ("parent's SIGTERM:0:2:5", ()), ("nothing:0:0:0", ())):
            found[f"torchrun {trouble}"] = launched(root / "b", place, *options, launcher=TORCHRUN, trouble=trouble)
            found[f"torchrun {trouble} kept"] = kept(root / "torchrun")
        return found

    with ThreadPoolExecutor(3) as pool:
        jobs = [pool.submit(job) for job in (uninterrupted, lightning, torchrun)]
        return {name: value for job in jobs for name, value in job.result().items()} | {"root": root}


def kept(directory: Path) -> tuple[int, int]:
    """(epochs, steps of the next) that the checkpoint to continue from has behind it."""
    if not (directory / "last.ckpt").exists():
        return 0, 0
    state = load_checkpoint(directory / "last.ckpt")["budgetnet"]
    return state["epochs"], state["batches"]


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
    assert len(epochs) == 6
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
    assert [first["plan"].split(":")[0] for first, _ in rounds] == [f"GrowthPlan(round {r['round']}" for r in written]
    for (first, second), record in zip(of_each_rank(folder, "epoch"), written, strict=False):
        assert first["widths"] == second["widths"] == record["widths"]


def test_an_epoch_is_the_batches_of_one_process_cut_in_two(uninterrupted: Path) -> None:
    data = instantiate(OmegaConf.load(uninterrupted / "config.yaml").dataset)
    loader = data.train_dataloader()
    shares = of_each_rank(uninterrupted.parent / "notes", "batch")
    for epoch in (0, 4):
        loader.set_epoch(epoch)
        whole = [[sha(*pair) for pair in zip(*batch, strict=True)] for batch in loader]
        together = [first["images"] + second["images"] for first, second in shares if first["epoch"] == epoch]
        assert together == whole
        order = torch.cat(loader.parts())
        assert len(order.unique()) == len(order) == 240


def test_gradmax_and_carried_state_are_the_same_on_all_ranks(tmp_path: Path) -> None:
    overrides = (*COMMAND, "growth.init=gradmax", "growth.state=carry", f"run.dir={tmp_path}/run", "seed=3")
    for ended in forked(tmp_path / "notes", *overrides):
        assert (ended.code, ended.said) == (0, [])
    epochs = of_each_rank(tmp_path / "notes", "epoch")
    assert len({str(first["widths"]) for first, _ in epochs}) > 3
    for first, second in epochs:
        assert first == second


# -- how they end -----------------------------------------------------------------------------------------------------


LOST = "lost the connection to the others"
KEPT = "the last checkpoint is kept, the same command continues"


def test_what_one_rank_raises_is_said_once_and_ends_all(runs: dict[str, Any]) -> None:
    ended: Ended = runs["RunError:1:1:7"]
    assert ended.code == 1 and ended.seconds < SECONDS
    assert ended.said[0] == "error: rank 1: the disk is on fire"
    assert [line for line in ended.said[1:] if "exit code 1" not in line and LOST not in line] == []
    assert len(ended.said) <= 2 and "Traceback" not in ended.errors
    assert runs["RunError:1:1:7 kept"] == (1, 0)


def test_what_one_rank_raises_before_they_have_joined_is_said_once_and_ends_all(runs: dict[str, Any]) -> None:
    ended: Ended = runs["bug:1:-1:-1"]
    assert ended.code == 1 and ended.seconds < SECONDS
    first, second = ended.said
    assert first.startswith("error: rank 1: ") and first.endswith("a bug in a callback)")
    assert second == f"error: the process of rank 1 ended with exit code 2; {KEPT}"
    assert "Traceback" not in ended.errors


def test_a_loss_that_is_not_finite_is_said_once(runs: dict[str, Any]) -> None:
    ended: Ended = runs["nan:1:1:11"]
    assert ended.code == 1 and ended.seconds < SECONDS
    (line,) = ended.said
    assert re.match(r"error: the loss is not finite at step (27|28) \(epoch 2, phase grow\)", line)
    assert runs["nan:1:1:11 kept"] == (1, 0)


def test_a_killed_process_ends_the_other(runs: dict[str, Any]) -> None:
    first, second = runs["SIGKILL:0:2:3"], runs["SIGKILL:1:4:9"]
    assert (first.code, first.said) == (-signal.SIGKILL, [])
    assert (second.code, second.said) == (1, [f"error: the process of rank 1 was killed by SIGKILL; {KEPT}"])
    assert max(first.seconds, second.seconds) < SECONDS


def test_sigterm_to_the_first_process_ends_both_after_a_checkpoint(runs: dict[str, Any]) -> None:
    ended: Ended = runs["SIGTERM:0:3:4"]
    assert ended.code == 143 and ended.seconds < SECONDS
    (line,) = ended.said
    assert line.startswith("stopped by SIGTERM: ") and "is complete up to epoch 3 and 10 steps; continue" in line
    assert runs["SIGTERM:0:3:4 kept"] == (3, 10)


def test_a_run_of_six_troubles_has_the_bits_of_one_without(runs: dict[str, Any], uninterrupted: Path) -> None:
    assert runs["lightning"].code == 0, runs["lightning"].errors
    assert learned(runs["root"] / "lightning") == learned(uninterrupted)


def test_a_process_killed_under_torchrun_ends_the_others(runs: dict[str, Any]) -> None:
    ended: Ended = runs["torchrun SIGKILL:1:1:8"]
    assert ended.code != 0 and ended.seconds < SECONDS
    (line,) = ended.said
    assert line.startswith(f"error: rank 0 {LOST} (") and line.endswith(KEPT)
    assert runs["torchrun SIGKILL:1:1:8 kept"] in ((1, 4), (1, 8))


def test_sigterm_to_torchrun_ends_all_after_a_checkpoint(runs: dict[str, Any]) -> None:
    ended: Ended = runs["torchrun parent's SIGTERM:0:2:5"]
    assert ended.code != 0 and ended.seconds < SECONDS
    (line,) = ended.said
    assert line.startswith("stopped by SIGTERM: ")
    assert runs["torchrun parent's SIGTERM:0:2:5 kept"] == (2, 10)


def test_under_torchrun_it_is_continued_to_the_same_bits(runs: dict[str, Any], uninterrupted: Path) -> None:
    ended: Ended = runs["torchrun nothing:0:0:0"]
    assert (ended.code, ended.said) == (0, [])
    assert ended.output.count("report: ") == 1
    assert learned(runs["root"] / "torchrun") == learned(uninterrupted)


@pytest.mark.parametrize("trouble", ["RunError:0:1:3", "bug:1:1:3"])
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
    refused = run(*TINY, *DDP, *plus, f"run.dir={tmp_path}/run")
    assert refused.returncode == 2
    (line,) = refused.stderr.splitlines()
    assert line.startswith("error: ") and words in line
    assert not list(tmp_path.iterdir())
