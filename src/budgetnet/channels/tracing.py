"""Trace a model into its channel graph: run it on the meta device, with labels, in eval mode and in training.

other_widths.py then runs it at other widths, and assembling.py makes the graph.
"""

from __future__ import annotations

from collections.abc import Collection
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from budgetnet.channels.assembling import Kind, assemble
from budgetnet.channels.calls import NOT_THE_USERS, Place, leaves
from budgetnet.channels.graph import GraphError
from budgetnet.channels.operations import RULES
from budgetnet.channels.other_widths import Failed, Stop, find_layouts
from budgetnet.channels.running import Run
from budgetnet.channels.shadow import Shadow, undisturbed

IMAGES = 2
"""Images of a trace: with one, a batch norm has nothing to take statistics of."""


def trace(model: nn.Module, example_input: Tensor, frozen: Collection[str], kind: type[Kind]) -> Kind:
    """A graph of this kind: see ChannelGraph.trace. Raises GraphError for a model that cannot be followed."""
    if isinstance(model, nn.parallel.DistributedDataParallel):
        raise GraphError("trace the module inside DistributedDataParallel (model.module), not the wrapper")
    if (inner := getattr(model, "_orig_mod", None)) is not None:
        raise GraphError(f"trace the module inside torch.compile ({type(inner).__name__}), and compile it afterwards")
    for path, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule) and next(module.parameters(), None) is not None:
            what = f"module {path!r}" if path else "the network"
            raise GraphError(f"{what} is scripted, so that it cannot change: trace it before torch.jit.script")
    if any(is_lazy(tensor) for tensor in (*model.parameters(), *model.buffers())):
        raise GraphError(f"{type(model).__name__} has lazy layers without sizes: call it once on an image before")
    _refuse_shared_parameters(model, frozenset(frozen))
    with _processor():
        passes = Passes(model, tuple(example_input.shape))
        run = Run(passes.shadow.model, RULES, frozenset(frozen))
        passes.eval_and_training(run)
        _refuse(model, run)
        run.keep_products()
        structure, layouts = find_layouts(run, passes.shadow, passes.again)
        graph = assemble(kind, model, tuple(example_input.shape), run, structure, layouts)
    model.__dict__["_channel_graph"] = graph  # not a submodule: the model's state and its copies stay plain
    return graph


def _processor() -> AbstractContextManager[object]:
    """Labels are numbers, also where the caller makes tensors without any."""
    default: bool = torch.get_default_device().type == "cpu"
    return nullcontext() if default else torch.device("cpu")  # it sees every function: a fifth of the time


def _refuse_shared_parameters(model: nn.Module, frozen: frozenset[str]) -> None:
    """A parameter of two modules is in neither's hands alone, unless both are taken as they are."""
    owners: dict[int, str] = {}
    for path, module in model.named_modules():
        for name, parameter in module._parameters.items():
            other = owners.setdefault(id(parameter), path)
            if parameter is not None and other != path and not {other, path} <= frozen:
                raise GraphError(
                    f"modules {other!r} and {path!r} have one parameter, {name!r}, which is not followed: call one "
                    f"module twice instead, or trace with frozen=({other!r}, {path!r}), on the command line "
                    f"'backbone.frozen=[{other},{path}]'"
                )


def _refuse(model: nn.Module, run: Run) -> None:
    """Raises GraphError with all that is not followed, and what to type."""
    unknown = run.frozen - run.found_frozen - set(run.modules)
    if unknown:
        raise GraphError(
            f"frozen={sorted(unknown)}: neither a module path nor an operation nor a used parameter of "
            f"{type(model).__name__}"
        )
    if not run.refused:
        return
    messages = list(dict.fromkeys(f"{place} {why}" for place, why in run.refused))
    names = list(dict.fromkeys(place.module or place.operation for place, _ in run.refused))
    raise GraphError(
        f"{'; '.join(messages)}; to keep the widths around {'it' if len(messages) == 1 else 'them'} fixed, trace "
        f"with frozen=({', '.join(map(repr, names))},), on the command line 'backbone.frozen=[{','.join(names)}]'"
    )


