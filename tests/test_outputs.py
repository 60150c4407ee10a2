"""Where outputs go: links, pipes, devices, folders, full disks and places that nobody may write to."""

import errno
import os
import stat
import sys
import threading
import time
from pathlib import Path

import pytest

from fedgram.errors import ConfigurationError, OutputError
from fedgram.files import append, atomic_write, check_output, expand_home, make_folder

on_linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /dev/full, or the words of Linux")


def test_what_a_link_leads_to_is_written_and_the_link_stays(tmp_path):
    target, link, dangling = (tmp_path / name for name in ("target", "link", "dangling"))
    target.write_bytes(b"old")
    link.symlink_to(target)
    dangling.symlink_to("new/deep")
    atomic_write(link, b"new")
    atomic_write(dangling, b"made")
    assert (link.is_symlink(), target.read_bytes()) == (True, b"new")
    assert (dangling.is_symlink(), (tmp_path / "new" / "deep").read_bytes()) == (True, b"made")


def test_a_device_is_written_into(tmp_path):
    device = tmp_path / "null"
    device.symlink_to("/dev/null")
    atomic_write(device, b"gone")
    assert device.is_symlink()
    assert stat.S_ISCHR(Path("/dev/null").stat().st_mode)


@on_linux
def test_a_full_device_stays_a_device():
    with pytest.raises(OutputError, match=r"can't write /dev/full: No space left on device; free some space"):
        atomic_write(Path("/dev/full"), b"content")
    assert stat.S_ISCHR(Path("/dev/full").stat().st_mode)


@pytest.mark.parametrize("by_number", [False, True])
def test_a_pipe_is_written_into(tmp_path, by_number):
    pipe, read = tmp_path / "pipe", []
    os.mkfifo(pipe)
    if by_number:  # as a shell's >(...) has it
        source, sink = os.pipe()
        atomic_write(Path(f"/dev/fd/{sink}"), b"one ", b"two")
        assert os.read(source, 10) == b"one two"
        os.close(source)
        os.close(sink)
        return
    descriptor = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    os.set_blocking(descriptor, True)
    content = bytes(2**18)  # more than a pipe holds
    writer = threading.Thread(target=lambda: atomic_write(pipe, content))
    writer.start()
    end = time.monotonic() + 20
    while sum(map(len, read)) < len(content) and time.monotonic() < end:
        read.append(os.read(descriptor, 2**16))  # of nothing as long as the writer has not opened it
    writer.join(20)
    os.close(descriptor)
    assert b"".join(read) == content
    assert stat.S_ISFIFO(pipe.stat().st_mode)


@on_linux
def test_a_pipe_that_nobody_reads_does_not_wait(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OutputError, match=r"pipe: No such device or address; nobody reads from it"):
        atomic_write(tmp_path / "pipe", b"content")


def test_a_file_that_is_open_as_standard_output_is_added_to(tmp_path):
    with (tmp_path / "out").open("wb") as file:
        file.write(b"before, ")
        file.flush()
        atomic_write(Path(f"/dev/fd/{file.fileno()}"), b"content")
    assert (tmp_path / "out").read_bytes() == b"before, content"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("", r"can't write '.*': it names a folder and no file"),
        ("/", r"can't write '/': it names a folder"),
        (".", "it names a folder"),
        ("..", "it names a folder"),
        ("folder", "folder: it is a folder; give the name of a file"),
        ("folder_link", "it is a folder"),
        ("loop", "it is a link that leads to itself"),
        ("file/below", "Not a directory; a part of the path is a file"),
        ("x" * 300, "File name too long; choose a shorter name"),
        ("a\0b", "null byte|null character"),
    ],
)
def test_a_place_that_is_none_for_a_file_is_refused_before_and_when_it_is_written(tmp_path, monkeypatch, name, message):
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    Path("file").write_bytes(b"old")
    Path("folder_link").symlink_to("folder")
    Path("loop").symlink_to("loop")
    with pytest.raises(OutputError, match=message):
        atomic_write(Path(name), b"content")
    if name not in ("x" * 300, "file/below"):
        with pytest.raises(OutputError, match=message):
            check_output(Path(name))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder", "folder_link", "loop"]


def test_sockets_and_disks_are_refused(tmp_path, monkeypatch):
    (tmp_path / "disk").touch()
    for kind in (stat.S_IFBLK, stat.S_IFSOCK):
        monkeypatch.setattr("fedgram.files._mode", lambda path, kind=kind: kind | 0o600)
        with pytest.raises(OutputError, match="it is neither a file nor a pipe"):
            atomic_write(tmp_path / "disk", b"content")


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (errno.ENOSPC, "free some space there, or choose another place"),
        (errno.EDQUOT, "free some space there, or choose another place"),
        (errno.EROFS, "choose a place that you may write to"),
        (errno.EACCES, "choose a place that you may write to"),
        (errno.EIO, "choose another place"),
    ],
)
def test_what_the_system_refuses_is_one_line_with_path_reason_and_remedy(tmp_path, monkeypatch, number, remedy):
    def refuse(*_, **__):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refuse)
    path = tmp_path / "file"
    for write in (atomic_write, append):
        with pytest.raises(OutputError) as caught:
            write(path, b"content")
        assert str(caught.value) == f"can't write {path}: {os.strerror(number)}; {remedy}"
    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(OutputError, match=remedy):
        make_folder(tmp_path / "folder")


def test_a_home_of_nobody():
    with pytest.raises(ConfigurationError, match=r"no home folder for '~no_such_user/runs'; give a path without ~"):
        expand_home("~no_such_user/runs")


@pytest.mark.parametrize("output", ["folder", "", "/", "/dev/full/x"])
def test_predict_refuses_an_output_before_it_reads_a_model(fedgram, config, output):
    Path("folder").mkdir()
    code, out, err = fedgram("predict", "--config", config, "--ckpt_path", "none", "--output", output)
    assert (code, out) == (1, "")
    assert err.startswith("fedgram: error: can't write ")
    assert err.count("\n") == 1


@on_linux
def test_predict_into_a_full_device(fedgram, config):
    code, _, err = fedgram("predict", "--config", config, "--ckpt_path", "none", "--output", "/dev/full")
    assert code == 1
    assert "fedgram: error: can't write /dev/full: No space left on device" in err.splitlines()[-1]
    assert stat.S_ISCHR(Path("/dev/full").stat().st_mode)
