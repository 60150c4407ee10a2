"""Sweeps on Windows, where a process can't be handed an open file that is locked."""

import os
import subprocess

from test_runner import points, scripted, silent  # noqa: F401

from fedgram.runs.lock import is_locked
from fedgram.sweep import runner
from fedgram.sweep.runner import run_all


class Windows:
    """The module os, on Windows."""

    name = "nt"

    def __getattr__(self, name):
        if name in ("sched_getaffinity", "killpg", "fork", "set_inheritable"):
            raise AttributeError(name)
        return getattr(os, name)


class Popen(subprocess.Popen):
    """What Python does there with what only Unix has."""

    def __init__(self, *arguments, pass_fds=(), preexec_fn=None, **options):
        assert not pass_fds, "pass_fds not supported on Windows."
        if preexec_fn is not None:
            raise ValueError("preexec_fn is not supported on Windows platforms")
        super().__init__(*arguments, **options)


def test_two_runs_at_a_time(tmp_path, scripted, monkeypatch):  # noqa: F811
    monkeypatch.setattr(runner, "os", Windows())
    monkeypatch.setattr(runner.subprocess, "Popen", Popen)
    runs = tmp_path / "runs"
    outcomes, stopped = run_all(points(tmp_path, "work", "work", "fail"), runs, 2, silent)
    assert stopped is None
    assert {outcome.point.name: outcome.exit_code for outcome in outcomes} == {"work-0": 0, "work-1": 0, "fail-2": 1}
    assert not any(is_locked(runs / name) for name in ("work-0", "work-1", "fail-2"))
