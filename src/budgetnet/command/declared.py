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
_BASE = f"{_PACKAGE}method.Method"
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

    None for what is no method below budgetnet.methods, or takes what its file does not import by name.
    """
    found: dict[str, Any] = {}
    lineage = list(_lineage(target))
    if not lineage or lineage[-1][0] != _BASE:
        return None
    for _, body, names in lineage:
        for node in body:
            if isinstance(node, ast.FunctionDef) and node.name == "__init__":
                kinds = {each.arg: ast.unparse(each.annotation) for each in node.args.args if each.annotation}
                found.setdefault("reads", {section: names.get(kind, "") for section, kind in kinds.items()})
            elif isinstance(node, (ast.Assign, ast.AnnAssign)) and node.value is not None:
                name = ast.unparse(node.targets[0] if isinstance(node, ast.Assign) else node.target)
                if name == "needs_budget":
                    found.setdefault(name, ast.literal_eval(node.value))
    return Declared(**found) if all(found["reads"].values()) else None


def _lineage(target: str) -> Iterator[tuple[str, list[ast.stmt], Mapping[str, str]]]:
    """The full names and bodies of a class and of those that it inherits from, and what their files import."""
    while target.startswith(_PACKAGE):
        module, _, name = target.rpartition(".")
        classes, names = _read(module.removeprefix(_PACKAGE))
        if name not in classes:
            return
        yield target, classes[name].body, names
        bases = [ast.unparse(base) for base in classes[name].bases]
        target = names.get(bases[0], f"{module}.{bases[0]}") if bases else ""


@cache
def _read(module: str) -> tuple[Mapping[str, ast.ClassDef], Mapping[str, str]]:
    """The classes of a file, and the full names of what it imports from modules; none of one that cannot be read."""
    try:
        text = Path(_FILES, *module.split(".")).with_suffix(".py").read_text(encoding="utf-8")
        tree = ast.parse(_METHODS.sub("\n", text))
    except (OSError, ValueError, SyntaxError):  # what is wrong is said where it is imported
        return {}, {}
    conditional = [node for each in tree.body if isinstance(each, ast.If) for node in each.body]  # if TYPE_CHECKING
    imports = [node for node in (*tree.body, *conditional) if isinstance(node, ast.ImportFrom)]
    names = {each.asname or each.name: f"{node.module}.{each.name}" for node in imports for each in node.names}
    return {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}, names
