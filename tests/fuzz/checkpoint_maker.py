"""Checkpoints with something wrong with them: files that are damaged, and altered ones whose digest is made anew."""

import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from made_checkpoints import parts_of, resigned

Change = Callable[[bytes, random.Random], bytes]
VALUES: list[Any] = [None, "x", -1, 0, 7, 1.5, True, [], {}, [[[]]], {"a": []}, 10**30, float("nan"), float("inf")]
TYPES = {"F32": ["I32", "U32"], "F64": ["I64"], "I64": ["F64"]}


# --- damage, which the digest tells ---


def _flip(content: bytes, dice: random.Random) -> bytes:
    altered = bytearray(content)
    for _ in range(dice.choice([1, 1, 5])):
        altered[dice.randrange(len(content))] ^= 1 << dice.randrange(8)
    return bytes(altered)


def _flip_header(content: bytes, dice: random.Random) -> bytes:
    place = dice.randrange(12)
    return content[:place] + bytes([content[place] ^ dice.randint(1, 255)]) + content[place + 1 :]


def _zeros(content: bytes, dice: random.Random) -> bytes:
    start = dice.randrange(len(content) - 512)
    return content[:start] + bytes(512) + content[start + 512 :]


def _other(content: bytes, dice: random.Random) -> bytes:
    return dice.choice(
        [b"", b"\0", b"<html></html>", b"{}", b"version https://git-lfs.github.com/spec/v1\n", bytes(4096)]
    )


DAMAGE: dict[str, Change] = {
    "bits flipped": _flip,
    "its beginning altered": _flip_header,
    "truncated": lambda content, dice: content[: dice.randrange(len(content))],
    "longer": lambda content, dice: content + dice.randbytes(dice.randint(1, 99)),
    "a block of zeros": _zeros,
    "another file": _other,
}


# --- alterations, with a digest made anew ---


def places(value: Any, *path: Any) -> Iterator[tuple[Any, ...]]:
    """Yield the paths to all entries of nested mappings and lists."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield (*path, key)
        yield from places(item, *path, key)


def _with_facts(change: Callable[[Any, Any, random.Random], None]) -> Change:
    def altered(content: bytes, dice: random.Random) -> bytes:
        facts, header, data = parts_of(content)
        *path, key = dice.choice([place for place in places(facts) if place[0] != "digest"])
        where = facts
        for step in path:
            where = where[step]
        change(where, key, dice)
        return resigned(facts, header, data)

    return altered


def _remove(where: Any, key: Any, dice: random.Random) -> None:
    del where[key]


def _replace(where: Any, key: Any, dice: random.Random) -> None:
    where[key] = dice.choice(VALUES)


def _rename(where: Any, key: Any, dice: random.Random) -> None:
    if isinstance(where, dict):
        where[f"{key}s"] = where.pop(key)
    else:
        where.append(where[key])


def _no_facts(content: bytes, dice: random.Random) -> bytes:
    _, header, data = parts_of(content)
    return resigned(dice.choice([{}, [], None, "facts", {"format": "2"}]), header, data)


def _with_tensor(change: Callable[[dict[str, Any], str, random.Random], None]) -> Change:
    def altered(content: bytes, dice: random.Random) -> bytes:
        facts, header, data = parts_of(content)
        # The optimizers' memories are not looked at by a test.
        names = [name for name in header if name != "__metadata__" and "optimizer" not in name]
        change(header, dice.choice(names), dice)
        return resigned(facts, header, data)

    return altered


def _drop(header: dict[str, Any], name: str, dice: random.Random) -> None:
    """Leave a tensor out; its bytes go to one that nobody knows, as safetensors wants all of them."""
    header[dice.choice(["client 6|adapter|more|A", "adapter|more|A", "head|more|bias", "server|more|A"])] = header.pop(
        name
    )


def _odd_name(header: dict[str, Any], name: str, dice: random.Random) -> None:
    header[dice.choice(["", "x", f"{name}|x", f"x|{name}", f"client 99|{name}", name.upper(), name[1:]])] = header.pop(
        name
    )


def _type(header: dict[str, Any], name: str, dice: random.Random) -> None:
    header[name]["dtype"] = dice.choice(TYPES.get(header[name]["dtype"], ["F32"]))


def _half(header: dict[str, Any], name: str, dice: random.Random) -> None:
    """Read a tensor as twice as many numbers of half the size."""
    header[name]["dtype"] = "BF16" if header[name]["dtype"] == "F32" else "F32"
    header[name]["shape"] = [*header[name]["shape"], 2]


def _shape(header: dict[str, Any], name: str, dice: random.Random) -> None:
    shape = header[name]["shape"]
    size = 1
    for side in shape:
        size *= side
    header[name]["shape"] = dice.choice(
        [other for other in ([size], [1, *shape], [*shape, 1], shape[::-1]) if other != shape] or [[1, *shape]]
    )


def _layer(header: dict[str, Any], name: str, dice: random.Random) -> None:
    """Add a layer without numbers."""
    end = max(place["data_offsets"][1] for key, place in header.items() if key != "__metadata__")
    header[f"{dice.choice(['adapter', 'head', 'server'])}|more|A"] = {
        "dtype": "F32",
        "shape": [0],
        "data_offsets": [end, end],
    }


ALTERATIONS: dict[str, Change] = {
    "an entry is missing": _with_facts(_remove),
    "an entry is another": _with_facts(_replace),
    "an entry has another name": _with_facts(_rename),
    "no entries": _no_facts,
    "a tensor of another name": _with_tensor(_drop),
    "a tensor of an odd name": _with_tensor(_odd_name),
    "a tensor of another type": _with_tensor(_type),
    "a tensor of half the precision": _with_tensor(_half),
    "a tensor of another shape": _with_tensor(_shape),
    "a layer more": _with_tensor(_layer),
}


# --- what is no file ---


def _pipe(path: Path) -> None:
    os.mkfifo(path)


PLACES: dict[str, Callable[[Path], None]] = {
    "a pipe": _pipe,
    "a device": lambda path: path.symlink_to("/dev/zero"),
    "a link to itself": lambda path: path.symlink_to(path),
    "a link to nowhere": lambda path: path.symlink_to("/nowhere/at/all"),
    "a folder": Path.mkdir,
}


def spoil(path: Path, kind: str, seed: int) -> None:
    """Spoil a checkpoint.

    Args:
        path: the file.
        kind: one of `DAMAGE`, `ALTERATIONS` and `PLACES`.
        seed: decides all else.
    """
    content = path.read_bytes()
    path.unlink()
    if kind in PLACES:
        PLACES[kind](path)
    else:
        path.write_bytes((DAMAGE | ALTERATIONS)[kind](content, random.Random(seed)))
