"""The end of a run: its summary, and then the export, the figures and the report, which may fail without a loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from budgetnet.command.build import Components
from budgetnet.errors import RunError, in_one_line
from budgetnet.runs.records import Records, write_json
from budgetnet.training.loggers import log_summary

EXPORTED = ("model.pt2", "model.onnx")
_PREDICTED = ("classification", "segmentation")
"""The tasks for which there is a predict.py."""
_MOST_CLASSES = 2000
"""The most classes whose confusion matrix is kept, of millions of counts."""
_EXAMPLES = 6
"""The number of test images that a report shows."""
_CHOSEN_FROM = 1024
"""The number of test images, up to a batch, from which a method chooses those that it shows."""


class Ending(Protocol):
    """The functions that are called at the end of a run (`budgetnet.reports.ending`)."""

    def draw(self, directory: Path) -> list[str]:
        """Draw the figures of the run, and return a line for each that cannot be drawn."""

    def write(self, directory: Path) -> None:
        """Write the report of the run."""

    def show(self, directory: Path) -> None:
        """Print the table of the run."""


def say(components: Components, name: str, what: str) -> None:
    """A line about what comes after training, as it begins."""
    if components.trainer.is_global_zero and components.trainer.progress_bar_callback is not None:
        print(f"{name:9}{what}", flush=True)


def finish(
    config: Mapping[str, Any], directory: Path, components: Components, summary: dict[str, Any], ending: Ending | None
) -> None:
    """Write what was learned: first summary.json and done.json, then what may fail without a loss.

    The export, the figures, the loggers and the report are steps of their own. A step that fails costs a line in
    `warnings`. done.json names those that are pending, because the process has ended before them or there was no room:
    the same command does them again.
    """
    learner, records, warnings = components.learner, Records(directory), components.learner.warnings
    with warnings.instead_of_failing("the examples of the report"):
        if (learner.task.has_examples or components.method.has_examples) and (shown := _examples(components)):
            records.examples(shown)
    with warnings.instead_of_failing("the confusion matrix of the report"):
        if (counts := learner.confusion) is not None and len(counts) <= _MOST_CLASSES:
            records.confusion(counts.numpy(), components.data.class_names)
    for name, rows in components.method.tables().items():
        records.table(name, rows)

    def draw() -> None:
        say(components, "report", "figures and report.md")
        for line in ending.draw(directory) if ending else ():
            warnings.add(line)

    exports = {f"the export to {name}": partial(_export, components, directory, name) for name in EXPORTED}
    steps: dict[str, Callable[[], None]] = {
        **(exports if config["export"] else {}),
        **({"the export of the method": lambda: components.method.export(directory)} if config["export"] else {}),
        **({"the figures": draw} if ending else {}),
        "the loggers": lambda: log_summary(components.trainer.loggers, directory / "figures", summary),
        **({"the report": lambda: ending.write(directory)} if ending else {}),
    }
    tested = f"test_{learner.task.metric.name}"
    done = {"epochs": summary["epochs"], tested: summary[tested]}
    summary["warnings"] = warnings.lines
    write_json(directory / "summary.json", summary)
    write_json(directory / "done.json", {**done, "pending": list(steps)})
    pending = []
    for name, step in steps.items():
        before = list(warnings.lines)
        with warnings.instead_of_failing(name):
            try:
                step()
            except OSError as error:
                pending.append(name)
                raise RunError(f"{in_one_line(error)}; make room, and the same command tries again") from error
        if warnings.lines != before:
            with warnings.instead_of_failing("the list of warnings in summary.json"):
                write_json(directory / "summary.json", summary)
    with warnings.instead_of_failing("the end of done.json"):
        write_json(directory / "done.json", {**done, "pending": pending} if pending else done)


def about(components: Components) -> dict[str, Any]:
    """preprocessing.json: how the network of a run is used."""
    data, task = components.data, components.learner.task
    return {
        "format": 1,
        "task": task.name,
        "classes": list(data.class_names),
        "num_classes": data.num_classes,
        "input": "images",
        "layout": "NCHW",
        "scale": 1 / 255,
        **data.preprocessing.as_mapping(),
    }


def _export(components: Components, directory: Path, name: str) -> None:
    """Write one of EXPORTED, with model.onnx a predict.py, if the task has one."""
    from budgetnet.runs.export import export_model, write_predictor

    say(components, "export", name)
    net, task, how = components.learner.net, components.learner.task, about(components)
    export_model(net, components.data.input_shape, directory, [name], task.any_size, how)
    if name == "model.onnx" and how["mode"] and how["task"] in _PREDICTED:
        write_predictor(directory)


@torch.no_grad()
def _examples(components: Components) -> dict[str, np.ndarray]:
    """Test images as pixels in 0..1: those that the method chooses (`Method.examples`), and a few with what the task
    shows of the network's outputs (`Task.examples`).
    """
    learner, data = components.learner.eval(), components.data
    device = next(learner.net.parameters()).device
    count = _CHOSEN_FROM if learner.method.has_examples else _EXAMPLES
    images, targets = (part.to(device) for part in data.shown(count))
    mean, std = (torch.tensor(values, device=device).view(1, -1, 1, 1) for values in (data.mean, data.std))
    pixels = (images.float() * std + mean).clamp(0, 1)
    shown = {title: pixels[indices] for title, indices in learner.method.examples(images).items()}
    if learner.task.has_examples:
        few, expected = images[:_EXAMPLES], targets[:_EXAMPLES]
        shown |= {"input": pixels[:_EXAMPLES], **learner.task.examples(learner.method.evaluate(few), expected)}
    return {
        name: values.float().cpu().numpy() if values.is_floating_point() else values.cpu().numpy()
        for name, values in shown.items()
    }
