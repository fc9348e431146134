"""Names of a package that are imported when they are first used, since torch takes seconds and a refusal needs none."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def imported(package: str, modules: Mapping[str, str]) -> Callable[[str], Any]:
    """The `__getattr__` of a package.

    modules: the names in each of its modules, with spaces between; under "" are modules themselves.
    """
    places = {name: module for module, names in modules.items() for name in names.split()}

    def found(name: str) -> Any:
        if name not in places:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        if not places[name]:
            return import_module(f"{package}.{name}")
        return getattr(import_module(f"{package}.{places[name]}"), name)

    return found
