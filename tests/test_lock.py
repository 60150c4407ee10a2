"""One process at a time at a run, or at a run of a sweep, until it ends or dies."""

import errno
import os
import signal
import time

import pytest

import fedgram.runs.lock
from fedgram.callbacks import Callback
from fedgram.errors import LockedError
from fedgram.runs.folder import RunFolder
from fedgram.runs.lock import FolderLock, is_locked, lock_run
from test_trainer import fit  # noqa: F401 (a fixture)


def content_of(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_folder_is_locked_until_the_lock_is_closed(tmp_path):
    folder = tmp_path / "new"
    assert not is_locked(folder)
    held = FolderLock.take(folder)
    assert is_locked(folder)
    assert is_locked(folder)  # to ask changes nothing
    assert FolderLock.take(folder) is None
    held.close()
    held.close()
    assert not is_locked(folder)
    FolderLock.take(folder).close()


def test_a_lock_that_is_held_for_an_instant_is_waited_for(tmp_path, monkeypatch):
    tries = iter([False, False, True])
    monkeypatch.setattr(fedgram.runs.lock, "lock_descriptor", lambda descriptor, blocking: next(tries))
    assert FolderLock.take(tmp_path) is not None


def child_with_lock(folder):
    """Fork a process that locks a folder and waits; return its number."""
    there, here = os.pipe()
    child = os.fork()
    if not child:
        os.write(here, b"1" if FolderLock.take(folder) else b"0")
        time.sleep(60)
        os._exit(0)
    assert os.read(there, 1) == b"1"
    return child


def test_the_lock_of_a_killed_process_is_free_at_once(tmp_path):
    child = child_with_lock(tmp_path)
    with pytest.raises(LockedError, match=rf"^another process is at this run: {tmp_path}; .*--ckpt_path {tmp_path}$"):
        lock_run(tmp_path)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    lock_run(tmp_path).close()


def test_without_locks_a_warning_tells_and_the_run_goes_on(tmp_path, monkeypatch, caplog):
    def refuse(descriptor, blocking):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fedgram.runs.lock, "lock_descriptor", refuse)
    lock_run(tmp_path).close()
    assert "is on a file system without locks" in caplog.text
    assert not is_locked(tmp_path)


def test_a_lock_that_cannot_be_made_is_an_error_with_a_remedy(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(LockedError, match=r"can't lock .*/file for this process \(File exists\); make it a folder"):
        lock_run(tmp_path / "file")
    (tmp_path / ".lock").mkdir()
    with pytest.raises(LockedError, match=r"can't lock .* \(Is a directory\)"):
        lock_run(tmp_path)


def test_a_lock_that_fails_is_an_error(tmp_path, monkeypatch):
    def fail(descriptor, blocking):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(fedgram.runs.lock, "lock_descriptor", fail)
    with pytest.raises(LockedError, match=r"can't lock .* \(Input/output error\)"):
        lock_run(tmp_path)


class Intruder(Callback):
    """Tries to go on with the run after a round of it, and keeps what that was told."""

    def __init__(self, attempts):
        self.attempts, self.told, self.changed = attempts, [], []

    def on_round_end(self, trainer, row):
        if row["round"] != 1:
            return
        before = content_of(trainer.folder.path)
        for attempt in self.attempts:
            with pytest.raises(LockedError) as caught:
                attempt(trainer.folder)
            self.told.append(str(caught.value))
        self.changed.append(content_of(trainer.folder.path) != before)


def test_a_second_process_at_a_run_is_refused_and_touches_nothing(fit):  # noqa: F811
    intruder = Intruder(
        [
            lambda folder: fit(rounds=9, ckpt_path="last"),
            lambda folder: fit(rounds=9, ckpt_path=str(folder.path)),
            lambda folder: fit(rounds=9, ckpt_path=str(folder.checkpoint("last"))),
        ]
    )
    _, trainer = fit(rounds=2, callbacks=[intruder])
    assert [told.partition("; ")[0] for told in intruder.told] == [
        f"another process is at this run: {trainer.folder.path}"
    ] * 3
    assert intruder.changed == [False]
    assert not is_locked(trainer.folder.path)
    again = Intruder(intruder.attempts)  # one that goes on holds the lock as well
    fit(rounds=3, ckpt_path="last", callbacks=[again, Once(again)])
    assert len(again.told) == 3


class Once(Callback):
    """Has another callback see the first round that there is, whatever its number."""

    def __init__(self, other):
        self.other = other

    def on_round_end(self, trainer, row):
        self.other.on_round_end(trainer, {"round": 1})


def test_the_lock_is_taken_before_checkpoints_are_looked_for(fit, monkeypatch):  # noqa: F811
    _, trainer = fit(rounds=1)
    held = lock_run(trainer.folder.path)
    monkeypatch.setattr("fedgram.federation.resuming.load_first", None)
    monkeypatch.setattr("fedgram.federation.setup.build", None)
    with pytest.raises(LockedError):
        fit(rounds=2, ckpt_path="last")
    held.close()


def test_an_error_lets_go_of_the_run(fit):  # noqa: F811
    class Fail(Callback):
        def on_round_end(self, trainer, row):
            raise ArithmeticError("no")

    with pytest.raises(ArithmeticError):
        fit(rounds=1, callbacks=[Fail()])
    fit(rounds=1, ckpt_path="last")


def test_a_resume_that_fails_leaves_the_summary(fit, monkeypatch):  # noqa: F811
    _, trainer = fit(rounds=2)
    summary = (trainer.folder.path / "summary.json").read_bytes()

    class Fail(Callback):
        def __init__(self, hook):
            setattr(self, hook, self.fail)

        def fail(self, **arguments):
            raise ArithmeticError("no")

    for hook in ("on_fit_start", "on_round_start", "on_block_end"):
        with pytest.raises(ArithmeticError):
            fit(rounds=3, ckpt_path="last", callbacks=[Fail(hook)])
        assert (trainer.folder.path / "summary.json").read_bytes() == summary
    with pytest.raises(ArithmeticError):  # once a further round counts, it is of another run
        fit(rounds=3, ckpt_path="last", callbacks=[Fail("on_round_end")])
    assert not (trainer.folder.path / "summary.json").exists()


def test_a_summary_of_rounds_that_are_dropped_goes_with_them(tmp_path):
    folder = RunFolder(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    for number in (1, 2):
        folder.round_checkpoint(number).touch()
    folder.write_json("summary.json", {"rounds": 2})
    folder.rewind(2)
    assert folder.read_json("summary.json") == {"rounds": 2}
    folder.rewind(1)
    assert folder.read_json("summary.json") is None
