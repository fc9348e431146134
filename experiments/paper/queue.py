"""The queue of runs that reproduce the papers, experiments/QUEUE.md: run it, continue it, keep its cells true.

python -m experiments.run_queue                             every entry in order; the same command continues
python -m experiments.run_queue --parallel 4 --minutes 9    four jobs on every GPU (or on the CPU), for so long
python -m experiments.run_queue 1 3                         these entries alone
python -m experiments.run_queue --list                      run nothing, count what is done
python -m experiments.run_queue --cpu                       the entries for CPU cores, in the background
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import re
import shlex
import signal
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from threading import Event, Timer
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser

from budgetnet.channels import ChannelGraph
from budgetnet.command.compose import CONF, composed
from budgetnet.command.explain import explain
from budgetnet.command.launcher import Job, gpus_needed, run_jobs, source, visible_gpus
from budgetnet.command.made import new_network
from budgetnet.command.names import SWEEP, run_directory
from budgetnet.command.sweeps import Sweep
from budgetnet.costs import Budget, CostModel
from budgetnet.errors import Interrupted, Preempted, UsageError
from budgetnet.runs.records import write_text
from budgetnet.tasks import Denoising

QUEUE = Path(__file__).parents[1] / "QUEUE.md"
COLUMNS = ("#", "What it shows", "Cost", "Done", "Command")
_TRAINING_SETS = {  # images, (channels, height, width), classes
    "cifar10": (50_000, (3, 32, 32), 10),
    "cifar100": (50_000, (3, 32, 32), 100),
    "mnist": (60_000, (1, 28, 28), 10),
    "digits": (1_437, (1, 28, 28), 10),
    "imagenet": (1_281_167, (3, 224, 224), 1000),
    "tiny_imagenet": (100_000, (3, 64, 64), 200),
}
_DIV2K_TILES = 32_208
_ON_CPU = "CPU: "
_PASSES = 3
"""A training step costs about three forward passes: the backward pass takes two."""


@dataclass(frozen=True)
class Entry:
    """A line of the queue: a command, most of them sweeps. done: "2/3", runs that are finished, of all."""

    number: int
    shows: str
    cost: str
    done: str
    command: str

    @classmethod
    def parse(cls, line: str) -> Entry:
        """Of a line of the table. Raises UsageError for a command that is not `python -m src.run ...`."""
        number, shows, cost, done, command = (cell.strip() for cell in line.strip().strip("|").split("|"))
        if not command.startswith("`python -m src.run ") or not command.endswith("`"):
            raise UsageError(f"{QUEUE.name}, entry {number}: expected `python -m src.run ...` as the command")
        return cls(int(number), shows, cost, done, command.strip("`"))

    def __str__(self) -> str:
        return f"| {self.number} | {self.shows} | {self.cost} | {self.done} | `{self.command}` |"

    @property
    def on_cpu(self) -> bool:
        """Whether it is sized for CPU cores."""
        return self.shows.startswith(_ON_CPU)

    @cached_property
    def runs(self) -> list[tuple[dict[str, Any], list[str]]]:
        """(resolved configuration, overrides) of each of its runs."""
        return [(composed(job), job) for job in self.jobs]

    @cached_property
    def jobs(self) -> list[list[str]]:
        """The overrides of each of its runs, in the order in which Hydra's own sweeper has them."""
        words = shlex.split(self.command)[3:]
        given = [word for word in words if word != "-m"]
        if len(given) == len(words):
            return [given]
        swept = _swept(tuple(word for word in given if word.startswith("experiment=")))
        values: dict[str, list[str]] = {}
        for override in OverridesParser.create().parse_overrides([*swept, *given]):
            key, several = override.get_key_element(), override.is_sweep_override()
            values[key] = list(override.sweep_string_iterator()) if several else [override.get_value_element_as_str()]
        return [
            [f"{key}={value}" for key, value in zip(values, chosen, strict=True)]
            for chosen in itertools.product(*values.values())
        ]

    @property
    def directories(self) -> list[Path]:
        """Of its runs."""
        return [run_directory(config, overrides) for config, overrides in self.runs]

    def counted(self, queue: Sequence[Entry]) -> Entry:
        """With its cost, and with how many runs are done here, or were done when the queue was last counted."""
        known = {run_directory(config, overrides): config for entry in queue for config, overrides in entry.runs}
        here = sum((directory / "done.json").exists() for directory in self.directories)
        before = int(self.done.partition("/")[0] or 0)
        flops = sum(most_flops(config, known.get(source(config) or Path())) for config, _ in self.runs)
        return replace(
            self,
            cost=f"{flops / 1e15:{'.1f' if flops < 1e16 else '.0f'}}",
            done=f"{max(here, before)}/{len(self.runs)}",
        )


