"""Configs that are no files: pipes are read, once and for a bounded time, and devices are refused."""

import os
import threading
import time

import pytest

from fedgram import config_file
from fedgram.config_file import MOST_BYTES, read_config
from fedgram.distributed.launch import _check_arguments
from fedgram.errors import ConfigurationError, UsageError


@pytest.fixture
def fifo(tmp_path, monkeypatch):
    monkeypatch.setattr(config_file, "PATIENCE", 0.3)
    os.mkfifo(tmp_path / "fifo")
    return tmp_path / "fifo"


def write(place, content, after=0.0):
    """Write into a pipe from another thread, as another program would."""

    def work():
        time.sleep(after)
        with place.open("wb") as pipe:
            pipe.write(content)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def test_a_pipe_that_nobody_writes_into_is_refused(fifo):
    start = time.monotonic()
    said = r"fifo: expected a config; this is a pipe, into which nothing was written in 0\.3 seconds; write"
    with pytest.raises(UsageError, match=said):
        read_config(fifo)
    assert time.monotonic() - start < 5


def test_a_pipe_that_is_not_closed_is_refused(fifo):
    with fifo.open("r+b", buffering=0) as held:
        held.write(b"a: 1\n")
        with pytest.raises(UsageError, match="into which 5 bytes and no end was written"):
            read_config(fifo)


@pytest.mark.parametrize("after", [0, 0.1])
def test_what_is_written_into_a_pipe_is_read(fifo, after):
    writer = write(fifo, b"a: 1\nb: " + b"x" * 100_000, after)
    assert read_config(fifo) == {"a": 1, "b": "x" * 100_000}
    writer.join()


def test_the_pipe_of_a_shell_is_read_also_when_its_writer_is_gone():
    """As ``--config <(...)`` gives it."""
    reader, writer = os.pipe()
    try:
        os.write(writer, b"a: 1\n")
        os.close(writer)
        assert read_config(config_file.Path(f"/dev/fd/{reader}")) == {"a": 1}
    finally:
        os.close(reader)


def test_a_pipe_without_end_is_cut(fifo, monkeypatch):
    monkeypatch.setattr(config_file, "PATIENCE", 20)
    with fifo.open("r+b", buffering=0) as held:
        threading.Thread(target=lambda: [held.write(b"#" * 65536) for _ in range(17)], daemon=True).start()
        with pytest.raises(UsageError, match=f"longer than {MOST_BYTES:,} bytes"):
            read_config(fifo)


def test_devices_are_refused(tmp_path):
    main, terminal = os.openpty()
    try:
        for place in (os.ttyname(terminal), "/dev/zero", "/dev/null"):
            with pytest.raises(UsageError, match=f"^{place}: expected a config, which is a file; this is a term"):
                read_config(config_file.Path(place))
    finally:
        os.close(main)
        os.close(terminal)


def test_several_processes_can_not_read_one_pipe(fifo):
    """Fabric starts the others with the arguments of this one."""
    _check_arguments(["fit", "--config", str(fifo.parent), "--trainer.devices=2", "x" * 9999, "a\0b"])
    for arguments in (["--config", str(fifo)], [f"--config={fifo}"]):
        with pytest.raises(ConfigurationError, match=rf"^{fifo} is a pipe, which the other processes of this"):
            _check_arguments(["fit", *arguments])
