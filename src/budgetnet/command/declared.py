"""What the class of a method declares, read in the text of its file: refusals that need no more do not import torch."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

_PACKAGE = "budgetnet.methods."
_FILES = Path(__file__).parents[1] / "methods"
_METHODS = re.compile(r"\n    (?:def (?!__init__\()|@).*?(?=\nclass |\Z)", re.DOTALL)
"""What comes behind the constructor of a class: most of a file, and most of the time of parsing it."""


@dataclass(frozen=True)
class Declared:
    """What the class of a method declares.

    reads: the full name of the value object of each section that its constructor takes, by section.
    """

    reads: Mapping[str, str]
    needs_budget: bool


@cache
def declared(target: str) -> Declared | None:
    """What a class such as "budgetnet.methods.growth.adenel.AdeNeL" declares, or inherits by its first bases.

    None for a class that is not below budgetnet.methods.
    """
    found: dict[str, Any] = {}
    for body, names in _lineage(target):
        for node in body:
            if isinstance(node, ast.FunctionDef) and node.name == "__init__":
                kinds = {each.arg: ast.unparse(each.annotation) for each in node.args.args if each.annotation}
                found.setdefault("reads", {section: names[kind] for section, kind in kinds.items()})
            elif isinstance(node, (ast.Assign, ast.AnnAssign)) and node.value is not None:
                name = ast.unparse(node.targets[0] if isinstance(node, ast.Assign) else node.target)
                if name == "needs_budget":
                    found.setdefault(name, ast.literal_eval(node.value))
    return Declared(**found) if found else None


def _lineage(target: str) -> Iterator[tuple[list[ast.stmt], Mapping[str, str]]]:
    """The bodies of a class and of those that it inherits from, with the full names of what their files import."""
    while target.startswith(_PACKAGE):
        module, _, name = target.rpartition(".")
        classes, names = _read(module.removeprefix(_PACKAGE))
        if name not in classes:
            return
        yield classes[name].body, names
        bases = [ast.unparse(base) for base in classes[name].bases]
        target = names.get(bases[0], f"{module}.{bases[0]}") if bases else ""


@cache
def _read(module: str) -> tuple[Mapping[str, ast.ClassDef], Mapping[str, str]]:
    """The classes of a file, and the full names of what it imports from modules; none of a file that is not there."""
    file = _FILES.joinpath(*module.split(".")).with_suffix(".py")
    if not file.is_file():
        return {}, {}
    tree = ast.parse(_METHODS.sub("\n", file.read_text(encoding="utf-8")))
    conditional = [node for each in tree.body if isinstance(each, ast.If) for node in each.body]  # if TYPE_CHECKING
    imports = [node for node in (*tree.body, *conditional) if isinstance(node, ast.ImportFrom)]
    names = {each.asname or each.name: f"{node.module}.{each.name}" for node in imports for each in node.names}
    return {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}, names
