"""report.md: the report of one run, written from its run directory alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from budgetnet.costs.budget import format_quantity
from budgetnet.errors import UsageError, in_one_line
from budgetnet.reports import drawing, edges, exits, figures, learning
from budgetnet.reports.examples import examples
from budgetnet.reports.filters import first_layer_filters
from budgetnet.reports.rows import final_row, score_names
from budgetnet.reports.tables import as_markdown, markdown_table, plain, score_text, with_unit
from budgetnet.runs.directory import RunDirectory
from budgetnet.runs.files import folder_within
from budgetnet.runs.records import write_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_FIGURES: dict[str, tuple[Callable[[RunDirectory], Figure], str]] = {
    "learning_curves": (
        learning.learning_curves,
        "Training values are means over the epoch, while the network changes; validation is at its end.",
    ),
    "growth_path": (
        figures.growth_path,
        "Each line is a width group, or a stage if blocks are added; it steps in the rounds (dotted, numbered above) "
        "in which it changed. Of equal lines the later ones are drawn thinner, on top of the others.",
    ),
    "saturation": (
        figures.saturation_map,
        "Each row is a width group and each column an epoch; brighter cells have a larger fraction of selected "
        "filters. A group that is bright at the end of a round (dotted) has used up its capacity; a map that is bright "
        "everywhere does not distinguish the groups.",
    ),
    "filters": (
        first_layer_filters,
        "Each row shows the filters of the first layer at the end of a round, before it is changed, in colour if they "
        "read three channels. Of many rounds some are shown, at equal distances. Framed filters are selected: they are "
        "saturated in a growing network, or kept in a pruned one. New filters are at the end.",
    ),
    "architecture": (
        edges.architecture,
        "A dot is the sum of its incoming edges. Blue edges are selected, pale edges are not, and likelier edges are "
        "wider. Two arrows between the same dots are a module and a shortcut.",
    ),
    "edges": (
        edges.probabilities,
        "Each row is an edge and each column an epoch. After a search that has converged, every edge is either dark or "
        "bright.",
    ),
    "accuracy_against_mean_flops": (
        exits.accuracy_against_mean_flops,
        "A point is one of 39 settings of the thresholds, all set on the images held out; what images then cost in the "
        "mean on the test set need not be the same. Dots are what was chosen for the budget.",
    ),
    "accuracy_of_exits": (exits.accuracy_of_exits, "Each line is an exit at which every image would leave."),
    "weights_of_exits": (
        exits.weights_of_exits,
        "On the left an epoch is a point and the last one a dot: where a line goes up, an exit comes to count more. On "
        "the right, above 0 an exit learns more from the samples that are hard for it, below 0 from the easy ones.",
    ),
    "images_of_exits": (
        exits.images_of_exits,
        "The first test images that leave at each exit, and what part of the test set does.",
    ),
    "accuracy_against_train_cost": (
        figures.score_against_train_cost,
        "Equal distances to the right cost equal amounts of computation, so the slim epochs of the growing phase lie "
        "close together.",
    ),
    "confusion": (
        learning.confusion_matrix,
        "Rows add up to 100; what is below 0.5 is left blank.",
    ),
    "examples": (
        examples,
        "Each column is a test image, with its labels and the outputs of the network below it. A class has the same "
        "colour in every map; pixels without a label are grey.",
    ),
    "widths": (
        figures.final_sizes,
        "Width groups, or stages if blocks are added, are in network order. A blue bar below the grey one is narrower "
        "than the full backbone, and one above it is wider.",
    ),
}
_MOST_NAMED = 6
_NARROWING = ("Pruning steps", "Narrowed", "Pruning ends by")


def write_report(run_dir: str | Path) -> Path:
    """Write report.md and figures/*.png, *.pdf into a run directory, finished or not, and return the path of report.md.

    Figures without data are left out. Raises UsageError for a path that is not a run directory, and for damaged files.
    """
    draw_figures(run_dir)
    return write_text_of_report(run_dir)


def draw_figures(run_dir: str | Path) -> list[str]:
    """Draw figures/*.png and *.pdf into a run directory, those for which there is data.

    Returns a line for each that cannot be drawn; the others are. Raises UsageError for a path that is not a run
    directory, and for damaged files, and OSError if nothing can be written.
    """
    run, failed = RunDirectory(run_dir), []
    folder = folder_within(run.path / "figures")
    left_out = {"growth_path"} if not run.saturation and not run.rounds else set()
    left_out |= set() if run.saturation else {"saturation"}
    left_out |= set() if run.filters else {"filters"}
    strip = any(name.startswith("exit ") for name in run.examples)
    left_out |= {"examples"} if strip or not run.examples else set()
    left_out |= set() if strip else {"images_of_exits"}
    left_out |= set() if run.table("budgeted") else {"accuracy_against_mean_flops"}
    left_out |= set() if run.table("weights") else {"weights_of_exits"}
    left_out |= {"growth_path"} if run.leaves_early else {"accuracy_of_exits"}
    left_out |= set() if learning.is_drawn(run) else {"confusion"}
    left_out |= {"growth_path"} if run.edges else {"architecture", "edges"}
    for name, (figure, _) in _FIGURES.items():
        paths = [folder / f"{name}.{suffix}" for suffix in ("png", "pdf")]
        for path in paths:
            path.unlink(missing_ok=True)
        if name not in left_out:
            try:
                drawn = figure(run)
                for path in paths:
                    drawing.save(drawn, path)
            except (UsageError, OSError):
                raise
            except Exception as error:
                for path in paths:
                    path.unlink(missing_ok=True)
                failed.append(f"the figure {name} failed ({in_one_line(error)})")
    return failed


def write_text_of_report(run_dir: str | Path) -> Path:
    """Write report.md into a run directory, with the figures that are drawn, and return its path.

    Raises UsageError for a path that is not a run directory, and for damaged files.
    """
    run = RunDirectory(run_dir)
    drawn = [name for name in _FIGURES if (run.path / "figures" / f"{name}.png").exists()]
    sections = [
        _head(run), _warnings(run), _scores(run), learning.classes_section(run), _edges(run), exits.section(run),
        _figure_section(drawn), _sizes(run), _rounds(run), _reading(run), _origin(run),
    ]  # fmt: skip
    report = run.path / "report.md"
    write_text(report, "\n".join(section for section in sections if section))
    return report


def _head(run: RunDirectory) -> str:
    row, summary = final_row(run), run.summary or {}
    lines = [f"# {plain(row.name)}\n"]
    if not row.finished:
        lines.append(f"**Unfinished**: read after epoch {row.epochs}; the test set is read at the end.\n")
    if summary.get("command"):
        lines.append(f"    {' '.join(str(summary['command']).splitlines())}\n")
    lines.append(as_markdown([row]))
    for kind, entry in (summary.get("budget") or {}).items():
        used, limit = format_quantity(entry["used"]), format_quantity(entry["limit"])
        lines.append(f"Budget of {kind}: {used} of {limit} used ({entry['percent']:.2f} %).\n")
    return "\n".join(lines)


def _warnings(run: RunDirectory) -> str:
    """The section about what went wrong beside the training."""
    lines = (run.summary or {}).get("warnings") or []
    return "## Warnings\n\n" + "".join(f"* {plain(str(line))}\n" for line in lines) if lines else ""


def _scores(run: RunDirectory) -> str:
    """The section about the metrics of the task."""
    row, names = final_row(run), ("Test", "Last epoch", "Best test epoch", "Validation")
    lines = [
        [metric.label, *(score_text(metric)(row.number(name)) for name in score_names(metric))]
        for metric in row.metrics
    ]
    shown = [0, *(place for place in range(1, 5) if any(line[place] for line in lines))]
    if not shown[1:]:
        return ""
    header = ["Metric", *names]
    return "## Metrics\n\n" + markdown_table(
        [header[place] for place in shown], [[line[place] for place in shown] for line in lines]
    )


def _edges(run: RunDirectory) -> str:
    """The section about the costs of sampled networks, of the selected network, and of all edges."""
    if not run.edges:
        return ""
    last = run.edges[-1]
    kinds = [name.removeprefix("full_") for name in last if name.startswith("full_")]
    lines = [
        [kind, *(format_quantity(last[f"{reading}_{kind}"]) for reading in ("sampled", "pruned", "full"))]
        for kind in kinds
    ]
    header = ("Cost", "Sampled", "Pruned", "Full")
    explanation = (
        f"After epoch {last['epoch']} of the search: the mean of the sampled networks, the selected edges that lie on "
        f"a path, and all edges. {100 * last['decided']:.0f} % of the edges are decided.\n"
    )
    return "## Edges\n\n" + markdown_table(header, lines) + "\n" + explanation


def _figure_section(names: list[str]) -> str:
    images = [f"![{name}](figures/{name}.png)\n\n{_FIGURES[name][1]}\n" for name in names]
    return "## Figures\n\n" + "\n".join(images)


def _sizes(run: RunDirectory) -> str:
    sizes = run.sizes()
    if sizes is None:
        return ""
    seed, final, full = sizes
    lines = []
    for name, size in final.items():
        of_full = f"{100 * size / full[name]:.0f} %" if name in full else ""
        lines.append([name, str(seed.get(name, "")), str(size), str(full.get(name, "")), of_full])
    title, what = ("Depths (blocks)", "Stage") if run.depths() else ("Widths", "Width group")
    header = (what, "Seed", "Final" if run.summary else "So far", "Full backbone", "Of full")
    return f"## {title}\n\n" + markdown_table(header, lines)


def _rounds(run: RunDirectory) -> str:
    if not run.rounds or run.leaves_early:  # of which the only round is the end of a phase
        return ""
    title, who, ends = ("Growth rounds", "Grown", "Growth ends by") if run.grew else _NARROWING
    costs = ("flops", "params", "train_cost_flops")
    header = ("Round", "Epoch", who, "FLOPs", "Params", "Train cost so far", "Pause (ms)", ends)
    lines = [
        [
            str(record["round"]), str(record["epoch"]), _who_changed(record),
            *(format_quantity(record[name]) if name in record else "" for name in costs),
            f"{record.get('pause_ms', 0):.1f}", record.get("stop") or "",
        ]
        for record in run.rounds
    ]  # fmt: skip
    return f"## {title}\n\n" + markdown_table(header, lines)


def _who_changed(record: dict[str, Any]) -> str:
    plan: dict[str, list[int]] = record["plan"]
    deeper = [f"{name} {old}→{new} blocks" for name, (old, new) in record.get("depths", {}).items() if new > old]
    if deeper or not plan:
        unchanged = f"{len(record['edges'])} edges stay" if "edges" in record else "none"
        return ", ".join(deeper) or unchanged
    largest = sorted(plan, key=lambda name: -abs(plan[name][1] - plan[name][0]))
    named = ", ".join(f"{name} {plan[name][0]}→{plan[name][1]}" for name in plan if name in largest[:_MOST_NAMED])
    if len(plan) <= _MOST_NAMED:
        return named
    added = sum(new - old for old, new in plan.values())
    return f"{len(plan)} of {len(record['widths'])} groups, {added:+d} channels in all; most: {named}"


def _reading(run: RunDirectory) -> str:
    summary, metric = run.summary or {}, run.task_metrics[0]
    lines = ["## How the numbers were read\n"]
    if summary:
        name, best = f"val_{metric.name}", "highest" if metric.higher_is_better else "lowest"
        chosen = "the last: nothing was held out for validation"
        if summary.get(name) is not None:
            dataset = run.config.get("dataset")
            own = isinstance(dataset, dict) and "validation" in dataset and dataset["validation"] is None
            split = "the dataset's validation set" if own else "a validation split of the training set"
            chosen = f"the {best} {metric.title} on {split} ({with_unit(metric, score_text(metric)(summary[name]))})"
        read = "The test set was read at the end only."
        if summary.get(f"test_{metric.name}_best") is not None:
            read = (
                f"The test set was read after every epoch and selected nothing: the best test epoch is epoch "
                f"{summary[f'test_{metric.name}_best_epoch']}, which cannot be known without its labels."
            )
        lines.append(
            f"* Test {metric.title} is that of epoch {run.fact('best_epoch')} of {run.fact('epochs')}, {chosen}; the "
            f"metrics of the last epoch are given too. {read}"
        )
    lines += [
        "* FLOPs are multiply-accumulates of one image as fvcore counts them: convolutions, linear layers, and two "
        "per batch-norm element.",
        "* Train cost is the FLOPs of the network at each time, summed over all training images: (a) in percent of the "
        "full backbone trained for the baseline's epochs, (b) of the final network trained for as many.",
        "* Saturation is the fraction of a group's filters that are selected: in the support "
        "(`growth.readout=support`), or among the first of the whole network (`path`). Other read-outs say what a "
        "group lacks as the loss has it, relative to the largest. Pause is the time of a round.",
    ]
    return "\n".join(lines) + "\n"


def _origin(run: RunDirectory) -> str:
    summary = run.summary
    if summary is None:
        return ""
    seconds = {"in all": "seconds", "growing": "growth_seconds", "compiling": "compile_seconds"}
    lines = [["seed", str(run.fact("seed"))]]
    if summary.get("started_from"):
        lines.append(["started from", str(summary["started_from"])])
    lines += [[f"seconds {name}", f"{run.fact(key):.1f}"] for name, key in seconds.items()]
    lines += [[name, str(value)] for part in ("hardware", "versions") for name, value in summary.get(part, {}).items()]
    return "## Where it ran\n\n" + markdown_table(("", ""), lines)
