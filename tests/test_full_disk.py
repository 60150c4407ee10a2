"""A disk that fills up, or a place that may not be written to, while a run goes on: one line, wherever it happens."""

import errno
import os
import subprocess
from pathlib import Path

import pytest
from tensorboard.summary.writer.record_writer import RecordWriter

from fedgram.data.reading import read_file
from fedgram.errors import DataError

FULL = "No space left on device; free some space there, or choose another place"


def refusing_after(count, function):
    """Return a function that refuses as a full disk does, once it was called so many times."""
    calls = iter(range(count))

    def refuse(*arguments, **keywords):
        if next(calls, None) is None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return function(*arguments, **keywords)

    return refuse


def last_line(fedgram, *arguments):
    """Run a command that is to fail, and return its message; no traceback is printed, not even by a thread."""
    code, _, err = fedgram(*arguments)
    assert code == 1, err
    assert "Traceback" not in err
    return err.splitlines()[-1]


@pytest.mark.parametrize("calls", [0, 2, 5, 9])
def test_a_disk_that_is_full_after_some_files(fedgram, config, monkeypatch, calls):
    monkeypatch.setattr(os, "fsync", refusing_after(calls, os.fsync))
    message = last_line(fedgram, "fit", "--config", config, "--trainer.rounds", "1")
    assert message.startswith("fedgram: error: ")
    assert "can't write " in message
    assert message.endswith(FULL)
    assert not list(Path().rglob("*.tmp"))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("calls", [0, 1, 8])
def test_a_disk_that_is_full_when_tensorboard_writes(fedgram, config, monkeypatch, calls):
    monkeypatch.setattr(RecordWriter, "write", refusing_after(calls, RecordWriter.write))
    message = last_line(fedgram, "fit", "--config", config, "--trainer.loggers", "true", "--trainer.rounds", "1")
    assert "can't write runs/data-FLoRG/version_0: " in message
    assert message.endswith(FULL)


@pytest.mark.parametrize("name", ["partition.csv", "partition.png"])
def test_a_disk_that_is_full_when_the_partition_is_written(fedgram, config, monkeypatch, name):
    real_open = Path.open

    def open_unless_full(path, mode="r", *arguments, **keywords):
        if name in path.name and "w" in mode:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real_open(path, mode, *arguments, **keywords)

    monkeypatch.setattr(Path, "open", open_unless_full)
    message = last_line(fedgram, "fit", "--config", config)
    assert f"can't write runs/data-FLoRG/version_0/{name}: {FULL}" in message


def test_a_folder_of_runs_that_may_not_be_written_to(fedgram, config, monkeypatch):
    real_mkdir = Path.mkdir

    def mkdir(path, *arguments, **keywords):
        if path.name == "version_0":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return real_mkdir(path, *arguments, **keywords)

    monkeypatch.setattr(Path, "mkdir", mkdir)
    assert last_line(fedgram, "fit", "--config", config) == (
        "fedgram: error: trainer.default_root_dir: can't write runs/data-FLoRG: Permission denied; choose a place that "
        "you may write to"
    )


def test_a_home_of_nobody(fedgram, config, monkeypatch):
    assert last_line(fedgram, "fit", "--config", config, "--trainer.default_root_dir", "~no_such_user/runs") == (
        "fedgram: error: there is no home folder for '~no_such_user/runs'; give a path without ~, or set HOME"
    )


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_data_that_may_not_be_read_are_not_blamed_for_what_they_hold(tmp_path, monkeypatch, suffix):
    path = tmp_path / f"train{suffix}"
    path.write_text("text,label\n")
    for number in (errno.EACCES, errno.EIO):

        def refuse(*_, number=number, **__):
            raise OSError(number, os.strerror(number))

        with monkeypatch.context() as patch:
            patch.setattr(Path, "open", refuse)
            with pytest.raises(DataError) as caught:
                read_file(path, ["text"])
        assert str(caught.value) == (
            f"cannot read {path}: {os.strerror(number)}; see to its permissions, and to the disk that it is on"
        )


@pytest.fixture
def small_disk(tmp_path):
    """Mounts a file system of so many kilobytes; the test is skipped where that is not allowed."""
    place = tmp_path / "disk"
    place.mkdir()

    def mount(kilobytes):
        options = f"size={kilobytes}k,nr_inodes=200"
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)], check=False)
        if done.returncode:
            pytest.skip("mounting a file system needs root")
        return place

    yield mount
    subprocess.run(["umount", str(place)], check=False, capture_output=True)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("kilobytes", [4, 16, 24, 32, 44])
def test_a_disk_that_is_full(fedgram, config, small_disk, kilobytes):
    place = small_disk(kilobytes)
    options = ("--trainer.loggers", "true", "--trainer.rounds", "3", "--trainer.default_root_dir", place / "runs")
    message = last_line(fedgram, "fit", "--config", config, *options)
    assert f"can't write {place}" in message
    assert message.endswith(FULL)


@pytest.mark.slow
@pytest.mark.parametrize("kilobytes", [4, 12])
def test_a_cache_on_a_disk_that_is_full(fedgram, config, small_disk, kilobytes):
    place = small_disk(kilobytes)
    message = last_line(fedgram, "fit", "--config", config, "--data.cache_dir", place)
    assert message.startswith(f"fedgram: error: cannot write the cache {place / 'tokens'} (")
    assert message.endswith("set cache_dir, or FEDGRAM_CACHE, to a folder with space that you may write to")
