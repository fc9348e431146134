"""From what a run begins: trained weights of a file, or the network of another run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from budgetnet.channels import GraphError
from budgetnet.command.configuration import Configuration
from budgetnet.data.datamodule import DataModule
from budgetnet.errors import RunError, UsageError
from budgetnet.methods.method import Method
from budgetnet.methods.structure import give_structure
from budgetnet.runs.checkpoints import load_checkpoint
from budgetnet.runs.reading import Unreadable, read_json, read_text, read_yaml
from budgetnet.runs.weights import load_weights, read_weights


def begin_from(options: Configuration, method: Method, net: nn.Module, data: DataModule, outputs: int) -> str | None:
    """Give the full backbone the weights of `backbone.weights`, or the network of `start.from`, in place.

    outputs: the number of outputs of the network. Returns what was loaded, as a line, or None if neither is given.
    Raises UsageError for a method that cannot start from them, and for what does not fit the backbone.
    """
    file, run, why = options.backbone.get("weights"), options.start_from, type(method).no_weights
    name = options.method["name"]
    if file is not None and run is not None:
        raise UsageError(f"backbone.weights={file} and start.from={run}: give one of them")
    if file is not None:
        if why is not None:
            raise UsageError(f"backbone.weights={file}: method={name} cannot start from it, because {why}")
        return load_weights(net, read_weights(str(file)), f"backbone.weights={file}", outputs)
    if run is None:
        return None
    if why is not None and not type(method).goes_on:
        raise UsageError(f"start.from={run}: method={name} cannot start from it, because {why}")
    return _go_on(net, Path(run), data, outputs)


def _go_on(net: nn.Module, run: Path, data: DataModule, outputs: int) -> str:
    try:
        best = run / "best.ckpt"
        state = load_checkpoint(best if best.exists() else run / "last.ckpt")
        if not (run / "done.json").exists():
            raise RunError("it is not finished")
        classes = tuple(read_json(read_text(run / "preprocessing.json"))["classes"])
    except (RunError, OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"start.from={run}: expected the directory of a finished run ({error})") from error
    source = f"start.from={run}"
    try:
        give_structure(net, state["budgetnet"])
    except (GraphError, UsageError, KeyError, AttributeError) as error:
        raise UsageError(f"{source} is a network of another backbone: {error}") from error
    weights = {name[4:]: value for name, value in state["state_dict"].items() if name.startswith("net.")}
    return load_weights(net, weights, source, outputs, new_head=classes != data.class_names)


def inherited(config: Mapping[str, Any], overrides: list[str]) -> dict[str, Any]:
    """The configuration of a run that goes on from another one: with its backbone, dataset and optim, unless typed.

    What a recipe or an experiment says of training applies, where one is chosen. Raises UsageError if `start.from` is
    no run directory.
    """
    from omegaconf import OmegaConf

    run = (config.get("start") or {}).get("from")
    if run is None:
        return dict(config)
    path = Path(str(run), "config.yaml")
    try:
        saved = read_yaml(path)
    except (OSError, Unreadable) as error:
        reason = "with its config.yaml" if not path.is_file() else f"but {path} is damaged ({error})"
        raise UsageError(f"start.from={run}: expected the directory of a finished run, {reason}") from error
    typed = [each.lstrip("+~").partition("=")[0] for each in overrides]
    if "recipe" in typed:
        typed += ["optim", "dataset.batch_size"]
    elif "experiment" in typed:
        typed.append("optim")
    given, found = OmegaConf.create(dict(config)), OmegaConf.create(dict(config))
    for name in ("backbone", "dataset", "optim"):
        if name in typed or name not in saved:
            continue
        found[name] = {**saved[name], "weights": None} if name == "backbone" else saved[name]
        for option in (each for each in typed if each.startswith(f"{name}.")):
            OmegaConf.update(found, option, OmegaConf.select(given, option), force_add=True)
    resolved = OmegaConf.to_container(found)
    assert isinstance(resolved, dict)
    return {str(key): value for key, value in resolved.items()}
