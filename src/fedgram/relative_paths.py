"""Relative paths in config files: looked for in the working directory, then beside the file.

Options have paths as texts, since a backbone or a data set may be a name of the hub as well. A setting counts as a path
by its name: the last word is ``path``, ``file``, ``folder``, ``dir`` or ``directory``, or their plurals, or it is a
backbone or a tokenizer. It is left alone where another word marks a place to write to, as in ``save_dir``.
Built-in classes and those of users are treated alike.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, NamedTuple

__all__ = ["absolute", "reading", "settle"]

_WORDS = ("path", "file", "folder", "dir", "directory")
_NAMES = {*_WORDS, *(f"{word}s" for word in _WORDS), "directories", "backbone", "tokenizer"}
_WRITTEN = {"save", "log", "logs", "logging", "output", "out", "root", "result", "results"}
"""Words of settings that name places to write to: these are in the working directory, and not beside a file."""
_CHECKPOINTS = {"last", "best", "none"}


class _Places(NamedTuple):
    """Where the program was started, and the folder of the file that is being read."""

    working: Path
    beside: Path


_places: ContextVar[_Places | None] = ContextVar("places_of_relative_paths", default=None)


@contextmanager
def reading(file: Path) -> Iterator[None]:
    """Note which config file is being read; one file may name another."""
    outer = _places.get()
    working = Path.cwd() if outer is None else outer.working
    token = _places.set(_Places(working, file.expanduser().absolute().parent))
    try:
        yield
    finally:
        _places.reset(token)


def settle(settings: Any) -> Any:
    """Return the settings of the file that is being read; paths that exist from its folder alone are made absolute.

    What exists in the working directory stays as it is, and so does what exists in neither place.
    """
    places = _places.get()
    if places is None:
        return settings
    working, beside = places

    def from_folder(text: str) -> str:
        return text if _exists(working, text) or not _exists(beside, text) else _in(beside, text)

    return _changed(settings, "", from_folder)


def absolute(settings: Any) -> Any:
    """Return settings with the relative paths that lead somewhere from the working directory absolute."""
    working = Path.cwd()
    return _changed(settings, "", lambda text: _in(working, text) if _exists(working, text) else text)


def _changed(value: Any, key: str, change: Callable[[str], str]) -> Any:
    """Return settings with the paths among them changed; ``key`` is what they are called."""
    if isinstance(value, dict):
        return {name: _changed(inner, name if isinstance(name, str) else "", change) for name, inner in value.items()}
    if isinstance(value, list):
        return [_changed(inner, key, change) for inner in value]
    return change(value) if isinstance(value, str) and _is_path(key, value) else value


def _is_path(key: str, value: str) -> bool:
    name = key.rpartition(".")[2].rstrip("+").lower()
    if name == "ckpt_path" and value in _CHECKPOINTS:
        return False
    *others, last = name.split("_")
    return last in _NAMES and not _WRITTEN.intersection(others)


def _in(folder: Path, text: str) -> str:
    """Return the absolute path of something in a folder, under its own name were it a link."""
    path = folder / text
    return str(path.parent.resolve() / path.name) if path.name not in ("", "..") else str(path.resolve())


def _exists(folder: Path, text: str) -> bool:
    if not text or text.startswith("~") or "\0" in text or Path(text).is_absolute():
        return False
    try:
        return (folder / text).exists()
    except OSError:  # too long for a path
        return False
