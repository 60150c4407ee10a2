"""Checkpoints: one safetensors file with the server's tensors and, as JSON, where the run stands."""

import json
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fedgram.errors import CheckpointError
from fedgram.state import State, flatten, tensor_hash, unflatten

__all__ = ["Checkpoint", "atomic_write", "compare_settings", "load", "load_first", "save"]

log = logging.getLogger(__name__)

_FORMAT = "1"
_CLIENT = "client "


@dataclass(frozen=True)
class Checkpoint:
    """Where a run stands.

    Attributes:
        state: the server's tensors, on the CPU.
        round: the last finished round.
        settings: what must be equal for a run to go on: seed, method, data and so on, flat.
        progress: totals and best metrics so far, as the trainer keeps them.
        clients: what clients keep from round to round, on the CPU, by client and name.
    """

    state: State
    round: int
    settings: dict[str, Any]
    progress: dict[str, Any]
    clients: dict[int, dict[str, Tensor]] = field(default_factory=dict)

    def tensors(self) -> dict[str, Tensor]:
        """Return all tensors under flat names; those of client 3 begin with ``client 3|``."""
        own = {f"{_CLIENT}{c}|{key}": t for c, kept in self.clients.items() for key, t in kept.items()}
        return flatten(self.state) | own


def save(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint, whole or not at all."""
    from safetensors.torch import save as to_bytes

    flat = {key: tensor.cpu() for key, tensor in checkpoint.tensors().items()}
    facts = {
        "format": _FORMAT,
        "round": checkpoint.round,
        "settings": checkpoint.settings,
        "progress": checkpoint.progress,
        "state_hash": tensor_hash(flat),
    }
    # Cloned, as safetensors refuses tensors that share memory.
    tensors = {key: tensor.clone(memory_format=torch.contiguous_format) for key, tensor in flat.items()}
    atomic_write(path, to_bytes(tensors, metadata={"fedgram": json.dumps(facts)}))


def load(path: Path) -> Checkpoint:
    """Read a checkpoint and check it against its own hash.

    Raises:
        CheckpointError: the file is missing, truncated, altered, or no checkpoint of fedgram's.
    """
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise CheckpointError(f"there is no checkpoint at {path}; give --ckpt_path last, best, or the path of a file")
    try:
        with safe_open(path, framework="pt") as file:
            facts = json.loads((file.metadata() or {}).get("fedgram", "{}"))
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (no mapping)
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"the checkpoint {path} is damaged ({error}); use an older one or start again") from error
    if facts.get("format") != _FORMAT:
        raise CheckpointError(f"{path} is no checkpoint of this version of fedgram (format {facts.get('format')!r})")
    if tensor_hash(tensors) != facts["state_hash"]:
        raise CheckpointError(f"the checkpoint {path} was altered: its tensors do not have the hash that it states")
    state = unflatten({key: tensor for key, tensor in tensors.items() if not key.startswith(_CLIENT)})
    return Checkpoint(state, int(facts["round"]), facts["settings"], facts["progress"], _clients_of(tensors))


def load_first(paths: Sequence[Path]) -> tuple[Path, Checkpoint]:
    """Read the first of several checkpoints that is whole, and say which it is; of those before it a warning tells.

    Raises:
        CheckpointError: none of them is whole; the error is that of the first.
    """
    errors: list[CheckpointError] = []
    for path in paths:
        try:
            return path, load(path)
        except CheckpointError as error:
            errors.append(error)
            if path != paths[-1]:
                log.warning("%s; the one before is used", error)
    raise errors[0]


def _clients_of(tensors: dict[str, Tensor]) -> dict[int, dict[str, Tensor]]:
    clients: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith(_CLIENT):
            number, key = name.removeprefix(_CLIENT).split("|", 1)
            clients.setdefault(int(number), {})[key] = tensor
    return clients


def compare_settings(path: Path, saved: dict[str, Any], present: dict[str, Any]) -> None:
    """Refuse to go on with another run's checkpoint.

    Raises:
        CheckpointError: settings differ; the message shows each with both values.
    """
    present = json.loads(json.dumps(present))  # as the saved ones went through JSON
    different = [
        f"{key}: {saved.get(key)!r} there, {present.get(key)!r} here"
        for key in sorted(saved.keys() | present.keys())
        if saved.get(key) != present.get(key)
    ]
    if different:
        raise CheckpointError(
            f"the checkpoint {path} is of another run ({'; '.join(different)}); use the settings it has"
        )


def atomic_write(path: Path, content: bytes) -> None:
    """Write a file under a temporary name, force it to the disk and rename it: a reader sees the old or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
