"""Checkpoints: one safetensors file with the server's tensors and, as JSON, where the run stands."""

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fedgram.errors import CheckpointError
from fedgram.files import atomic_write
from fedgram.runs.facts import CLIENT, wrong_facts, wrong_names
from fedgram.state import ServerState, flatten, unflatten_server

__all__ = ["Checkpoint", "fingerprint", "load", "load_first", "save"]

log = logging.getLogger(__name__)

_FORMAT = "2"
_UNSIGNED = "0" * 64
"""Stands in the place of a file's digest while that is computed."""


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

    state: ServerState
    round: int
    settings: dict[str, Any]
    progress: dict[str, Any]
    clients: dict[int, dict[str, Tensor]] = field(default_factory=dict)

    def tensors(self) -> dict[str, Tensor]:
        """Return all tensors under flat names; those of client 3 begin with ``client 3|``."""
        own = {f"{CLIENT}{c}|{key}": t for c, kept in self.clients.items() for key, t in kept.items()}
        return flatten(self.state) | own


def save(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint, whole or not at all."""
    from safetensors.torch import save as to_bytes

    flat = {key: tensor.cpu() for key, tensor in checkpoint.tensors().items()}
    facts = {
        "format": _FORMAT,
        "digest": _UNSIGNED,
        "round": checkpoint.round,
        "settings": checkpoint.settings,
        "fingerprint": fingerprint(checkpoint.settings),
        "progress": checkpoint.progress,
    }
    # Cloned, as safetensors refuses tensors that share memory.
    tensors = {key: tensor.clone(memory_format=torch.contiguous_format) for key, tensor in flat.items()}
    content = memoryview(to_bytes(tensors, metadata={"fedgram": json.dumps(facts)}))
    place = bytes(content[: _header_end(content)]).index(_UNSIGNED.encode())
    digest = hashlib.sha256(content).hexdigest()
    atomic_write(path, content[:place], digest.encode(), content[place + len(digest) :])


def fingerprint(settings: dict[str, Any]) -> str:
    """Return the SHA-256 over a run's settings: equal for runs that may go on from each other's checkpoints."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def _header_end(content: bytes | memoryview) -> int:
    """Return where the header of a safetensors file ends; its length is in the first 8 bytes."""
    return 8 + int.from_bytes(content[:8], "little")


def _digest(path: Path, stated: str) -> str:
    """Return the SHA-256 over a whole file, as it was before the digest that it states was put into its header."""
    with path.open("rb") as file:
        length = file.read(8)
        header = file.read(_header_end(length) - 8)
        digest = hashlib.sha256(length + header.replace(stated.encode(), _UNSIGNED.encode(), 1))
        return hashlib.file_digest(file, lambda: digest).hexdigest()


def load(path: Path) -> Checkpoint:
    """Read a checkpoint and check it, tensors and all else, against the digest that it states.

    Raises:
        CheckpointError: the file is missing, truncated, altered, of another version, no checkpoint of fedgram's, or
            what it says beside its tensors is not what a run writes.
    """
    from safetensors import SafetensorError, safe_open

    _check_file(path)
    try:
        with safe_open(path, framework="pt") as file:
            facts = json.loads((file.metadata() or {}).get("fedgram", "{}"))
            _check(path, facts)
            wrong = wrong_facts(facts, path.stem) or wrong_names(file.keys(), facts["round"])
            if wrong is not None:
                raise CheckpointError(f"the checkpoint {path} was altered: {wrong}; use an older one or start again")
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (no mapping)
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"the checkpoint {path} is damaged ({error}); use an older one or start again") from error
    state = unflatten_server({key: tensor for key, tensor in tensors.items() if not key.startswith(CLIENT)})
    return Checkpoint(state, facts["round"], facts["settings"], facts["progress"], _clients_of(tensors))


def _check_file(path: Path) -> None:
    """Refuse what is no regular file, reading from which might never end."""
    try:
        is_file, is_there = path.is_file(), path.exists() or path.is_symlink()
    except (OSError, ValueError) as error:  # a name that is too long, or has a NUL character
        raise CheckpointError(f"there is no checkpoint at {str(path)!r} ({error})") from error
    if is_there and not is_file and not path.is_dir():
        raise CheckpointError(
            f"{path} is a pipe, a device or a link to nowhere, and no checkpoint; give --ckpt_path last, best, or the "
            "path of a file"
        )
    if not is_file:
        raise CheckpointError(f"there is no checkpoint at {path}; give --ckpt_path last, best, or the path of a file")


def _check(path: Path, facts: Any) -> None:
    """Refuse a file of another format, and one that is not what was written."""
    found = facts.get("format") if isinstance(facts, dict) else None
    if found != _FORMAT:
        raise CheckpointError(
            f"{path} is no checkpoint of this version of fedgram, which reads format {_FORMAT!r}; got {found!r}: go on "
            "with the version that wrote it, or start the run again"
        )
    if _digest(path, str(facts.get("digest"))) != facts.get("digest"):
        raise CheckpointError(
            f"the checkpoint {path} was altered: it does not have the digest that it states; use an older one or start "
            "again"
        )


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
        if name.startswith(CLIENT):
            number, key = name.removeprefix(CLIENT).split("|", 1)
            clients.setdefault(int(number), {})[key] = tensor
    return clients