class Passes:
    """Forward passes of a model's shadow: in eval mode, and in training where that is something else."""

    def __init__(self, model: nn.Module, input_shape: tuple[int, ...]) -> None:
        self.name, self.input_shape = type(model).__name__, input_shape
        try:
            self.shadow = Shadow(model)
        except Exception as error:  # whatever the model keeps
            line = (str(error).splitlines() or [type(error).__name__])[0]
            raise GraphError(f"{self.name} cannot be copied (copy.deepcopy): {line}") from error
        self.training_differs = False

    def eval_and_training(self, run: Run) -> None:
        """Both, joined. What only one of them runs is followed there; costs are those of eval mode."""
        run.images = IMAGES
        self._eval(run)
        seen, axes = len(run.events), sum(map(len, run.axes.values()))
        self._training(run)
        done = [event.what() if event.labels() else None for event in run.events]
        evaluated, trained = list(filter(None, done[:seen])), list(filter(None, done[seen:]))
        self.training_differs = evaluated != trained or axes != sum(map(len, run.axes.values()))

    def again(self, run: Run) -> None:
        """What the first run did, at other widths. Raises Stop or GraphError where that cannot be done."""
        run.images = IMAGES
        self._eval(run)
        if self.training_differs:
            self._training(run)

    def _eval(self, run: Run) -> None:
        run.counting = True
        self._forward(run, self.shadow.model.eval())

    def _training(self, run: Run) -> None:
        """A head for training alone may need a larger image than this one: what leads to it stays as it is."""
        run.counting = False
        try:
            self._forward(run, self.shadow.model.train())
        except GraphError as error:
            if run.fails_as_before():
                for planes in run.events[-1].inputs:
                    for plane in planes:
                        run.keep_labels(plane.labels, Place("forward", "", "", 0, True), f"fails in training: {error}")
            else:
                raise

    def _forward(self, run: Run, shadow: nn.Module) -> None:
        """One pass; what the model returns stays as it is."""
        image = torch.empty((IMAGES, *self.input_shape[1:]), device="meta", dtype=self.shadow.dtype)
        with torch.no_grad(), undisturbed(), run.watching(), run:
            run.carry(image, ())
            try:
                out = shadow(image)
            except (Stop, GraphError):
                raise
            except Exception as error:  # whatever the model's own code raises
                raise self._failed(run, error) from error
        for tensor in leaves(out if isinstance(out, (Tensor, tuple, list, dict)) else getattr(out, "__dict__", {})):
            for plane in run.known(tensor).planes:
                run.labels.freeze(plane.labels)

    def _failed(self, run: Run, error: Exception) -> Failed:
        """What a forward pass raised, with the line of the user's code and what to do."""
        line = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        where, path, frame = "", "", error.__traceback__
        while frame is not None:
            file = frame.tb_frame.f_code.co_filename
            if not file.startswith(NOT_THE_USERS):
                module: Any = frame.tb_frame.f_locals.get("self")
                path = next((path for path, own in run.modules.items() if own is module), "")
                where = f" in module {path!r}" if path else ""
                where += f" ({Path(file).name}:{frame.tb_lineno})"
            frame = frame.tb_next
        if "meta" in line or isinstance(error, NotImplementedError):
            advice = "move what depends on the data into a submodule, and trace with frozen=('that submodule',)"
            if path:
                advice = f"as it depends on the data, trace with frozen=({path!r},)"
            advice += f", on the command line 'backbone.frozen=[{path or '...'}]'"
            return Failed(f"{self.name} cannot be traced{where}: {line}; {advice}", f"{line}{where}")
        message = f"{self.name} does not take inputs of shape {self.input_shape[1:]}{where}: {line}"
        return Failed(message, f"{line}{where}")
