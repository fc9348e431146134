"""What is wrong with a `_target_` of conf/ that cannot be imported."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from budgetnet.errors import nearest


def why_missing(target: str) -> str | None:
    """What of a dotted path is missing, with what its module has instead; None if the import fails for another reason.

    >>> why_missing("budgetnet.backbones.lenet.Lenet5")
    "budgetnet.backbones.lenet has no 'Lenet5'; did you mean 'LeNet5'?"
    """
    names, depth = target.split("."), 0
    found: Any = None
    for count in range(1, len(names) + 1):
        path = ".".join(names[:count])
        try:
            found, depth = import_module(path), count
        except ModuleNotFoundError as error:
            if error.name is not None and path != error.name and not path.startswith(f"{error.name}."):
                return None  # the module is there, and imports what is not
            break
        except Exception:  # whatever the user's module raises
            return None
    if found is None:
        return f"no module is called {names[0]!r} in the folder where the command starts, nor on PYTHONPATH"
    for count, name in enumerate(names[depth:], start=depth):
        if not hasattr(found, name):
            own = vars(found) if hasattr(found, "__dict__") else {}
            public = [each for each, value in own.items() if callable(value) and not each.startswith("_")]
            return f"{'.'.join(names[:count])} has no {name!r}{nearest(name, public)}"
        found = getattr(found, name)
    return None
