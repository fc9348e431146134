"""An interactive HTML page of all runs in one file, which needs neither a server nor a network."""

from __future__ import annotations

import base64
import gzip
import hashlib
import html
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from functools import cache
from importlib.resources import files
from itertools import groupby
from pathlib import Path
from string import Template
from typing import Any

from budgetnet.costs.budget import format_quantity
from budgetnet.errors import UsageError
from budgetnet.reports import drawing
from budgetnet.reports.comparison import MARKERS, Panels, Point, comparable, costs_of, points, series_of
from budgetnet.reports.rows import Repetitions, Row, final_row, metrics_of, repetitions
from budgetnet.reports.tables import Column, columns, names_beside, score_text, spread_text, with_unit
from budgetnet.runs.directory import RunDirectory
from budgetnet.sections import affecting

Json = dict[str, Any]

_SYMBOLS = {"o": "circle", "s": "square", "D": "diamond", "^": "triangle-up", "v": "triangle-down", "P": "cross"}
_DEPTH_STOPS = 16


def write_page(runs: Sequence[RunDirectory], path: str | Path) -> Path:
    """Write `page(runs)` to `path`. Raises UsageError if the file cannot be written."""
    text = page(runs)
    try:
        Path(path).write_bytes(text.encode("utf-8", "replace"))
    except OSError as error:
        raise UsageError(
            f"--html {path}: cannot be written ({error.strerror}); choose a file in a folder that exists"
        ) from error
    return Path(path)


def page(runs: Sequence[RunDirectory]) -> str:
    """The HTML of a page of `runs` (at least one), finished or not.

    The page has the table as HTML, and data from which Plotly draws the figures: scores against costs and, after a
    click on a row or a point, the figures of that run. It contains plotly.js, which makes its size 2 MB.
    """
    rows = [final_row(run) for run in runs]
    groups = repetitions(rows)
    number = {id(row): index for index, row in enumerate(rows)}
    data = {
        "colours": _colours(),
        "panels": _panels(groups, number),
        "runs": [
            {**_run(run, row), "options": options}
            for run, row, options in zip(runs, rows, _differing(runs), strict=True)
        ],
        "repetitions": [[number[id(row)] for row in group.rows] for group in groups],
    }
    scripts = {name: f"\n{_file(f'{name}.js')}\n" for name in ("page", "page_run")}
    return Template(_file("page.html")).substitute(
        policy=_escaped(_policy(*scripts.values(), _plotly())),
        title=_escaped(_title(rows)),
        about=_escaped(_about(rows)),
        comparison=_escaped(_comparison_title(rows)),
        style=_file("page.css"),
        table=_table(groups, number),
        data=_script_text(data),
        plotly=_packed_plotly(),
        script=scripts["page"],
        run_script=scripts["page_run"],
    )


def _escaped(value: object) -> str:
    """A value as text of an element or of an attribute in double quotes: nothing of it is markup."""
    return html.escape(str(value), quote=True)


@cache
def _policy(*scripts: str) -> str:
    """The Content-Security-Policy of the page: these scripts run and no others, and nothing is loaded or sent."""
    hashes = (base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in scripts)
    allowed = " ".join(f"'sha256-{text}'" for text in hashes)
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:; base-uri 'none'; "
        "form-action 'none'"
    )


def _file(name: str) -> str:
    return (files("budgetnet.reports") / name).read_text(encoding="utf-8")


@cache
def _plotly() -> str:
    """plotly.js."""
    from plotly.offline import get_plotlyjs

    return str(get_plotlyjs())


@cache
def _packed_plotly() -> str:
    """plotly.js, compressed and encoded as text: 2 MB instead of 4.8 MB."""
    return base64.b64encode(gzip.compress(_plotly().encode(), mtime=0)).decode()


