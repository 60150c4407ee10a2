"""A lock on a folder, by which one process at a time works there: the system lifts it when that process dies."""

import errno
import logging
import os
import time
from pathlib import Path

from filelock import lock_descriptor

from fedgram.errors import LockedError

__all__ = ["FolderLock", "is_locked", "lock_run"]

log = logging.getLogger(__name__)

_NAME = ".lock"
_PATIENCE, _PAUSE = 0.3, 0.02
"""Seconds to try for, and between tries: `is_locked` holds a lock for an instant."""
_WITHOUT_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL)
"""What the system answers where a file system has no locks, as network file systems may be set up."""


class FolderLock:
    """The lock of this process on a folder; the file of the lock stays there, as its removal would let two others in.

    Args:
        descriptor: of the locked file. A process that inherits it has the lock as well.
    """

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    @classmethod
    def take(cls, folder: Path) -> "FolderLock | None":
        """Lock a folder, which is made if need be; return None where another process has it.

        Where the file system has no locks, a warning says so, and the lock keeps nobody away.

        Raises:
            LockedError: the file of the lock can't be made or opened.
        """
        try:
            folder.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(folder / _NAME, os.O_RDWR | os.O_CREAT | getattr(os, "O_NONBLOCK", 0), 0o666)
        except OSError as error:
            raise LockedError(
                f"can't lock {folder} for this process ({error.strerror}); make it a folder that you can write to"
            ) from error
        if _try(descriptor, folder):
            return cls(descriptor)
        os.close(descriptor)
        return None

    def close(self) -> None:
        """Let go of the folder; again is no error."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
        self.descriptor = -1


def _try(descriptor: int, folder: Path) -> bool:
    """Lock an open file within a moment, and say whether that worked."""
    until = time.monotonic() + _PATIENCE
    try:
        while not lock_descriptor(descriptor, blocking=False):
            if time.monotonic() > until:
                return False
            time.sleep(_PAUSE)
    except OSError as error:
        if error.errno not in _WITHOUT_LOCKS:
            os.close(descriptor)
            raise LockedError(f"can't lock {folder} for this process ({error.strerror})") from error
        log.warning("%s is on a file system without locks: see to it that no second process works there", folder)
    return True


def is_locked(folder: Path) -> bool:
    """Say whether a process, this one or another, has a folder locked."""
    try:
        descriptor = os.open(folder / _NAME, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    except OSError:  # nobody has ever locked it
        return False
    try:
        return not lock_descriptor(descriptor, blocking=False)
    except OSError:  # a file system without locks
        return False
    finally:
        os.close(descriptor)


def lock_run(folder: Path) -> FolderLock:
    """Lock the folder of a run.

    Raises:
        LockedError: another process has it.
    """
    lock = FolderLock.take(folder)
    if lock is None:
        raise LockedError(
            f"another process is at this run: {folder}; wait until it ends, or stop it, and then go on with "
            f"--ckpt_path {folder}"
        )
    return lock
