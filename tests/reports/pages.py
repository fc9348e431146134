"""Pages of runs, read as a browser reads them, and runs whose files hold markup."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from itertools import islice
from pathlib import Path
from typing import Any

from budgetnet.errors import UsageError
from budgetnet.reports.page import _run
from budgetnet.reports.rows import final_row
from budgetnet.runs.directory import RunDirectory

MakeRun = Callable[..., Path]
EVIL = "<img src=x onerror=window.broken=1>&amp;\"'</script>"
BREAKING = (
    "'\" onmouseover=window.broken=1 x='\"><img src=x onerror=window.broken=1><script>window.broken=1</script>$x\\"
)


class Elements(HTMLParser):
    """Every tag of a page with its attributes, the cells of its table, and the texts of its scripts by id."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.lines: list[list[str]] = []
        self.scripts: dict[str, str] = {}
        self.in_cell = False
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))
        if tag == "tr":
            self.lines.append([])
        elif tag in ("th", "td"):
            self.lines[-1].append("")
            self.in_cell = True

    def handle_endtag(self, tag: str) -> None:
        self.in_cell = self.in_cell and tag not in ("th", "td")

    def handle_data(self, text: str) -> None:
        tag, attributes = self.tags[-1] if self.tags else ("", {})
        if self.in_cell:
            self.lines[-1][-1] += text
        elif tag == "script":
            name = attributes.get("id") or "page.js"
            self.scripts[name] = self.scripts.get(name, "") + text


def data_of(text: str) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(Elements(text).scripts["data"])
    return data


def poisoned(path: Path) -> Iterator[Callable[[], None]]:
    """Changes of a run directory, each of which puts markup into one value, or one name, of one of its files."""

    def places(tree: Any) -> Iterator[tuple[Any, Any]]:
        """Containers and the keys of all their values, within them too."""
        for key, value in list(tree.items() if isinstance(tree, dict) else enumerate(tree)):
            yield tree, key
            if isinstance(value, (dict, list)):
                yield from places(value)

    def json_file(name: str, lines: bool = False) -> Iterator[Callable[[], None]]:
        text = (path / name).read_text()
        for number, (_, key) in enumerate(places(load(text, lines))):
            for of_name in (False, True) if isinstance(key, str) else (False,):

                def change(number: int = number, of_name: bool = of_name) -> None:
                    tree = load(text, lines)
                    container, at = list(places(tree))[number]
                    container[BREAKING if of_name else at] = container.pop(at) if of_name else BREAKING
                    written = "".join(json.dumps(line) + "\n" for line in tree) if lines else json.dumps(tree)
                    (path / name).write_text(written)

                yield change

    def load(text: str, lines: bool) -> Any:
        return [json.loads(line) for line in text.splitlines()] if lines else json.loads(text)

    def table(name: str) -> Iterator[Callable[[], None]]:
        with open(path / name, newline="") as file:
            rows = list(csv.reader(file))
        for row in (0, 1):
            for column in range(len(rows[0])):

                def change(row: int = row, column: int = column) -> None:
                    changed = [list(cells) for cells in rows]
                    changed[row][column] = BREAKING
                    with open(path / name, "w", newline="") as file:
                        csv.writer(file, lineterminator="\n").writerows(changed)

                yield change

    yield from json_file("config.yaml")
    yield from json_file("task.json")
    yield from json_file("summary.json")
    yield from json_file("growth.jsonl", lines=True)
    yield from table("metrics.csv")
    yield from table("saturation.csv")


def all_poisoned(write: MakeRun, folder: Path) -> list[RunDirectory]:
    """A run for every such change, of those that can be read."""
    original, runs = write(folder / "original", rounds=1, epochs_per_round=1, finetune=1, names=("a",), full=(20,)), []
    for number, _ in enumerate(poisoned(original)):
        copied = shutil.copytree(original, folder / f"run{number}")
        next(islice(poisoned(copied), number, None))()
        run = RunDirectory(copied)
        try:
            _run(run, final_row(run))
        except UsageError as error:
            assert "damaged" in str(error), str(error)
        else:
            runs.append(run)
    assert len(runs) > 20
    return runs
