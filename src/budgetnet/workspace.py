"""The directory of a run: created, or adopted from an earlier run of the same configuration."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from budgetnet.errors import UsageError
from budgetnet.records import Records, write_text

Config = Mapping[str, Any]

_FREE = (
    "logger.",
    "run.",
    "export",
    *(f"trainer.{name}" for name in ("accelerator", "devices", "num_nodes", "progress")),
)
"""Options that may differ when a run is continued: they do not change what is learned."""


def prepare(config: Config, directory: Path) -> Path | None:
    """Create or adopt the run directory; returns the checkpoint to continue from, if there is one."""
    last = directory / "last.ckpt"
    if (directory / "config.yaml").exists():
        check_same(config, directory)
    elif directory.is_dir() and any(directory.iterdir()):
        raise UsageError(f"run.dir={directory} holds files of something else: choose another directory")
    if last.exists():
        return last
    try:
        directory.mkdir(parents=True, exist_ok=True)
        write_text(directory / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(dict(config))))
    except OSError as error:
        raise UsageError(f"run.dir={directory}: cannot be written ({error.strerror})") from error
    Records(directory).cut(0)
    (directory / "best.ckpt").unlink(missing_ok=True)
    return None


def check_same(config: Config, directory: Path) -> None:
    """Raises UsageError, naming the keys, if the run in `directory` is of another configuration."""
    saved = OmegaConf.to_container(OmegaConf.load(directory / "config.yaml"))
    old, new = _flat(saved), _flat(config)
    differing = sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))
    differing = [key for key in differing if not key.startswith(_FREE)]
    if differing:
        raise UsageError(
            f"{directory} holds a run of another configuration (differing: {', '.join(differing)}); "
            "choose another run.dir or run.name"
        )


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(tree, Mapping):
        return {k: v for key, value in tree.items() for k, v in _flat(value, f"{prefix}.{key}".strip(".")).items()}
    return {prefix: list(tree) if isinstance(tree, (list, tuple)) else tree}
