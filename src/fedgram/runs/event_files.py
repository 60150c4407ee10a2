"""TensorBoard's event files: records of a length, its checksum, an event, and the event's checksum."""

import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from fedgram.files import atomic_write

__all__ = ["keep", "silence_writers"]

_LENGTH = struct.Struct("<Q")
_CHECKSUM = 4


def keep(folder: Path, counts: Callable[[str, int], bool]) -> None:
    """Drop values from all event files in a folder and below it, and what comes after a damaged record.

    Args:
        folder: where to look.
        counts: says of a value's tag and step whether it stays.
    """
    for path in sorted(path for path in folder.rglob("events.out.tfevents.*") if path.is_file()):
        content = path.read_bytes()
        kept = [record for record, values in _records(content) if all(counts(tag, step) for tag, step in values)]
        if sum(map(len, kept)) < len(content):
            atomic_write(path, *kept)


def silence_writers() -> None:
    """Have no traceback printed when the thread that writes event files meets a full disk.

    TensorBoard raises the error again where the program next writes, and there it is reported.
    """
    former = threading.excepthook

    def hook(raised: threading.ExceptHookArgs) -> None:
        is_writer = type(raised.thread).__module__.startswith("tensorboard.")
        if not (is_writer and isinstance(raised.exc_value, OSError)):
            former(raised)

    threading.excepthook = hook


def _records(content: bytes) -> Iterator[tuple[bytes, list[tuple[str, int]]]]:
    """Return the records of a file, each with the tag and the step of its values, up to the first that is no record.

    Such a one is what a kill has left half written. Checksums are not looked at: they are slow to compute in Python,
    and who reads the file looks at them.
    """
    from google.protobuf.message import DecodeError
    from tensorboard.compat.proto.event_pb2 import Event

    start = 0
    while start + _LENGTH.size <= len(content):
        (length,) = _LENGTH.unpack_from(content, start)
        first = start + _LENGTH.size + _CHECKSUM
        end = first + length + _CHECKSUM
        if not length or end > len(content):
            return
        try:
            event = Event.FromString(content[first : first + length])
        except DecodeError:
            return
        yield content[start:end], [(value.tag, event.step) for value in event.summary.value]
        start = end
