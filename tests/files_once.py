"""Tests compose hundreds of configurations from the same files: a process reads each of them once."""

from __future__ import annotations

import pickle
from copy import copy, deepcopy
from typing import Any
from unittest import mock

import yaml
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import ConfigRepository

_PARSED: dict[str, bytes] = {}
_LOADED: dict[tuple[str, ...], Any] = {}


def read_once() -> None:
    """Keep what is made of a text of YAML, and of a file of Hydra: this takes half of the time of a composition."""
    load, load_config, embed = yaml.load, ConfigRepository.load_config, ConfigLoaderImpl._embed_result_config

    def remembered(stream: Any, Loader: Any) -> Any:
        if Loader.__name__ != "OmegaConfLoader":
            return load(stream, Loader)
        text = stream if isinstance(stream, str) else stream.read()
        if text not in _PARSED:
            _PARSED[text] = pickle.dumps(load(text, Loader))
        return pickle.loads(_PARSED[text])

    def loaded(repository: ConfigRepository, config_path: str) -> Any:
        key = (config_path, *(source.path for source in repository.sources))
        found = _LOADED.get(key) or load_config(repository, config_path)
        if found is not None:
            _LOADED[key] = found
        return found

    def embedded(result: Any, package_override: str | None) -> Any:
        """What is not copied into a section is copied here, since it becomes a part of the composition."""
        made = embed(result, package_override)
        if made is result:
            made = copy(result)
            made.config = deepcopy(result.config)
        return made

    mock.patch("yaml.load", remembered).start()
    mock.patch.object(ConfigRepository, "load_config", loaded).start()
    mock.patch.object(ConfigLoaderImpl, "_embed_result_config", staticmethod(embedded)).start()