@cache
def _swept(experiment: tuple[str, ...]) -> list[str]:
    """What a file of conf/experiment sweeps over, as overrides."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("config", overrides=list(experiment), return_hydra_config=True)
    return [f"{key}={value}" for key, value in (config.hydra.sweeper.params or {}).items()]


def most_flops(config: Mapping[str, Any], source: Mapping[str, Any] | None = None) -> int:
    """FLOPs that a run takes at most, with its backward passes: all epochs at the budget, or at the full network.

    source: the configuration of the run that it takes its widths from, whose budget is its own then.
    """
    backbone, dataset, budget = config["backbone"], config["dataset"], Budget(**(source or config)["budget"])
    images, _, _ = _training_set(dataset)
    held_out = 0 if dataset["name"] == "denoising" else dataset["validation"]  # whole pictures, a few of 800
    images = min(images - held_out, dataset["limit_train"] or images)
    full = _full_costs(json.dumps(backbone), json.dumps(dataset))
    limits = budget.resolve({**full, "train_cost": dataset["baseline_epochs"] * images * full["flops"]}).limits
    limit = limits.get("flops", full["flops"])
    of_full = 0 if config["method"]["name"] in _NEVER_FULL else min(_full_epochs(config), config["epochs"])
    flops = images * (of_full * full["flops"] + (config["epochs"] - of_full) * limit)
    if config["method"]["name"] == "l2w":  # three more passes in a batch with a step of the predictor
        flops += 3 * flops / config["method"]["interval"]
    return _PASSES * int(min(flops, limits.get("train_cost", flops)))


def _training_set(dataset: Mapping[str, Any]) -> tuple[int, tuple[int, int, int], int]:
    """Images of an epoch, their shape, and the outputs of a network."""
    if dataset["name"] == "denoising":
        source = dataset["source"]
        return _DIV2K_TILES * source["patches"], (1, source["patch"], source["patch"]), 1
    return _TRAINING_SETS[dataset["name"]]


@cache
def _full_costs(backbone: str, dataset: str) -> dict[str, int]:
    """Of one image through the full network. backbone, dataset: their sections as JSON."""
    section = json.loads(dataset)
    _, shape, classes = _training_set(section)
    network = {name: value for name, value in json.loads(backbone).items() if name != "weights"}
    net = new_network(network, classes, shape, Denoising() if section["name"] == "denoising" else None)
    return CostModel(ChannelGraph.trace(net, torch.empty(1, *shape))).costs()


def _full_epochs(config: Mapping[str, Any]) -> int:
    """Epochs in which a method trains the full backbone, or searches the whole of a network of edges."""
    if "search_epochs" in config["method"]:
        stated = config["method"]["search_epochs"]
        return int(config["epochs"] - config["finetune"]["epochs"] if stated is None else stated)
    return int(config["prune"]["epochs"])


_NEVER_FULL = ("adenel", "replay", "train", "width", "grow_prune", "autogrow", "lwdna")
"""Methods that never train the full backbone."""


def read() -> list[Entry]:
    """The entries of QUEUE.md in order."""
    return [Entry.parse(line) for line in QUEUE.read_text().splitlines() if re.match(r"\| *\d", line)]


def write(entries: Sequence[Entry]) -> None:
    """Put the cells of these entries into QUEUE.md."""
    lines = {f"| {entry.number} |": str(entry) for entry in entries}
    text = QUEUE.read_text().splitlines()
    text = [next((new for start, new in lines.items() if line.startswith(start)), line) for line in text]
    write_text(QUEUE, "\n".join(text) + "\n")


def jobs(entries: Sequence[Entry], gpus: int) -> list[Job]:
    """The runs of these entries in order, each directory once."""
    found: dict[Path, Job] = {}
    for entry, (config, overrides) in _ordered(entries):
        directory = run_directory(config, overrides)
        name = f"{entry.number:02d}.{directory.name}"
        needed = gpus_needed(config["trainer"], gpus)
        found.setdefault(directory, Job(len(found), name, config, directory, overrides, needed))
    return list(found.values())


def _ordered(entries: Sequence[Entry]) -> Iterator[tuple[Entry, tuple[dict[str, Any], list[str]]]]:
    """Their runs: entry by entry; but of those for CPU cores first one of each entry of an experiment, then a second.

    So a table has every row, of one seed, long before it is complete.
    """
    for on_cpu, several in itertools.groupby(entries, lambda entry: entry.on_cpu):
        if not on_cpu:
            yield from ((entry, run) for entry in several for run in entry.runs)
            continue
        for _, rows in itertools.groupby(several, lambda entry: entry.runs[0][0]["run"]["experiment"]):
            each = [[(entry, run) for run in entry.runs] for entry in rows]
            yield from (found for seed in itertools.zip_longest(*each) for found in seed if found is not None)


def to_the_background() -> None:
    """Nice 19, one thread and no GPU, for this process and the runs that it starts."""
    os.nice(19)
    os.environ.update(OMP_NUM_THREADS="1", CUDA_VISIBLE_DEVICES="")


def run(entries: Sequence[Entry], queue: Sequence[Entry], parallel: int, minutes: float | None) -> int:
    """Run these entries; the exit code: 0, also when the time is over, or 1 if a run failed."""
    root = entries[0].runs[0][0]["run"]["root"]
    os.environ[SWEEP] = str(Path(root, ".sweep", "queue"))
    sweep = Sweep.current()
    sweep.begin([])
    gpus = visible_gpus() * parallel
    over = Event()

    def stop() -> None:
        over.set()
        os.kill(os.getpid(), signal.SIGINT)

    timer = Timer(60 * (minutes or 0), stop)
    timer.daemon = True
    if minutes is not None:
        timer.start()
    try:
        run_jobs(jobs(entries, len(gpus)), gpus, len(gpus) or parallel)
    except Interrupted:
        if not over.is_set():
            raise
        print(f"{minutes:g} minutes are over; the same command continues")
    finally:
        timer.cancel()
        write([entry.counted(queue) for entry in entries])
    return sweep.end()


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code: 0, 1 if a run failed, 2 if the queue cannot be run, 130 and 143 after SIGINT and SIGTERM."""
    parser = argparse.ArgumentParser("python -m experiments.run_queue", description=__doc__.splitlines()[0])
    parser.add_argument("entries", nargs="*", type=int, help="numbers of entries (default: all)")
    parser.add_argument("--parallel", type=int, default=1, help="jobs at a time on each GPU, or on the CPU")
    parser.add_argument("--minutes", type=float, help="stop after so long; what runs writes a checkpoint")
    parser.add_argument("--list", action="store_true", help="run nothing; count what is done")
    parser.add_argument("--cpu", action="store_true", help="the entries for CPU cores: nice 19, one thread a run")
    options = parser.parse_args(arguments)
    try:
        queue = {entry.number: entry for entry in read()}
        if unknown := sorted(set(options.entries) - queue.keys()):
            raise UsageError(f"{QUEUE.name} has no entry {', '.join(map(str, unknown))}; it has 1 to {max(queue)}")
        if options.parallel < 1 or (options.minutes is not None and options.minutes <= 0):
            raise UsageError("--parallel and --minutes: expected a number above 0")
        every = [number for number, entry in queue.items() if entry.on_cpu == options.cpu or options.list]
        chosen = [queue[number] for number in options.entries or every]
        if options.cpu:
            if foreign := [entry.number for entry in chosen if not entry.on_cpu]:
                raise UsageError(f"--cpu: entry {foreign[0]} is not one for CPU cores; run it without --cpu")
            to_the_background()
        if options.list:
            counted = [entry.counted(list(queue.values())) for entry in chosen]
            write(counted)
            for entry in counted:
                print(f"{entry.number:3d}  {entry.done:>6}  {entry.cost:>8}  {entry.shows}")
            return 0
        return run(chosen, list(queue.values()), options.parallel, options.minutes)
    except (Exception, KeyboardInterrupt, Preempted) as error:
        return explain(error)
