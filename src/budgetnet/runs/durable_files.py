"""Checkpoint files are replaced atomically."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import torch
from lightning_fabric.plugins import TorchCheckpointIO

from budgetnet.runs.files import replacing


class DurableFiles(TorchCheckpointIO):
    """Writes a checkpoint under a temporary name, syncs and renames it, so that there is always a complete file."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        final = Path(path)
        final.parent.mkdir(parents=True, exist_ok=True)  # a checkpoint callback of the user may name a new folder
        contents = io.BytesIO()
        torch.save(checkpoint, contents)
        with replacing(final) as file:
            file.write(contents.getbuffer())
        directory = os.open(final.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
