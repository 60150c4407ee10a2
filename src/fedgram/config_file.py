"""Reads configs and sweeps: YAML of bounded size, without repeated keys. Errors name the file and the line.

A file is refused before anything is made of it: compressed, binary, nested without end, or with aliases that stand
for more than any config needs. What a file that is no config holds is never printed.
"""

import os
import select
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from fedgram.errors import UsageError

__all__ = ["NOTHING", "check_yaml", "parse_config", "read_config", "read_text", "read_yaml"]

MOST_BYTES = 2**20
NOTHING = "!!null"
"""On the command line null for any option, also for a text, for which ``null`` is the word: as sweeps write it."""
MOST_NODES = 100_000
"""Of a file after its aliases are replaced by what they stand for."""
MOST_LEVELS = 50
PATIENCE = 20
"""Seconds for what writes a config into a pipe."""

_MAGIC = {
    b"\x1f\x8b": "compressed (gzip)",
    b"PK\x03\x04": "compressed (zip)",
    b"BZh": "compressed (bzip2)",
    b"\xfd7zXZ": "compressed (xz)",
    b"\x28\xb5\x2f\xfd": "compressed (zstd)",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
}
_KINDS = {str: "a text", list: "a list", type(None): "nothing"}
_ALLOWED_CONTROLS = "\t\n\r\x85"
_IGNORED = "x-"
"""Keys that begin so at the top level hold anchors, as in the files of docker compose."""


def read_config(path: Path) -> dict[str, Any]:
    """Return the settings in a config file.

    Raises:
        UsageError: see `parse_config`; or the file can't be read.
    """
    return parse_config(read_text(path), str(path))


def parse_config(text: str, name: str) -> dict[str, Any]:
    """Return the settings in the text of a config, without what stands under keys such as ``x-anchors``.

    Args:
        text: YAML.
        name: what errors call it.

    Raises:
        UsageError: it is no YAML, too large or too deep, repeats a key, or holds no settings.
    """
    from jsonargparse._loaders_dumpers import get_yaml_default_loader  # reads 1e-3 as a number, unlike YAML 1.1

    content = read_yaml(text, name, get_yaml_default_loader(), _check_names)
    if not isinstance(content, dict):
        kind = _KINDS.get(type(content), "a value")
        raise UsageError(f"{name}: expected settings by name, such as trainer: {{rounds: 10}}, got {kind}")
    return {key: value for key, value in content.items() if not key.startswith(_IGNORED)}


def read_text(path: Path) -> str:
    """Return the text of a config file, or of a pipe, as of ``<(...)`` in a shell.

    Raises:
        UsageError: it can't be read, is a device, a pipe that nobody writes into, too large, or no text.
    """
    try:
        raw = _read(path.expanduser())
    except UsageError:
        raise
    except (OSError, ValueError, RuntimeError) as error:  # a NUL in the name, a home of nobody
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise UsageError(f"{path}: can't be read: {reason}") from error
    kind = next((kind for magic, kind in _MAGIC.items() if raw.startswith(magic)), None)
    if kind is None and len(raw) > MOST_BYTES:
        kind = f"longer than {MOST_BYTES:,} bytes"
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        kind, text = kind or "no text in UTF-8", ""
    if kind is None and any(not c.isprintable() and ord(c) < 160 and c not in _ALLOWED_CONTROLS for c in text):
        kind = "binary"
    if kind is not None:
        raise UsageError(f"{path}: expected a config, which is YAML in UTF-8; the file is {kind}")
    return text


def _read(path: Path) -> bytes:
    """Return what a file or a pipe begins with, and a byte more than a config may have where there is more."""
    mode = path.stat().st_mode
    if stat.S_ISFIFO(mode):
        return _read_pipe(path)
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):  # reading a folder fails with its own error
        raise UsageError(f"{path}: expected a config, which is a file; this is a terminal or another device")
    with path.open("rb") as file:
        return file.read(MOST_BYTES + 1)


def _read_pipe(path: Path) -> bytes:
    """Return what is written into a pipe until its writer closes it, within some seconds."""
    until, found = time.monotonic() + PATIENCE, b""
    # Without waiting, as to open a pipe that has no writer would wait for one.
    pipe = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        while len(found) <= MOST_BYTES:
            if not select.select([pipe], [], [], max(0.0, until - time.monotonic()))[0]:
                came = f"{len(found)} bytes and no end" if found else "nothing"
                raise UsageError(
                    f"{path}: expected a config; this is a pipe, into which {came} was written in {PATIENCE} seconds; "
                    "write the config to a file"
                )
            chunk = os.read(pipe, MOST_BYTES)
            if not chunk:
                break
            found += chunk
    finally:
        os.close(pipe)
    return found[: MOST_BYTES + 1]


