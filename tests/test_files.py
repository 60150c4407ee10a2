import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from socket import gethostname

import pytest

from fedgram.files import append, atomic_write, remove_leftovers
from fedgram.runs.folder import RunFolder


@pytest.mark.parametrize("broken", ["fsync", "replace"])
def test_a_write_that_fails_leaves_the_old_file_and_no_other(tmp_path, monkeypatch, broken):
    path = tmp_path / "file"
    atomic_write(path, b"old")

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os if broken == "fsync" else Path, broken, fail)
    with pytest.raises(OSError, match="disk full"):
        atomic_write(path, b"new and longer")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_pieces_are_one_file(tmp_path):
    atomic_write(tmp_path / "new" / "file", b"one ", memoryview(b"or two")[3:])
    assert (tmp_path / "new" / "file").read_bytes() == b"one two"


def test_the_file_is_forced_to_the_disk_before_its_name_is(tmp_path, monkeypatch):
    steps, fsync, replace = [], os.fsync, Path.replace

    def force(descriptor):
        steps.append("folder" if os.path.samestat(os.fstat(descriptor), tmp_path.stat()) else "file")
        fsync(descriptor)

    def rename(self, target):
        steps.append("name")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", force)
    monkeypatch.setattr(Path, "replace", rename)
    atomic_write(tmp_path / "file", b"content")
    assert steps == ["file", "name", "folder"]


def test_what_is_added_comes_last_and_is_forced_to_the_disk(tmp_path, monkeypatch):
    path, forced, fsync = tmp_path / "file", [], os.fsync

    def force(descriptor):
        forced.append(path.read_bytes())
        fsync(descriptor)

    path.write_bytes(b"old ")
    monkeypatch.setattr(os, "fsync", force)
    append(path, b"new")
    assert forced == [b"old new"]


@pytest.mark.parametrize(("number", "fails"), [(errno.EINVAL, False), (errno.ENOTSUP, False), (errno.EIO, True)])
def test_a_file_system_need_not_force_folders_but_must_not_fail_to(tmp_path, monkeypatch, number, fails):
    def fsync(descriptor):
        if os.path.samestat(os.fstat(descriptor), tmp_path.stat()):
            raise OSError(number, "no")

    monkeypatch.setattr(os, "fsync", fsync)
    if fails:
        with pytest.raises(OSError, match="no"):
            atomic_write(tmp_path / "file", b"content")
    else:
        atomic_write(tmp_path / "file", b"content")
    assert (tmp_path / "file").read_bytes() == b"content"


KILLED_BEFORE_THE_RENAME = """
import os, signal, sys
from pathlib import Path
from fedgram.files import atomic_write
Path.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
atomic_write(Path(sys.argv[1]), b"new and longer")
"""


def test_a_kill_before_the_rename_leaves_the_old_file_and_what_the_next_start_removes(tmp_path):
    path = tmp_path / "checkpoints" / "round_000001.safetensors"
    atomic_write(path, b"old")
    killed = subprocess.run([sys.executable, "-c", KILLED_BEFORE_THE_RENAME, str(path)], check=False, timeout=60)
    assert killed.returncode == -signal.SIGKILL
    assert path.read_bytes() == b"old"
    (left,) = set(path.parent.iterdir()) - {path}
    assert left.read_bytes() == b"new and longer"
    assert RunFolder(tmp_path).round_checkpoints() == [path]
    RunFolder(tmp_path).rewind(1)
    assert list(path.parent.iterdir()) == [path]


def test_only_what_nobody_writes_to_any_more_is_removed(tmp_path):
    ended = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    dead, host = int(ended.stdout), gethostname()
    removed = [f".a.csv.{host}.{dead}.tmp", f".b.{host}.{os.getpid()}.tmp", ".old.node7.12.tmp"]
    kept = [
        f".a.csv.{host}.{os.getppid()}.tmp",
        f".a.csv.node7.{dead}.tmp",
        f".a.csv.{host}x.{dead}.tmp",
        f"a.csv.{host}.{dead}.tmp",
        f".a.csv.{host}.{dead}",
        ".mine.tmp",
    ]
    for name in (*removed, *kept):
        (tmp_path / name).touch()
    hours_ago = time.time() - 2 * 3600
    for name in (".old.node7.12.tmp", ".mine.tmp"):
        os.utime(tmp_path / name, (hours_ago, hours_ago))
    remove_leftovers([tmp_path, tmp_path / "absent"])
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(kept)
