"""Building the dataset, the task and the network that conf/ describes, with errors of one line."""

from __future__ import annotations

import copy
import re
import sys
import sysconfig
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from inspect import signature
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, Protocol, TypeVar

import torch
from hydra.errors import HydraException
from hydra.utils import instantiate
from lightning_fabric.utilities.exceptions import MisconfigurationException

from budgetnet.backbones.constructors import CLASSES, construct
from budgetnet.channels import ChannelGraph, GraphError
from budgetnet.channels.shadow import QuickShapes, Shadow
from budgetnet.command.targets import why_missing
from budgetnet.data.datamodule import DataModule
from budgetnet.data.options import DatasetOptions
from budgetnet.errors import UsageError
from budgetnet.tasks import Classification, Segmentation, Task
from budgetnet.tasks.multi_exit import task_of

Config = Mapping[str, Any]
_STANDARD = tuple({sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib")})
Made = TypeVar("Made")


def make(name: str, section: Config, kind: type[Made], **arguments: Any) -> Made:
    """Build the object that the `_target_` of a section of conf/ names. Raises UsageError if it is of another kind."""
    return _expect(name, section, kind, instantiate(section, **arguments))


def _expect(name: str, section: Config, kind: type[Made], made: Any) -> Made:
    if not isinstance(made, kind):
        target, expected = section["_target_"], f"{kind.__module__}.{kind.__name__}"
        raise UsageError(f"{name}._target_={target} made a {type(made).__name__}: expected a {expected}")
    return made


def make_data(options: DatasetOptions, section: Config) -> DataModule:
    """Build the dataset of conf/dataset by calling its `_target_` with the options and the source.

    Raises UsageError if the result is not a DataModule, and for image_size and exif if the source does not take them.
    """
    source = section.get("source")
    for name in ("image_size", "exif"):
        if (value := getattr(options, name)) is None:
            continue
        if not isinstance(source, Mapping) or name not in _parameters(str(source.get("_target_"))):
            raise UsageError(f"dataset.{name}={value}: the images of dataset={options.name} have no such option")
        source = {**source, name: value}
    target = instantiate({"_target_": section["_target_"], "_partial_": True, "source": source})
    return _expect("dataset", section, DataModule, target(options=options))


_TASKS = (Classification, Segmentation)
"""The tasks from which a dataset takes its own, by the dimensions of its labels, without the option `task`."""
_LABELS, _SUCH_AS = {1: "whole images", 3: "pixels", 4: "pictures to restore"}, {3: "shapes", 4: "super_resolution"}
"""What labels are of, and a dataset, by their dimensions."""


def make_task(section: Config | None, data: DataModule, label_smoothing: float) -> Task:
    """Build the task of conf/task or, without one, the task that fits the labels of the dataset.

    label_smoothing: passed to the task if it takes this argument. Raises UsageError if it does not take it, and for a
    task that does not fit the labels.
    """
    dims = data.splits.train.labels.dim()
    section = data.own_task if section is None else section
    if section is None:
        kind = next(kind for kind in _TASKS if kind.target_dims == dims)
        section = {"_target_": f"{kind.__module__}.{kind.__name__}"}
    if "_target_" not in section:
        raise UsageError(
            f"task.{next(iter(section), '_target_')} stands without a task: choose one, such as task=denoising"
        )
    options = {key: value for key, value in section.items() if key != "name"}
    if "label_smoothing" in _parameters(section["_target_"]):
        options["label_smoothing"] = label_smoothing
    elif label_smoothing:
        raise UsageError(f"optim.label_smoothing={label_smoothing}: task={section['_target_']} does not take it")
    task = make("task", options, Task)  # type: ignore[type-abstract]
    if task.target_dims != dims:
        raise UsageError(
            f"task={task.name}, but the labels of dataset={data.name} are of {_LABELS[dims]}: leave task out, or "
            f"choose a dataset for it, such as dataset={_SUCH_AS.get(task.target_dims, 'cifar10')}"
        )
    return task


class Shapes(Protocol):
    """What a network is built for; a DataModule has it."""

    @property
    def num_classes(self) -> int: ...

    @property
    def input_shape(self) -> tuple[int, int, int]: ...


def make_network(
    backbone: Config, data: Shapes, task: Task, sync_batchnorm: bool = False, verify: bool = True
) -> torch.nn.Module:
    """Build and trace the network of conf/backbone for a dataset. A network of the user is also verified, by default.

    See `new_network` for the arguments of its `_target_`. sync_batchnorm: whether batch norms compute their statistics
    over all processes. Raises UsageError for a network that cannot be built or traced, or does not fit the task.
    """
    section = {name: value for name, value in backbone.items() if name != "weights"}
    frozen = section.pop("frozen", [])
    if not isinstance(frozen, list) or not all(isinstance(name, str) for name in frozen):
        raise UsageError(f"backbone.frozen={frozen}: expected a list of module paths or operations")
    name = section.get("name", section["_target_"])
    outputs = task.outputs(data.num_classes)
    net = new_network(section, outputs, data.input_shape, task)
    if sync_batchnorm:
        net = torch.nn.SyncBatchNorm.convert_sync_batchnorm(net)  # type: ignore[no-untyped-call]
    try:
        graph = ChannelGraph.trace(net, torch.empty(1, *data.input_shape), frozen)
        if verify and not section["_target_"].startswith("budgetnet.backbones."):
            graph.verify()
    except GraphError as error:
        raise UsageError(f"backbone={name}: {error}") from error
    _check_output(name, net, task_of(net, task), outputs, data.input_shape)
    return net


def _parameters(target: str) -> Collection[str]:
    """The names of the parameters of a `_target_`, or none if they are unknown, for example if it does not exist."""
    try:
        return signature(resolve_name(target)).parameters
    except Exception:  # the import may raise anything; building the object reports it
        return ()


def _check_output(name: str, net: torch.nn.Module, task: Task, outputs: int, shape: tuple[int, int, int]) -> None:
    """Raises UsageError if the task does not take the output of a network.

    It is run on the meta device, or on the CPU if it cannot run there, as one that looks at its values.
    """
    with torch.no_grad():
        try:
            with QuickShapes():
                output = _without_storage(net).eval()(torch.empty(2, *shape, device="meta"))
        except Exception:  # whatever a forward may raise
            output = copy.deepcopy(net).eval()(torch.zeros(2, *shape))
    try:
        task.check(output, outputs, shape)
    except UsageError as error:
        raise UsageError(f"backbone={name}: {error}") from error


def _without_storage(net: torch.nn.Module) -> torch.nn.Module:
    """A copy on the meta device, without the graph of its channels, which is larger than the network itself."""
    return Shadow(net).model.to("meta")


def check_smallest_batch(name: str, net: torch.nn.Module, shape: tuple[int, int, int], images: int, parts: int) -> None:
    """Check that the smallest part of a batch that will occur can be trained, by running it on the meta device.

    images: of a batch in one process, which is passed in `parts`. A norm needs two values of each channel.
    Raises UsageError if it has one, which torch would refuse in the middle of training.
    """
    sizes = [len(part) for part in torch.empty(images).chunk(parts)]
    whole = _without_storage(net).train()
    for size in sorted(set(sizes)):
        try:
            with torch.no_grad(), QuickShapes(), torch.random.fork_rng(devices=[]):
                whole(torch.empty(size, *shape, device="meta"))
        except Exception as error:
            if "Expected more than 1" not in str(error):
                return  # what else does not run on this device is found where it runs
            means = (
                "trainer.micro_batches or the number of processes smaller, or " if size < images or images == 1 else ""
            )
            raise UsageError(
                f"backbone={name}: a norm has one value of a channel where {size} of the {images} images that a "
                f"process has of a batch are passed at once (trainer.micro_batches={parts}): make {means}"
                "dataset.batch_size larger, or leave the norm out where the network has one pixel"
            ) from error


def new_network(section: Config, outputs: int, shape: Sequence[int], task: Task | None = None) -> torch.nn.Module:
    """Build the network of conf/backbone for images of `shape` (channels, height, width).

    Its `_target_` is called with the number of outputs and of input channels, under the names that it has for them
    (num_classes, n_classes, in_channels, in_chans, ..., or what the options num_classes_name and in_channels_name say),
    and, if it takes them, with image_size=[height, width] and task, the name of the task (by default classification).
    Raises UsageError for a network that does not segment images although the task needs that, for one that takes no
    number of outputs, and for an object that is no module.
    """
    task = task or Classification()
    channels, *image_size = shape
    known: dict[str, Any] = {"image_size": image_size, "task": task.name}
    arguments = {name: value for name, value in known.items() if name in _parameters(section["_target_"])}
    if "image_size" in arguments:
        section = {**section, "_convert_": "all"}  # a plain list
    if task.target_dims == 3 and "task" not in arguments:
        raise UsageError(
            f"backbone={section.get('name', section['_target_'])} classifies whole images: choose one that segments, "
            "such as cnf, or a network of your own that takes task"
        )
    names = {name: section.get(name) for name in ("num_classes_name", "in_channels_name")}
    options = {name: value for name, value in section.items() if name not in names}
    target = instantiate({**options, **arguments, "_partial_": True})
    given = set(options)
    if task.target_dims == 4 and not set(CLASSES) & set(_parameters(section["_target_"])):
        given.add(CLASSES[0])  # an image of the input's channels
    return _expect("backbone", section, torch.nn.Module, construct(target, outputs, channels, **names, given=given))


def imported_from(config: Config) -> dict[str, str]:
    """The folders from which the user's own backbone and task are imported, by the name of their package."""
    found = {}
    for section in (config.get("backbone"), config.get("task")):
        package = str((section or {}).get("_target_", "")).partition(".")[0]
        module = sys.modules.get(package)
        if package not in ("", "budgetnet") and (file := getattr(module, "__file__", None)):
            path = Path(file).resolve()
            found[package] = str(path.parents[1] if path.name == "__init__.py" else path.parent)
    return found


def own_files(config: Config) -> list[Path]:
    """The files of the user's own code that have been imported for the `_target_`s of a configuration.

    They are those of the packages of the targets or, of a module in no package, those beside it.
    """
    packages = {target.partition(".")[0] for target in _targets(config)} - {"budgetnet", "torch"}
    if not packages:
        return []
    files = {name: file for name, module in list(sys.modules.items()) if (file := _file_of(module)) is not None}
    folders = {files[name].parent for name in packages & files.keys() if files[name].name != "__init__.py"}
    return sorted(
        file for name, file in files.items()
        if name.partition(".")[0] in packages or ("." not in name and file.parent in folders and name != "__main__")
    )  # fmt: skip


def _targets(section: Any) -> Iterator[str]:
    for value in section if isinstance(section, list) else ():
        yield from _targets(value)
    for name, value in section.items() if isinstance(section, Mapping) else ():
        if name == "_target_" and isinstance(value, str):
            yield value
        yield from _targets(value)


def _file_of(module: Any) -> Path | None:
    """The file of a module, unless it is installed: what is installed is no code of the user's."""
    file = getattr(module, "__dict__", {}).get("__file__")  # a lazy module may import when it is asked
    if not isinstance(file, str) or file.startswith(_STANDARD):
        return None
    path = Path(file)
    return path if path.is_absolute() and not {"site-packages", "dist-packages"} & {*path.parts} else None


@contextmanager
def blamed_on(section: str) -> Iterator[None]:
    """A context that turns errors from building an object into UsageError, of one line, for the options of `section`.

    Raises UsageError for errors of Hydra and Lightning, and for those that wrong arguments cause.
    """
    try:
        yield
    except UsageError:
        raise
    except (TypeError, ValueError, OSError, ImportError, HydraException, MisconfigurationException) as error:
        cause = error.__cause__ if isinstance(error, HydraException) and error.__cause__ else error
        if isinstance(cause, UsageError):
            raise cause from error
        text = " ".join(str(cause).split())
        missing = re.match(r"Error loading '([^']+)'", text)  # the message of Hydra
        if missing and (why := why_missing(missing[1])) is not None:
            raise UsageError(f"{section} cannot be built: {missing[1]!r} cannot be imported, {why}") from error
        raise UsageError(f"{section} cannot be built ({type(cause).__name__}: {text})") from error
    except AttributeError as error:
        if "before Module.__init__() call" not in str(error):
            raise
        raise UsageError(f"{section} cannot be built ({error}): its __init__ begins with super().__init__()") from error
