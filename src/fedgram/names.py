"""Names that become folders: they stay where they were meant to be."""

import unicodedata
from pathlib import Path

from fedgram.errors import ConfigurationError

__all__ = ["check_folder_name", "check_path", "check_run_name"]

MOST_BYTES = 200
"""Of a folder's name: file systems take 255, and files beside it are called after it."""


def check_folder_name(setting: str, name: str) -> str:
    """Return the name of one folder.

    Args:
        setting: what the name was given as, for the error.
        name: the name.

    Raises:
        ConfigurationError: it is empty, too long, stands for another folder, or holds a slash or control characters.
    """
    fault = None
    if not name.strip() or name in (".", "..") or "/" in name or "\\" in name:
        fault = "must be the name of one folder, without slashes"
    elif any(unicodedata.category(letter) in ("Cc", "Cs", "Zl", "Zp") for letter in name):
        fault = "must not hold line breaks or other control characters"
    elif len(name.encode()) > MOST_BYTES:
        fault = f"must have at most {MOST_BYTES} bytes"
    if fault is not None:
        shown = name if len(name) <= 60 else name[:57] + "..."
        raise ConfigurationError(f"{setting} {fault}; got {shown!r}")
    return name


def check_run_name(setting: str, name: str) -> str:
    """Return the name of a run, which may be that of a folder in a folder, such as ``group/run``.

    Raises:
        ConfigurationError: a part of it is no name of a folder, as in ``/run``, ``../run`` and ``group//run``.
    """
    for part in name.split("/"):
        check_folder_name(f"each part of {setting} {name[:60]!r}" if "/" in name else setting, part)
    return name


def check_path(setting: str, path: str | Path) -> None:
    """Refuse a path that no file can have.

    Raises:
        ConfigurationError: it, or a part of it, is too long, or it holds a NUL.
    """
    text = str(path)
    if "\0" in text:
        raise ConfigurationError(f"{setting} must be a path, got one with a NUL character")
    longest = max((len(part.encode(errors="replace")) for part in Path(text).parts), default=0)
    if longest > 255 or len(text.encode(errors="replace")) > 4095:
        raise ConfigurationError(
            f"{setting} must be a path of at most 4095 bytes, and of 255 between slashes; got {text[:40]!r}..."
        )
