"""Options of conf/ as value objects: one frozen dataclass for each section, which checks itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, TypeVar, cast

from omegaconf import OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from budgetnet.errors import UsageError, nearest

Section = TypeVar("Section")


def require_positive(section: str, **values: float | None) -> None:
    """Raises UsageError for a value that is not above 0; None is left alone."""
    for name, value in values.items():
        if value is not None and not value > 0:
            raise UsageError(f"{section}.{name}={value}: expected a number above 0")


def require_not_negative(section: str, **values: float | None) -> None:
    """Raises UsageError for a value below 0; None is left alone."""
    for name, value in values.items():
        if value is not None and not value >= 0:
            raise UsageError(f"{section}.{name}={value}: expected 0 or more")


def require_one_of(section: str, name: str, value: str, options: tuple[str, ...]) -> None:
    """Raises UsageError for a value that is none of the options."""
    if value not in options:
        raise UsageError(f"{section}.{name}={value!r} is unknown{nearest(value, options)}")


def read(section: type[Section], name: str, values: Mapping[str, Any]) -> Section:
    """Build a value object from its part of the configuration, with OmegaConf's type conversion.

    Keys that are no field of it are left alone. Raises UsageError for a wrong type.
    """
    known = {field.name for field in fields(cast(Any, section))}
    try:
        schema = OmegaConf.structured(section)
        OmegaConf.set_readonly(schema, False)
        merged = OmegaConf.merge(schema, {key: value for key, value in values.items() if key in known})
        built = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        key = str(getattr(error, "key", None))
        option = f"{name}.{key}".lstrip(".")
        if isinstance(error, MissingMandatoryValue):
            raise UsageError(f"{option} is missing: expected a value, as in conf/{name}") from error
        raise UsageError(f"{option}={values.get(key)}: {str(error).splitlines()[0]}") from error
    assert isinstance(built, section)
    return built
