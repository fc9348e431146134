"""Composition of the plain, resolved configuration of a run from conf/."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from budgetnet.errors import UsageError
from budgetnet.runs.reading import Unreadable, read_yaml
from budgetnet.sections import affects_result

if TYPE_CHECKING:
    from omegaconf import DictConfig

CONF = Path(__file__).parents[1] / "conf"
"""A link to conf/ of a checkout, whose files are installed with the package."""


def read_quickly() -> None:
    """From now on OmegaConf reads YAML by libyaml, where PyYAML has it: composing then takes a fifth less time."""
    yaml.SafeLoader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def plain(config: DictConfig) -> dict[str, Any]:
    """The configuration of a run as plain, resolved values, without the sections about sweeps.

    Raises UsageError for an option without a value, and the errors of OmegaConf.
    """
    from omegaconf import OmegaConf

    OmegaConf.register_new_resolver("folder_name", _folder_name, replace=True)
    names = [str(name) for name in config if name not in ("hydra", "launcher")]
    if missing := sorted(key for key in OmegaConf.missing_keys(config) if key.partition(".")[0] in names):
        raise UsageError(f"{missing[0]} is missing: expected a value, {missing[0]}=...")
    resolved = OmegaConf.to_container(OmegaConf.masked_copy(config, names), resolve=True, throw_on_missing=True)
    assert isinstance(resolved, dict)
    return {str(key): value for key, value in resolved.items()}


def saved(config: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any] | None:
    """The configuration of the run in `run.dir`, with what is typed laid over it; None if files of conf/ are chosen.

    So `run.dir=RUN` alone continues a run, or prints it. What is typed beside it and affects what is learned is refused
    where the two are compared (`runs.adoption`), as is a file that is damaged.
    """
    from omegaconf import OmegaConf

    options = [override.lstrip("+~").partition("=")[0] for override in overrides]
    section = config.get("run")
    directory = section.get("dir") if isinstance(section, dict) else None
    path, typed = Path(str(directory), "config.yaml"), OmegaConf.create(config)
    if directory is None or not path.is_file() or any(_is_file(each) and affects_result(each) for each in options):
        return None
    try:
        found: Any = OmegaConf.create(read_yaml(path))
    except (OSError, Unreadable):
        return None
    for option in (*options, "run.dir"):
        value = OmegaConf.select(typed, option, default=_ABSENT)
        if value is _ABSENT:  # it was removed, or is a file outside conf/
            return None
        if option in config:  # a whole section or group, such as logger=csv
            found[option] = value
        else:
            OmegaConf.update(found, option, value, force_add=True)
    resolved = OmegaConf.to_container(found)
    assert isinstance(resolved, dict)
    return {**config, **{str(key): value for key, value in resolved.items()}}


_ABSENT = object()


@cache
def map_choices_where_read() -> None:
    """Let Hydra map all choices only where a list of defaults reads one, by ${...}: a sixth of a composition's time."""
    from hydra._internal import defaults_list
    from omegaconf import DictConfig

    mapped = defaults_list._create_interpolation_map

    def mapped_where_read(overrides: Any, defaults: list[Any], self_added: bool) -> DictConfig:
        read = any(default.is_interpolation() for default in defaults)
        return mapped(overrides, defaults, self_added) if read else DictConfig({})

    defaults_list._create_interpolation_map = mapped_where_read  # type: ignore[assignment]


def _folder_name(path: str | None) -> str:
    """The last part of the path of a folder, which conf/ names a dataset after; "folder" without a path."""
    return Path(path).resolve().name if path else "folder"


def composed(overrides: Sequence[str]) -> dict[str, Any]:
    """The resolved configuration that `python -m src.run` composes from these overrides.

    Each selection of files is composed once and cached. Single values are then applied to a copy, as Hydra does.
    """
    from hydra._internal.config_loader_impl import ConfigLoaderImpl
    from hydra.core.override_parser.overrides_parser import OverridesParser

    files = [override for override in overrides if _chooses_a_file(override)]
    values = [override for override in overrides if override not in files]
    config = deepcopy(_composed(tuple(files)))
    ConfigLoaderImpl._apply_overrides_to_config(OverridesParser.create().parse_overrides(values), config)
    return plain(config)


def _chooses_a_file(override: str) -> bool:
    key = override.lstrip("+~").partition("=")[0]
    return key.startswith("hydra.") or _is_file(key)


def _is_file(option: str) -> bool:
    """Whether its values are files of conf/."""
    return "/" in option or "@" in option or (CONF / option).is_dir()


@cache
def _composed(files: tuple[str, ...]) -> DictConfig:
    from hydra import compose, initialize_config_dir

    read_quickly()
    map_choices_where_read()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("config", overrides=list(files))
