"""The trained network of a run directory, with what it needs to be used: `budgetnet.load`."""

from __future__ import annotations

import shlex
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from budgetnet.command.made import Config, make, make_network
from budgetnet.data.preprocessing import Preprocessing
from budgetnet.errors import RunError, UsageError
from budgetnet.methods.exits.predict import EarlyExit, in_phase, leaving_early
from budgetnet.methods.structure import give_structure
from budgetnet.runs.adoption import finished
from budgetnet.runs.checkpoints import load_checkpoint
from budgetnet.runs.directory import RunDirectory, is_run_directory
from budgetnet.runs.origin import changed_code
from budgetnet.runs.reading import Unreadable, a_mapping, a_text, read_json, read_text, read_yaml
from budgetnet.tasks import Classification, Output, Segmentation, Task
from budgetnet.tasks.multi_exit import task_of

CHECKPOINTS = ("best", "last")


class TrainedNetwork(nn.Module):
    """A network as it was trained, in eval mode on the CPU. Called with images, it gives the network's output.

    net: the plain module, at its widths; of a network with exits an `EarlyExit`, whose images leave where the run
    decided. widths: of its groups, by name.
    preprocess: from a picture to images (1, channels, height, width) (`Preprocessing`).
    classes: the names of the classes. task: what it was trained for.
    summary: summary.json of a finished run, or {}. epoch: the epoch whose weights these are.
    """

    def __init__(
        self,
        net: nn.Module,
        preprocess: Preprocessing,
        classes: tuple[str, ...],
        task: Task,
        widths: Mapping[str, int],
        summary: Mapping[str, Any],
        epoch: int,
    ) -> None:
        super().__init__()
        self.net, self.preprocess, self.classes, self.task = net, preprocess, classes, task
        self.widths, self.summary, self.epoch = dict(widths), dict(summary), epoch
        self.eval()

    def forward(self, images: Tensor) -> Output:
        output: Output = self.net(images)
        return output

    @torch.no_grad()
    def predict(self, picture: Any) -> Any:
        """What the network makes of one picture, as the task says it (`Task.read`).

        For a classification these are pairs (name, probability) of all classes, the likeliest first.
        picture: a file, an image of Pillow, or pixels (see `Preprocessing`). Raises UsageError for what cannot be read.
        """
        device = next(self.net.parameters()).device
        return self.task.read(self.eval()(self.preprocess(picture).to(device)), self.classes)


@dataclass(frozen=True)
class _Shapes:
    """What a network is built for."""

    num_classes: int
    input_shape: tuple[int, int, int]
    name: str


def load(run: str | Path, which: str = "best") -> TrainedNetwork:
    """The network of a run of any method and task, built anew at its widths, with its trained weights.

    run: a run directory. which: "best", the epoch that validation selected, or "last"; a run that has selected none yet
    has its last. A network of the user's own is imported by the path that the run was started with.
    Nothing but plain values is read (`weights_only`). A run that is not finished, and code of the user's that has
    changed, are warned of. Raises UsageError for a path that is not a run directory, and for a network that cannot be
    built; and RunError for a run without a checkpoint or whose network is still being searched for, and for damaged
    files.
    """
    directory = Path(run)
    if which not in CHECKPOINTS:
        raise UsageError(f"which={which!r}: expected {' or '.join(CHECKPOINTS)}")
    if not (directory / "config.yaml").is_file():
        raise UsageError(f"{directory} is not a run directory: give one that python -m src.run wrote")
    names = [f"{name}.ckpt" for name in CHECKPOINTS[CHECKPOINTS.index(which) :]]
    file = next((directory / name for name in names if (directory / name).exists()), None)
    if file is None:
        raise RunError(f"{directory} has no checkpoint yet: wait for the end of its first epoch")
    about, config, of_task = read_about(directory), _config(directory), _of_task(directory)
    state = load_checkpoint(file)
    channels, (height, width) = len(about["mean"]), about["size"]
    shapes = _Shapes(about["num_classes"], (channels, height, width), config["dataset"]["name"])
    epochs = int(state["budgetnet"]["epochs"])
    if not finished(directory):
        go_on = f"{shlex.join(['budgetnet', f'run.dir={directory}'])} continues it"
        if state["budgetnet"].get("searching"):
            raise RunError(f"{directory} still searches for its network, which it does not have yet: {go_on}")
        warnings.warn(f"{directory} is not finished: this is its network after {epochs} epochs; {go_on}", stacklevel=2)
    if (line := changed_code(directory)) is not None:
        warnings.warn(line, stacklevel=2)
    with _importing(of_task), torch.random.fork_rng(devices=[]):
        task = _task(config.get("task") or of_task.get("section"), about["task"])
        net = make_network(config["backbone"], shapes, task, verify=False)
    net = in_phase(net, state["budgetnet"])
    give_structure(net, state["budgetnet"])
    weights = {name.removeprefix("net."): value for name, value in state["state_dict"].items()}
    own = net.state_dict()
    try:
        net.load_state_dict({name: value for name, value in weights.items() if name in own})
    except RuntimeError as error:
        raise RunError(f"{file} does not fit backbone={config['backbone']}: {str(error).splitlines()[-1]}") from error
    summary = RunDirectory(directory).summary if is_run_directory(directory) else None
    preprocess, classes = Preprocessing.of(about), tuple(about["classes"])
    net = leaving_early(net, state["state_dict"])
    task = task if isinstance(net, EarlyExit) else task_of(net, task)
    return TrainedNetwork(net, preprocess, classes, task, state["budgetnet"]["widths"], summary or {}, epochs)


def read_about(directory: Path) -> dict[str, Any]:
    """preprocessing.json of a run directory. Raises RunError if it is missing or damaged."""
    path = directory / "preprocessing.json"
    try:
        about: dict[str, Any] = read_json(read_text(path))
        Preprocessing.of(about)
        _ = about["num_classes"], about["classes"], about["task"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(
            f"{path} cannot be read ({type(error).__name__}: {error}); a run of an earlier version has none: "
            "deploy its model.pt2"
        ) from error
    return about


def _of_task(directory: Path) -> dict[str, Any]:
    """task.json of a run directory, or nothing if there is none. Raises RunError if it is damaged."""
    path = directory / "task.json"
    try:
        found = read_json(read_text(path)) if path.exists() else {}
    except (OSError, Unreadable) as error:
        raise RunError(f"{path} cannot be read: {error}") from error
    if not isinstance(found, dict) or not a_mapping(a_text)(found.get("imports", {})):
        raise RunError(f"{path} cannot be read: it does not describe a task")
    return found


@contextmanager
def _importing(of_task: Mapping[str, Any]) -> Iterator[None]:
    """A context in which the modules of a run are imported from where the run had them, unless they are found now."""
    before = list(sys.path)
    try:
        sys.path += of_task.get("imports", {}).values()
        yield
    finally:
        sys.path[:] = before


def _config(directory: Path) -> Config:
    path = directory / "config.yaml"
    try:
        return read_yaml(path)
    except (OSError, Unreadable) as error:
        raise RunError(f"{path} cannot be read: {error}") from error


def _task(section: Config | None, name: str) -> Task:
    """The task of a run: that of its configuration or its data, or else the one that the labels decided."""
    if section is None:
        return next(kind for kind in (Classification, Segmentation) if kind.name == name)()
    return make("task", {key: value for key, value in section.items() if key != "name"}, Task)  # type: ignore[type-abstract]
