"""TensorBoard's event files: records of a length, its checksum, an event, and the event's checksum."""

import struct
from collections.abc import Callable, Iterator
from pathlib import Path

from fedgram.files import atomic_write

__all__ = ["keep"]

_LENGTH = struct.Struct("<Q")
_CHECKSUM = 4


def keep(folder: Path, counts: Callable[[str, int], bool]) -> None:
    """Drop values from all event files in a folder and below it, and records that a kill has left half written.

    Args:
        folder: where to look.
        counts: says of a value's tag and step whether it stays.
    """
    for path in sorted(folder.rglob("events.out.tfevents.*")):
        content = path.read_bytes()
        kept = [record for record, event in _records(content) if _all_count(event, counts)]
        if sum(map(len, kept)) < len(content):
            atomic_write(path, *kept)


def _records(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Return the whole records of a file, each with its event."""
    start = 0
    while start + _LENGTH.size <= len(content):
        (length,) = _LENGTH.unpack_from(content, start)
        event = start + _LENGTH.size + _CHECKSUM
        end = event + length + _CHECKSUM
        if end > len(content):
            return
        yield content[start:end], content[event : event + length]
        start = end


def _all_count(event: bytes, counts: Callable[[str, int], bool]) -> bool:
    """Say whether an event stays: all its values count, or it has none, as the one that tells the file's version."""
    from tensorboard.compat.proto.event_pb2 import Event

    parsed = Event.FromString(event)
    return all(counts(value.tag, parsed.step) for value in parsed.summary.value)
