"""Options as value objects: each section of conf/ becomes a frozen dataclass that checks its values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from inspect import Parameter, signature
from typing import Any, TypeVar, cast, get_type_hints

from omegaconf import OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from budgetnet.errors import UsageError, nearest

Values = TypeVar("Values")

LARGEST = 1e30
"""The largest magnitude of an option, for which arithmetic stays within range; its inverse is the smallest."""


# -- checks -----------------------------------------------------------------------------------------------------------


def require_positive(section: str, **values: float | None) -> None:
    """Raises UsageError for a value of `section` that is not above 0. None is allowed."""
    for name, value in values.items():
        if value is not None and not value > 0:
            raise UsageError(f"{section}.{name}={value}: expected a number above 0")


def require_not_negative(section: str, **values: float | None) -> None:
    """Raises UsageError for a value of `section` below 0. None is allowed."""
    for name, value in values.items():
        if value is not None and not value >= 0:
            raise UsageError(f"{section}.{name}={value}: expected 0 or more")


def require_one_of(section: str, name: str, value: str, options: Sequence[str]) -> None:
    """Raises UsageError, with the closest options, for a value that is not among the options."""
    if value not in options:
        raise UsageError(f"{section}.{name}={value!r} is unknown{nearest(value, options)}")


def check_values(config: Mapping[str, Any]) -> None:
    """Raises UsageError, naming the option, for text that stands for another value and for numbers out of range."""
    for path, value in _leaves(config, ""):
        if isinstance(value, str) and ("${" in value or value == "???"):
            raise UsageError(f"{path}={value!r}: expected a value, not text that stands for one")
        if isinstance(value, (int, float)) and value and not 1 / LARGEST <= abs(value) <= LARGEST:
            raise UsageError(f"{path}={value}: expected a finite number, 0 or from 1e-30 to 1e30 in size")


def _leaves(tree: Any, path: str) -> Iterator[tuple[str, Any]]:
    """The values in a nested configuration, and the name of the option of each."""
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from _leaves(value, f"{path}.{key}".strip("."))
    elif isinstance(tree, (list, tuple)):
        for value in tree:
            yield from _leaves(value, path)
    else:
        yield path, tree


# -- sections ---------------------------------------------------------------------------------------------------------


NO_EFFECT = {"affects_result": False}
"""Metadata of an option that cannot affect what is learned, such as where a run is computed and stored.

It applies to the sections in `budgetnet.sections`; all options that a method reads affect what is learned. A section in
which no option affects the result has a class attribute `affects_result = False` instead.

>>> @dataclass(frozen=True)
... class Files:
...     root: str = field(default="data", metadata=NO_EFFECT)
"""


def without_effect(section: type) -> frozenset[str]:
    """Names of the options of a section that cannot affect what is learned."""
    every = getattr(section, "affects_result", True)
    return frozenset(
        each.name for each in _fields(section) if not (every and each.metadata.get("affects_result", True))
    )


def names_of(section: type) -> frozenset[str]:
    """Names of the options of a section."""
    return frozenset(each.name for each in _fields(section))


def as_mapping(values: Any) -> dict[str, Any]:
    """The options of a value object by name, with their values."""
    return {each.name: getattr(values, each.name) for each in _fields(type(values))}


_MADE: dict[tuple[type, str, str], Any] = {}
"""The value objects that `read` has built, which do not change."""


def read(section: type[Values], name: str, values: Mapping[str, Any]) -> Values:
    """Build the value object of a section from its plain values, with OmegaConf's type conversion.

    name: the name of the section, or "" for options outside sections. Keys that are not fields are ignored.
    Raises UsageError for an option that is missing, of a wrong type, or refused by the section's own checks.
    """
    known = names_of(section)
    stated = {key: value for key, value in values.items() if key in known}
    made = section, name, repr(stated)
    if made not in _MADE:
        _MADE[made] = _built(section, name, stated)
    built: Values = _MADE[made]
    return built


def _built(section: type[Values], name: str, values: Mapping[str, Any]) -> Values:
    try:
        schema = OmegaConf.structured(section)
        OmegaConf.set_readonly(schema, False)
        built = OmegaConf.to_object(OmegaConf.merge(schema, values))
    except OmegaConfBaseException as error:
        key = str(getattr(error, "key", None))
        stated = f"{name}.{key}".lstrip(".")
        if isinstance(error, MissingMandatoryValue):
            raise UsageError(f"{stated} is missing: expected a value, as in conf/{name}") from error
        raise UsageError(f"{stated}={values.get(key)}: {str(error).splitlines()[0]}") from error
    assert isinstance(built, section)
    return built


def reads(method: type) -> dict[str, type]:
    """The sections that the constructor of a method takes, and the dataclass of each.

    The fields of a dataclass are the options that the method reads in that section. Raises UsageError for a parameter
    that is not annotated with a dataclass.
    """
    constructor = cast(Any, method).__init__
    try:
        annotations = get_type_hints(constructor)
    except NameError as error:
        raise UsageError(
            f"method {method.__name__}: the annotations of its constructor cannot be read: {error}"
        ) from error
    found = {}
    for name, parameter in list(signature(constructor).parameters.items())[1:]:
        if parameter.kind in (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD):
            continue
        kind = annotations.get(name)
        if not (isinstance(kind, type) and is_dataclass(kind)):
            raise UsageError(
                f"method {method.__name__}: its constructor takes {name!r}, which is not annotated with a dataclass: "
                "expected the sections of conf/ that the method reads"
            )
        found[name] = kind
    return found


def _fields(section: type) -> Sequence[Any]:
    return fields(cast(Any, section))