def _script_text(value: object) -> str:
    """JSON for a script element, without characters that could end the element."""
    return json.dumps(_finite(value), separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


def _finite(value: object) -> object:
    """`value` with None instead of infinite numbers and nan, which JSON does not have."""
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _title(rows: Sequence[Row]) -> str:
    count = f"{len(rows)} run{'s' * (len(rows) > 1)}"
    subjects = {f"{row.backbone} on {row.dataset}" for row in rows}
    return f"{count} of {subjects.pop()}" if len(subjects) == 1 else count


def _about(rows: Sequence[Row]) -> str:
    unfinished = sum(not row.finished for row in rows)
    facts = [f"{unfinished} unfinished"] if unfinished else []
    for name in ("method", "backbone", "dataset"):
        values = sorted({getattr(row, name) for row in rows})
        if name == "method" or len({(row.backbone, row.dataset) for row in rows}) > 1:  # otherwise the title has it
            facts.append(f"{name}{'s' * (len(values) > 1)} {', '.join(values)}")
    return " · ".join(facts)


def _comparison_title(rows: Sequence[Row]) -> str:
    metrics = metrics_of(rows)
    return f"{f'Test {metrics[0].title}' if len(metrics) == 1 else 'Test scores'} against cost"


def _colours() -> Json:
    """The colours of the other figures. On a dark background, depths use viridis without its dark end instead."""
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    viridis = colormaps["viridis"]
    steps = [step / (_DEPTH_STOPS - 1) for step in range(_DEPTH_STOPS)]
    return {
        "series": drawing.COLOURS,
        "symbols": [_SYMBOLS[marker] for marker in MARKERS],
        "ink": drawing.INK,
        "final": drawing.BLUE,
        "seed": drawing.VERMILION,
        "phases": drawing.PHASES,
        "depth": [to_hex(colour) for colour in drawing.depth_colours(_DEPTH_STOPS)],
        "depth_on_dark": [to_hex(viridis(0.3 + 0.7 * step)) for step in steps],
    }


def _panels(groups: Sequence[Repetitions], number: Mapping[int, int]) -> list[Json]:
    """A panel for each dataset, metric and kind of cost, as in `comparison.score_against_cost`."""
    lines = comparable(groups)
    finished = [group for line in lines for group in line.groups]
    series = list(dict.fromkeys(series_of(group) for group in finished))
    costs = costs_of([row for group in finished for row in group.rows])
    several = len({line.metric.name for line in lines}) > 1
    panels = []
    for line in lines:
        for cost, label in costs.items():
            known, front = points(line, cost)
            panels.append({
                "heading": f"{line.dataset}, {line.metric.title}" if several else line.dataset,
                "cost": cost,
                "label": label,
                "score": line.test,
                "score_title": f"test {line.metric.title}",
                "score_label": line.label,
                "points": [_point(point, line, series, number) for point in known],
                "front": {"x": [point.cost.mean for point in front], "y": [point.score.mean for point in front]},
            })  # fmt: skip
    return panels


def _point(point: Point, panels: Panels, series: Sequence[str], number: Mapping[int, int]) -> Json:
    name, finished = series_of(point.group), point.group.finished
    return {
        "series": name,
        "colour": series.index(name),
        "x": point.cost.mean,
        "y": point.score.mean,
        "dx": point.cost.deviation,
        "dy": point.score.deviation,
        "cost": format_quantity(point.cost.mean),
        "score": with_unit(panels.metric, spread_text(point.score, score_text(panels.metric))),
        "runs": [number[id(row)] for row in finished],
    }


def _run(run: RunDirectory, row: Row) -> Json:
    """The data for the view of one run."""
    summary = run.summary or {}
    return {
        **row.line(),
        "score": with_unit(row.metric, score_text(row.metric)(row.number(f"test_{row.metric.name}"))),
        "facts": _facts(run, row),
        "command": summary.get("command"),
        "budgets": [
            {
                "kind": kind.replace("_", " "),
                "percent": entry["percent"],
                "text": f"{format_quantity(entry['used'])} of {format_quantity(entry['limit'])}",
            }
            for kind, entry in (summary.get("budget") or {}).items()
        ],
        "deep": bool(run.depths()),
        "measured": run.column("epoch"),
        "curves": _curves(run),
        "path": _path(run),
        "sizes": _sizes(run),
        "phases": _phases(run),
        "round_ends": [[record["round"], record["epoch"]] for record in run.rounds],
        "grew": run.grew,
        "saturation": _saturation(run),
    }


def _curves(run: RunDirectory) -> list[Json]:
    """The loss and the first metric of every epoch, each in training and in validation; None where it is not known."""
    metric, found = run.task_metrics[0], []
    for title, name in (("loss", "loss"), (metric.label, metric.name)):
        lines = {}
        for kind, key in (("training", f"train_{name}"), ("validation", f"val_{name}")):
            values = run.column(key)
            if any(value is not None for value in values):
                lines[kind] = [None if value is None else float(f"{value:.4g}") for value in values]
        if lines:
            found.append({"title": title, "lines": lines})
    return found


def _differing(runs: Sequence[RunDirectory]) -> list[dict[str, str]]:
    """For each run its options that affect what is learned, as text, but those that are the same in all runs."""
    flat = [dict(_leaves(affecting(run.config))) for run in runs]
    names = sorted({name for options in flat for name in options})
    differing = [name for name in names if len({options.get(name, "") for options in flat}) > 1]
    return [{name: options.get(name, "") for name in differing} for options in flat]


def _leaves(tree: Any, path: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(tree, Mapping) and tree:
        for key, value in tree.items():
            yield from _leaves(value, f"{path}.{key}".lstrip("."))
    else:
        yield path, "null" if tree is None else str(tree)


def _path(run: RunDirectory) -> Json:
    """For each of `names`, the sizes from each of `epochs` on."""
    path = run.path_of_sizes()
    names = list(path[-1][1]) if path else []
    return {
        "names": names,
        "epochs": [epoch for epoch, _ in path],
        "sizes": [[at[name] for _, at in path] for name in names],
    }


def _sizes(run: RunDirectory) -> Json | None:
    """Sizes for the names of `_path`, in their order; `full` is None if it is unknown."""
    sizes = run.sizes()
    if sizes is None:
        return None
    seed, now, full = sizes
    return {
        "seed": [seed.get(name) for name in now],
        "final": list(now.values()),
        "full": [full.get(name) for name in now] if full else None,
    }


def _facts(run: RunDirectory, row: Row) -> list[list[str]]:
    """The cells of the run in the table and further facts about it, as [name, text]."""
    facts = {column.full_heading: column.cell(row) for column in columns([row])}
    del facts["Run"], facts["Budget used"]
    for metric in row.metrics:
        for kind, name in (("Test", f"test_{metric.name}"), ("Validation", f"val_{metric.name}")):
            facts.setdefault(f"{kind} {metric.title} {metric.unit}".rstrip(), score_text(metric)(row.number(name)))
    summary = run.summary or {}
    facts["Epochs"] = f"{row.epochs}, tested at {run.fact('best_epoch')}" if summary else str(row.epochs)
    facts["Train cost (FLOPs)"] = "" if row.train_cost_flops is None else format_quantity(row.train_cost_flops)
    facts["Time"] = "" if row.seconds is None else str(timedelta(seconds=round(row.seconds)))
    facts["Directory"] = row.directory
    return [[name, text] for name, text in facts.items() if text not in ("", "-")]


def _phases(run: RunDirectory) -> list[list[Any]]:
    """[phase, finished epochs before it, finished epochs after it] for every phase."""
    found, start = [], 0
    for phase, epochs in groupby(run.column("phase")):
        end = start + len(list(epochs))
        found.append([phase, start, end])
        start = end
    return found


def _saturation(run: RunDirectory) -> Json | None:
    names = [name for name in (run.saturation[0] if run.saturation else {}) if name not in ("epoch", "round")]
    if not names:
        return None
    return {
        "names": names,
        "epochs": [row["epoch"] for row in run.saturation],
        # a colour shows no more than two decimals, which take a third of the bytes
        "values": [
            [row[name] if row[name] is None else round(row[name], 2) for row in run.saturation] for name in names
        ],
    }


def _table(groups: Sequence[Repetitions], number: Mapping[int, int]) -> str:
    """The table, with a body for each configuration, so that repetitions stay together when it is sorted."""
    rows = [row for group in groups for row in group.rows]
    shown, called = columns(rows), dict(zip(map(id, rows), names_beside(rows), strict=True))
    heads = "".join(_head(column) for column in shown)
    bodies = []
    for group in groups:
        lines = [_line(shown, row, number[id(row)], called[id(row)]) for row in group.rows]
        if len(group.finished) > 1:
            lines.append(_mean_line(shown, group))
        bodies.append("<tbody>\n" + "\n".join(lines) + "\n</tbody>")
    return f"<table>\n<thead><tr>{heads}</tr></thead>\n" + "\n".join(bodies) + "\n</table>"


def _head(column: Column) -> str:
    """A heading that sorts the table. A line break does not separate the unit from the last word."""
    text, first = _escaped(column.heading), "ascending" if column.smallest_first else "descending"
    if column.unit:
        text = re.sub(r"(\S+ \S+)$", r"<span>\1</span>", text)
    return f'<th scope="col"{_kind(column)} data-first="{first}"><button type="button">{text}</button></th>'


def _line(shown: Sequence[Column], row: Row, run: int, called: str) -> str:
    texts = []
    for column in shown:
        text = _escaped(column.cell(row))
        value = row.number(column.number) if column.number else None
        if column.heading == "Budget used":
            value = max(row.budget.values(), default=None)
        if column.heading == "Run":
            name = _escaped(called).replace(",", ",<wbr>")
            text = f'<a href="#run-{run}" title="{text}">{name}</a>'
        texts.append(_cell(column, text, value))
    return f'<tr data-run="{run}">{"".join(texts)}</tr>'


def _mean_line(shown: Sequence[Column], group: Repetitions) -> str:
    texts = []
    for column in shown:
        spread = group.spread(column.number) if column.number and column.heading != "Seed" else None
        texts.append(_cell(column, _escaped(column.mean(group)), None if spread is None else spread.mean))
    return f'<tr class="mean">{"".join(texts)}</tr>'


def _cell(column: Column, text: str, value: float | None) -> str:
    """A cell of the table, of escaped text. value: the number by which it is sorted; without one its text is sorted."""
    data = "" if value is None or not math.isfinite(value) else f' data-value="{_escaped(value)}"'
    return f"<td{_kind(column)}{data}>{text}</td>"


def _kind(column: Column) -> str:
    return ' class="number"' if column.number else ""
