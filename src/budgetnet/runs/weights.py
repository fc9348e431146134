"""Trained weights from a file of someone else's: a state dict, a checkpoint that holds one, or safetensors."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor, nn

from budgetnet.errors import UsageError

_KEYS = ("state_dict", "model_state_dict", "model", "net", "weights", "params", "ema", "state")
"""Under what checkpoints keep their state dicts."""
_TYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a file by name, on the CPU. Nothing but plain values and tensors is read (`weights_only`).

    Raises UsageError for a file that cannot be read or holds no state dict.
    """
    path = Path(path)
    try:
        found = _safetensors(path) if path.suffix == ".safetensors" else _pickled(path)
    except (OSError, EOFError, RuntimeError, ValueError, KeyError, TypeError, UnpicklingError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise UsageError(
            f"backbone.weights={path} cannot be read ({reason}): expected a state dict of tensors, as torch.save and "
            "safetensors write it"
        ) from error
    if not found:
        raise UsageError(f"backbone.weights={path} holds no state dict: expected tensors by name")
    return found


def _pickled(path: Path) -> dict[str, Tensor]:
    state: Any = torch.load(path, map_location="cpu", weights_only=True)
    for key in _KEYS:
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = state[key]
    if not isinstance(state, Mapping):
        raise ValueError(f"it holds a {type(state).__name__}")
    return {str(name): value for name, value in state.items() if isinstance(value, Tensor)}


def _safetensors(path: Path) -> dict[str, Tensor]:
    """The file's format: the length of a header, the header in JSON, and the bytes of all tensors."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header, tensors = json.loads(data[8 : 8 + length]), {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        begin, end = entry["data_offsets"]
        raw = bytearray(data[8 + length + begin : 8 + length + end])
        flat = torch.frombuffer(raw, dtype=_TYPES[entry["dtype"]]) if raw else torch.empty(0)
        tensors[name] = flat.reshape(entry["shape"])
    return tensors


def load_weights(
    net: nn.Module, tensors: Mapping[str, Tensor], source: str, outputs: int, new_head: bool = False
) -> str:
    """Give a network the tensors of the same names, whatever common prefix these have (`module.`, `model.`, ...).

    A last layer of another number of outputs keeps the values that it was drawn with; so does one that is not there,
    and with `new_head` any. source: where the tensors are from, for messages.
    Returns what was loaded, as a line. Raises UsageError for tensors that are missing or have other shapes.
    """
    own = net.state_dict()
    prefix = _prefix(own, tensors)
    found = {name: tensors[prefix + name] for name in own if prefix + name in tensors}
    head = _head(net, outputs)
    wrong = [name for name, value in found.items() if value.shape != own[name].shape]
    missing = [name for name in own if name not in found and not name.endswith("num_batches_tracked")]
    drawn = [name for name in own if name in head and (new_head or name in wrong or name in missing)]
    if others := [name for name in (*missing, *wrong) if name not in drawn]:
        name, more = others[0], f", and so on, {len(others)} of {len(own)}" if len(others) > 1 else ""
        shapes = (
            f"has {name} of {tuple(found[name].shape)} instead of {tuple(own[name].shape)}" if name in found else ""
        )
        raise UsageError(f"{source} {shapes or f'lacks {name}'}{more}: expected the weights of this backbone")
    taken = {name: value for name, value in found.items() if name not in drawn}
    net.load_state_dict({**own, **taken})
    unused = len(tensors) - len(found)
    texts = [f"{len(taken)} of {len(own)} tensors from {source}" + (f", under {prefix!r}" if prefix else "")]
    texts += [f"{' and '.join(drawn)} drawn anew"] if drawn else []
    texts += [f"{unused} of the file not used"] if unused else []
    return "; ".join(texts)


def _prefix(own: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> str:
    """The prefix under which most of the network's own names are among those of the file."""
    known = {name.rpartition(".")[2] for name in own}
    counts: Counter[str] = Counter()
    for key in tensors:
        if key.rpartition(".")[2] in known:
            counts.update(key[: len(key) - len(name)] for name in own if key == name or key.endswith(f".{name}"))
    return min(counts, key=lambda prefix: (-counts[prefix], len(prefix)), default="")


def _head(net: nn.Module, outputs: int) -> set[str]:
    """The names of the parameters of the last layer, which gives the outputs: those of as many rows, at the end."""
    found: set[str] = set()
    for name, parameter in reversed(list(net.named_parameters())):
        second = parameter.dim() > 1 and any(each.endswith("weight") for each in found)
        if parameter.shape[:1] != (outputs,) or second:
            break
        found.add(name)
    return found
