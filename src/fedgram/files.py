"""Files that survive a kill or a power cut: whole or not there, or, where they grow, whole but for what came last."""

import errno
import os
import re
import time
from collections.abc import Iterable
from pathlib import Path
from socket import gethostname

import psutil

__all__ = ["append", "atomic_write", "remove_leftovers"]

_STALE = 3600.0
"""Seconds after which a temporary file has been left behind, whoever wrote it: no write takes that long."""


def atomic_write(path: Path, *pieces: bytes | memoryview) -> None:
    """Write a file under a temporary name, force it to the disk and rename it: a reader sees the old or the new one.

    The folder is forced to the disk as well, since the new name is only in there.

    Args:
        path: the file; its folder is made if need be.
        pieces: its content, one after the other.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{gethostname()}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.writelines(pieces)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    _force_folder(path.parent)


def append(path: Path, content: bytes) -> None:
    """Add to the end of a file that is there, and force it to the disk: the cost is that of what is added.

    A kill may leave a part of the content at the end of the file; what was there before stays as it was.
    """
    with path.open("ab") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _force_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some file systems have no such thing
            raise
    finally:
        os.close(descriptor)


def remove_leftovers(folders: Iterable[Path]) -> None:
    """Delete the temporary files that killed processes left in some folders, and no file that may yet be written to.

    That is those of processes of this host that have ended, and those that nobody has touched for an hour: whether a
    process of another host is alive can't be known here.
    """
    for folder in folders:
        for path in folder.glob(".*.tmp"):
            if _is_left_behind(path):
                path.unlink(missing_ok=True)


def _is_left_behind(path: Path) -> bool:
    match = re.fullmatch(rf"\..+?(\.{re.escape(gethostname())})?\.(\d+)\.tmp", path.name)
    if match is None:
        return False
    # Of this process there is none that is being written now, but perhaps one of an earlier process of the same number.
    ended = int(match[2]) == os.getpid() or not psutil.pid_exists(int(match[2]))
    try:
        return (match[1] is not None and ended) or time.time() - path.stat().st_mtime > _STALE
    except FileNotFoundError:  # its writer has just renamed it
        return False