def read_yaml(
    text: str, name: str, loader: type = yaml.SafeLoader, check_key: Callable[..., None] | None = None
) -> Any:
    """Return what YAML says, with repeated keys refused.

    Args:
        text: the YAML.
        name: what errors call it.
        loader: decides which scalars are numbers.
        check_key: is given the name, each key that is no text, and the names of the keys that it stands below.

    Raises:
        UsageError: it is no YAML, too large or too deep, or repeats a key.
    """
    try:
        check_yaml(text, name)
        reader = loader(text)
        node = reader.get_single_node()
        if node is None:
            return None
        _check_keys(node, name, (), check_key, set())
        return reader.construct_document(node)
    except (yaml.YAMLError, ValueError, TypeError, OverflowError) as error:  # the last three of scalars such as 0x
        if isinstance(error, UsageError):
            raise
        raise UsageError(_located(error, name)) from error


def check_yaml(text: str, name: str) -> None:
    """Refuse YAML that is nested without end, or whose aliases stand for too much, before anything is made of it.

    Raises:
        UsageError: it is so.
        YAMLError: it is no YAML.
    """
    open_nodes, known, nodes = [_Size()], dict[str, _Size | None](), 0
    for event in yaml.parse(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
        added = _Size(getattr(event, "anchor", None))
        if isinstance(event, yaml.CollectionStartEvent):
            open_nodes.append(added)
            known |= {added.anchor: None} if added.anchor else {}
            _check_size(nodes, len(open_nodes), name)
            continue
        if isinstance(event, yaml.CollectionEndEvent):
            added = open_nodes.pop()
        elif isinstance(event, yaml.AliasEvent):
            added = _aliased(event, known, name)
            nodes += added.nodes
        elif isinstance(event, yaml.ScalarEvent):
            nodes += 1
        else:
            continue
        if added.anchor:
            known[added.anchor] = added
        open_nodes[-1].add(added)
        _check_size(nodes, len(open_nodes) + added.levels, name)


class _Size:
    """How many nodes and levels something in YAML has, with its aliases replaced by what they stand for."""

    def __init__(self, anchor: str | None = None) -> None:
        self.anchor = anchor
        self.nodes = self.levels = 1

    def add(self, inner: "_Size") -> None:
        self.nodes += inner.nodes
        self.levels = max(self.levels, inner.levels + 1)


def _aliased(event: Any, known: dict[str, _Size | None], name: str) -> _Size:
    size = known.get(event.anchor, _Size())  # an unknown one is refused when the document is composed
    if size is None:
        raise UsageError(f"{name}, line {event.start_mark.line + 1}: *{event.anchor} refers to what it stands in")
    return size


def _check_size(nodes: int, levels: int, name: str) -> None:
    if levels > MOST_LEVELS:
        raise UsageError(f"{name}: is nested more than {MOST_LEVELS} levels deep, which no config is")
    if nodes > MOST_NODES:
        raise UsageError(f"{name}: holds more than {MOST_NODES:,} values, its aliases replaced, which no config does")


def _check_keys(
    node: yaml.Node, name: str, above: tuple[str, ...], check_key: Callable[..., None] | None, seen: set[int]
) -> None:
    """Refuse repeated keys; each node is looked at once, however many aliases stand for it."""
    if id(node) in seen or isinstance(node, yaml.ScalarNode):
        return
    seen.add(id(node))
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _check_keys(item, name, (*above, ""), check_key, seen)
        return
    lines: dict[tuple[str, str], int] = {}
    for key, value in node.value:
        if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
            line, same = key.start_mark.line + 1, (key.tag, key.value)
            if same in lines:
                place = ".".join((*above, key.value))
                raise UsageError(f"{name}: the key {place} stands in line {lines[same]} and in line {line}; keep one")
            lines[same] = line
        if check_key is not None:
            check_key(name, key, above)
        _check_keys(value, name, (*above, str(key.value)), check_key, seen)


def _check_names(name: str, key: yaml.Node, above: tuple[str, ...]) -> None:
    """Refuse keys that are no texts where settings have names: YAML reads ``no`` and ``1`` as something else."""
    if len(above) > 1 and above[-1] != "init_args":
        return
    if not key.tag.endswith((":str", ":merge")):
        shown = key.value if isinstance(key, yaml.ScalarNode) else "a list or a mapping"
        place = f" below {'.'.join(above)}" if above else ""
        raise UsageError(
            f"{name}, line {key.start_mark.line + 1}: expected the name of a setting{place}, got {shown or 'nothing'!r}"
        )


def _located(error: Exception, name: str) -> str:
    """Return what a YAML reader says in one line, with the place in the file."""
    mark = getattr(error, "problem_mark", None)
    place = f"{name}, line {mark.line + 1}, column {mark.column + 1}" if mark else name
    problem = getattr(error, "problem", None) or str(error).partition("\n")[0]
    context = getattr(error, "context", None)
    return f"{place}: is no valid YAML: {problem}{f' {context}' if context else ''}"
