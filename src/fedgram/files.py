"""Files that survive a kill or a power cut: whole or not there, or, where they grow, whole but for what came last."""

import errno
import os
import re
import stat
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from socket import gethostname

import psutil

from fedgram.errors import ConfigurationError, OutputError

__all__ = ["append", "atomic_write", "check_output", "expand_home", "make_folder", "remove_leftovers", "writing"]

_STALE = 3600.0
"""Seconds after which a temporary file has been left behind, whoever wrote it: no write takes that long."""
_OPEN_FILE = re.compile(r"/dev/(std(out|err)|fd/.+)|/proc/[^/]+/(task/[^/]+/)?fd/.+")
"""Names under which Linux and macOS have the files that a process has open, such as the terminal or a pipe."""
_REMEDIES = {
    "free some space there, or choose another place": (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)),
    "choose a place that you may write to": (errno.EACCES, errno.EPERM, errno.EROFS),
    "a part of the path is a file: choose another place": (errno.ENOTDIR, errno.EEXIST),
    "choose a shorter name": (errno.ENAMETOOLONG,),
    "nobody reads from it: start its reader first": (errno.ENXIO,),
}


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn an error of the system into one line: which path can't be written, why, and the remedy.

    Raises:
        OutputError: the system refused to write.
    """
    try:
        yield
    except OutputError:
        raise
    except OSError as error:
        remedy = next((text for text, numbers in _REMEDIES.items() if error.errno in numbers), "choose another place")
        raise OutputError(f"can't write {path}: {error.strerror or error}; {remedy}") from error


def make_folder(path: Path) -> None:
    """Make a folder, and those above it, unless it is there.

    Raises:
        OutputError: the system refused to.
    """
    with writing(path):
        path.mkdir(parents=True, exist_ok=True)


def expand_home(path: str) -> Path:
    """Return a path with ``~`` written out.

    Raises:
        ConfigurationError: this user, or the one that is named, has no home.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise ConfigurationError(f"there is no home folder for {path!r}; give a path without ~, or set HOME") from error


def check_output(path: Path) -> None:
    """Refuse a path that no file can be written to, before the work is done whose result it is for.

    A link is followed. What is no regular file is written into if it is a pipe or a device such as /dev/stdout.

    Raises:
        OutputError: it is a folder, a disk, or no name at all, or the system refuses to look at it.
    """
    if not path.name or path.name == "..":
        raise OutputError(f"can't write {str(path)!r}: it names a folder and no file; give the name of a file")
    with writing(path):
        mode = _mode(path)
    if mode is None and path.is_symlink() and Path(os.path.realpath(path)).is_symlink():
        raise OutputError(f"can't write {path}: it is a link that leads to itself; remove it or give another name")
    if mode is not None and stat.S_ISDIR(mode):
        raise OutputError(f"can't write {path}: it is a folder; give the name of a file")
    if mode is not None and not (stat.S_ISREG(mode) or _takes_a_stream(mode)):
        raise OutputError(f"can't write {path}: it is neither a file nor a pipe; give the name of a file")


def _mode(path: Path) -> int | None:
    """Return the type and permissions of what a path leads to; None where there is nothing."""
    try:
        return path.stat().st_mode
    except FileNotFoundError:
        return None
    except ValueError as error:  # a NUL character in the name
        raise OutputError(f"can't write {str(path)!r}: {error}; give another name") from error
    except OSError as error:
        if error.errno == errno.ELOOP:
            return None
        raise


def _takes_a_stream(mode: int) -> bool:
    return stat.S_ISCHR(mode) or stat.S_ISFIFO(mode)


def atomic_write(path: Path, *pieces: bytes | memoryview) -> None:
    """Write a file under a temporary name, force it to the disk and rename it: a reader sees the old or the new one.

    The folder is forced to the disk as well, since the new name is only in there. Of a link, what it leads to is
    written, and the link stays. A pipe or a device is written into, as it can't be replaced.

    Args:
        path: the file; its folder is made if need be.
        pieces: its content, one after the other.

    Raises:
        OutputError: the path is no place for a file, or the system refused to write.
    """
    check_output(path)
    mode = _mode(path)
    with writing(path):
        if (mode is not None and _takes_a_stream(mode)) or _OPEN_FILE.fullmatch(str(path)):
            _write_into(path, pieces)
        else:
            _replace(Path(os.path.realpath(path)) if path.is_symlink() else path, pieces)


def _write_into(path: Path, pieces: Iterable[bytes | memoryview]) -> None:
    """Write into a pipe, a device or an open file, behind what it already holds."""
    # Without O_NONBLOCK, to open a pipe that nobody reads from would wait for ever.
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | getattr(os, "O_NONBLOCK", 0))
    if hasattr(os, "O_NONBLOCK"):
        os.set_blocking(descriptor, True)
    with open(descriptor, "wb") as file:  # noqa: PTH123 (there is no path's open for a descriptor)
        file.writelines(pieces)


def _replace(path: Path, pieces: Iterable[bytes | memoryview]) -> None:
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

    Raises:
        OutputError: the system refused to write.
    """
    with writing(path), path.open("ab") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _force_folder(folder: Path) -> None:
    if sys.platform == "win32":  # where a folder can't be opened
        return
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
