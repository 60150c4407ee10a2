"""Whether the files of a backbone are what their names say, and not what a broken download leaves behind."""

import json
import struct
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import nn

from fedgram.errors import ConfigurationError
from fedgram.models.sources import Source, folder_of

__all__ = ["check_finite", "check_small_files", "check_weight_files"]

_LFS_POINTER = b"version https://git-lfs"
_PAGE = (b"<!doctype", b"<html", b"<?xml")
_START = 512
"""Bytes that are enough to see what a file is."""
_SMALL = ("config.json", "tokenizer.json", "tokenizer_config.json", "vocab.json", "vocab.txt", "merges.txt", "*.model")
_KEYS: Mapping[str, tuple[str, ...]] = {
    "config.json": (),
    "tokenizer.json": ("added_tokens", "model"),
    "tokenizer_config.json": (),
}
"""The files that hold an object of JSON, and what must be in it."""
_PICKLE = b"\x80"
"""How the files of torch began before they were zip archives."""


def check_small_files(setting: str, source: Source) -> None:
    """Refuse a configuration or a tokenizer of which a file is empty, a pointer of git-lfs, or a page of a web site.

    Args:
        setting: the setting that names the source, for messages.
        source: the backbone or the tokenizer.

    Raises:
        ConfigurationError: with the file.
    """
    if source.gguf_file is None:
        folder = folder_of(source)
        for path in [path for pattern in _SMALL for path in sorted(folder.glob(pattern))]:
            if path.name in _KEYS or path.stat().st_size:
                _check_start(setting, path)
            if path.name in _KEYS:
                _check_object(setting, path, _KEYS[path.name])


def check_weight_files(setting: str, source: Source) -> None:
    """Refuse weights of which a file is empty, cut off, a pointer of git-lfs, or a page of a web site.

    Only the files that Transformers will read are looked at; of a model of the hub that is not in its cache, none are.

    Args:
        setting: the setting that names the source, for messages.
        source: the backbone.

    Raises:
        ConfigurationError: with the file.
    """
    for path in _weight_files(source):
        start = _check_start(setting, path)
        if path.suffix == ".safetensors":
            _check_safetensors(setting, path)
        elif path.suffix == ".bin" and not zipfile.is_zipfile(path) and not start.startswith(_PICKLE):
            raise _damaged(setting, path, "is cut off, or no file of torch")


def _weight_files(source: Source) -> list[Path]:
    folder = folder_of(source)
    if source.gguf_file is not None:
        return [path for path in [folder / source.gguf_file] if path.is_file()]
    for pattern in ("model.safetensors", "model-*-of-*.safetensors", "pytorch_model.bin", "pytorch_model-*-of-*.bin"):
        if found := sorted(folder.glob(pattern)):
            return found
    return []


def _check_start(setting: str, path: Path) -> bytes:
    """Return the first bytes of a file, if they are no sign of a download that went wrong."""
    try:
        with path.open("rb") as file:
            start = file.read(_START)
    except OSError as error:
        raise ConfigurationError(f"{setting}: can't read {path} ({error.strerror or error})") from error
    if not start:
        raise _damaged(setting, path, "is empty")
    if start.startswith(_LFS_POINTER):
        raise _damaged(setting, path, "is a pointer of git-lfs and not the file itself", "run git lfs pull there, or ")
    if start.lstrip().lower().startswith(_PAGE):
        raise _damaged(setting, path, "is a page of a web site, as a download without permission or network leaves it")
    return start


def _check_object(setting: str, path: Path, keys: Iterable[str]) -> None:
    try:
        found = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise _damaged(setting, path, f"is no JSON ({error})") from error
    if not isinstance(found, dict):
        raise _damaged(setting, path, "holds no object of JSON")
    if missing := [key for key in keys if key not in found]:
        raise _damaged(setting, path, f"has no {', '.join(map(repr, missing))}")


def _check_safetensors(setting: str, path: Path) -> None:
    """Compare the size of a file with that which its header tells."""
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(8)
        length = struct.unpack("<Q", head)[0] if len(head) == 8 else size
        header = file.read(length) if length <= size - 8 else b""
    try:
        tensors = json.loads(header)
        ends = [tensor["data_offsets"][1] for name, tensor in tensors.items() if name != "__metadata__"]
        expected = 8 + length + max(ends, default=0)
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise _damaged(setting, path, "is cut off, or no file of safetensors") from error
    if size < expected:
        raise _damaged(setting, path, f"is cut off: it has {size:,} of {expected:,} bytes")
    if size > expected:
        raise _damaged(setting, path, f"has {size - expected:,} bytes too many")


def _damaged(setting: str, path: Path, what: str, first: str = "") -> ConfigurationError:
    return ConfigurationError(f"{setting}: {path} {what}; {first}download it anew")


def check_finite(setting: str, reference: str, network: nn.Module) -> None:
    """Refuse weights that are not finite: nothing could be trained or predicted with them.

    Args:
        setting: the setting that names the backbone, for messages.
        reference: the backbone as it was given.
        network: the network with its weights.

    Raises:
        ConfigurationError: with how many tensors, and the first.
    """
    weights = {name: tensor for name, tensor in network.named_parameters() if tensor.numel()}
    bad = {name: tensor.dtype for name, tensor in weights.items() if not _is_finite(tensor)}
    if not bad:
        return
    first, dtype = next(iter(bad.items()))
    remedy = "give a backbone whose weights are whole"
    if dtype == torch.float16:
        remedy = f"float16 ends at 65,504: set model.dtype to bfloat16 or float32, or {remedy}"
    raise ConfigurationError(
        f"{setting}: {reference!r} has NaN or inf in {len(bad)} of {len(weights)} weights ({first}, ...); {remedy}"
    )


def _is_finite(tensor: torch.Tensor) -> bool:
    """Say whether all numbers are finite, without a tensor of as many truth values beside a large one."""
    least, most = torch.aminmax(tensor.detach())  # nan where any number is
    return bool(torch.isfinite(least) and torch.isfinite(most))
