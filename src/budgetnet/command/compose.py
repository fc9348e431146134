"""Composition of the plain, resolved configuration of a run from conf/."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from omegaconf import DictConfig

CONF = Path(__file__).parents[3] / "conf"


def plain(config: DictConfig) -> dict[str, Any]:
    """The configuration of a run as plain, resolved values, without the sections about sweeps.

    Raises the errors of OmegaConf.
    """
    from omegaconf import OmegaConf

    names = [str(name) for name in config if name not in ("hydra", "launcher")]
    resolved = OmegaConf.to_container(OmegaConf.masked_copy(config, names), resolve=True, throw_on_missing=True)
    assert isinstance(resolved, dict)
    return {str(key): value for key, value in resolved.items()}


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
    return "/" in key or "@" in key or key.startswith("hydra.") or (CONF / key).is_dir()


@cache
def _composed(files: tuple[str, ...]) -> DictConfig:
    from hydra import compose, initialize_config_dir

    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("config", overrides=list(files))
