"""Text files of a run that may be damaged or of somebody else: read in bounded time, and nothing is resolved."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

LARGEST = 1e30
"""The largest magnitude of a number, for which arithmetic and formatting stay within range."""
_LONGEST, _DEEPEST = 16 * 2**20, 30
"""The most bytes of a file, and levels of nesting, that are taken for what a run has written."""

Check = Callable[[Any], bool]


class Unreadable(ValueError):
    """A file, or a value in it, that no run has written. The message is one line."""


def read_text(path: Path) -> str:
    """The text of a file. Raises OSError, and Unreadable for a file of more than 16 MiB."""
    if (size := path.stat().st_size) > _LONGEST:
        raise Unreadable(f"{size} bytes, which no run writes")
    return path.read_text(encoding="utf-8", errors="replace")


def read_yaml(path: Path) -> dict[str, Any]:
    """The plain values of config.yaml. Text such as "${oc.env:HOME}" stays text.

    Raises OSError, and Unreadable for what is no mapping of plain values, for references, and for deep nesting.
    """
    yaml: Any = import_module("yaml")  # it has no type hints
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    text, depth = read_text(path), 0
    try:
        for event in yaml.parse(text, Loader=loader):
            if isinstance(event, yaml.AliasEvent):
                raise Unreadable("it refers to itself, which no run writes")
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > _DEEPEST:
                raise Unreadable(f"it is nested more than {_DEEPEST} levels deep")
        values = yaml.load(text, Loader=loader)
    except (yaml.YAMLError, ValueError) as error:
        raise Unreadable(" ".join(str(error).split())) from error
    if not isinstance(values, dict):
        raise Unreadable("it holds no keys")
    return {str(key): value for key, value in values.items()}


def read_json(text: str) -> Any:
    """The value of a text in JSON. Raises Unreadable for what is none, and for deep nesting."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Unreadable(" ".join(str(error).split()) or type(error).__name__) from error
    level = [value]
    for _ in range(_DEEPEST):
        level = [each for item in level if isinstance(item, (dict, list)) for each in _values(item)]
        if not level:
            return value
    raise Unreadable(f"it is nested more than {_DEEPEST} levels deep")


def _values(container: dict[str, Any] | list[Any]) -> list[Any]:
    return list(container.values()) if isinstance(container, dict) else container


# -- checks of values -------------------------------------------------------------------------------------------------


def a_number(value: Any) -> bool:
    """Whether it is a number within range."""
    return type(value) in (int, float) and math.isfinite(value) and abs(value) <= LARGEST


def a_score(value: Any) -> bool:
    """Whether it is a number, if only nan, or unknown."""
    return value is None or (type(value) is float and not math.isfinite(value)) or a_number(value)


def a_count(value: Any) -> bool:
    """Whether it is a whole number from 0."""
    return type(value) is int and 0 <= value <= LARGEST


def a_text(value: Any) -> bool:
    """Whether it is text."""
    return isinstance(value, str)


def or_none(check: Check) -> Check:
    """The check, or unknown."""
    return lambda value: value is None or check(value)


def a_mapping(check: Check) -> Check:
    """Whether it is a mapping of names to values of this kind."""
    return lambda value: isinstance(value, dict) and all(isinstance(k, str) and check(v) for k, v in value.items())


def a_list(check: Check) -> Check:
    """Whether it is a list of values of this kind."""
    return lambda value: isinstance(value, list) and all(map(check, value))


def a_change(value: Any) -> bool:
    """Whether it is [before, after]."""
    return isinstance(value, list) and len(value) == 2 and all(map(a_count, value))


def _a_budget(value: Any) -> bool:
    return isinstance(value, dict) and all(a_number(value.get(name)) for name in ("limit", "used", "percent"))


_COUNTS = ("epochs", "best_epoch", "rounds", "params", "flops", "macs", "full_params", "full_flops", "train_cost_flops",
           "seed", "latency", "sequential_ops", "teacher_cost_flops")  # fmt: skip
_NUMBERS = ("train_cost_baseline_percent", "train_cost_final_percent", "seconds", "growth_seconds", "compile_seconds")
_TEXTS = ("name", "experiment", "method", "backbone", "dataset", "stop_reason", "command")
SUMMARY: Mapping[str, Check] = {
    **dict.fromkeys(_COUNTS, or_none(a_count)),
    **dict.fromkeys(_NUMBERS, or_none(a_number)),
    **dict.fromkeys(_TEXTS, or_none(a_text)),
    **dict.fromkeys(("widths", "seed_widths", "full_widths", "seed_depths", "full_depths"), a_mapping(a_count)),
    **dict.fromkeys(("hardware", "versions"), a_mapping(lambda value: not isinstance(value, (dict, list)))),
    "budget": or_none(a_mapping(_a_budget)),
    "warnings": a_list(a_text),
}
"""What the entries of summary.json are, where they are there."""
ROUND: Mapping[str, Check] = {
    **dict.fromkeys(("round", "epoch"), a_count),
    "plan": a_mapping(a_change),
    "widths": a_mapping(a_count),
}
"""What every line of growth.jsonl has."""
FURTHER_IN_ROUND: Mapping[str, Check] = {
    **dict.fromkeys(("params", "flops", "train_cost_flops"), a_count),
    "pause_ms": a_number,
    "stop": or_none(a_text),
    "depths": a_mapping(a_change),
    "edges": a_list(a_text),
}
"""What a line of growth.jsonl may have, too."""


def checked(values: Mapping[str, Any], checks: Mapping[str, Check], required: bool = False) -> None:
    """Raises Unreadable, naming the entry, for a value of another kind, and for a missing one if it is `required`."""
    for name, check in checks.items():
        if name not in values:
            if required:
                raise Unreadable(f"it has no {name!r}")
        elif not check(values[name]):
            raise Unreadable(f"{name!r} is {str(values[name])[:60]!r}, which no run writes")
