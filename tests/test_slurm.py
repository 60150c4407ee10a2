import os
import signal
import stat
import threading

import pytest

from fedgram.distributed.slurm import Job, StopSignals, current_job, requeue
from fedgram.errors import ConfigurationError

SLURM = ("SLURM_JOB_ID", "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID", "SLURM_RESTART_COUNT")


@pytest.mark.parametrize(
    ("environment", "job"),
    [
        ({}, None),
        ({"SLURM_JOB_ID": "17"}, Job("17")),
        ({"SLURM_JOB_ID": "17", "SLURM_RESTART_COUNT": "2"}, Job("17", 2)),
        ({"SLURM_JOB_ID": "19", "SLURM_ARRAY_JOB_ID": "17", "SLURM_ARRAY_TASK_ID": "3"}, Job("17_3")),
        ({"SLURM_JOB_ID": "17", "SLURM_ARRAY_JOB_ID": "17", "SLURM_ARRAY_TASK_ID": "0"}, Job("17_0")),
    ],
)
def test_the_job_is_read_from_the_environment(monkeypatch, environment, job):
    for name in SLURM:
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert current_job() == job


@pytest.fixture
def scontrol(monkeypatch, tmp_path):
    """Puts a program of that name on the PATH, alone."""

    def install(script):
        program = tmp_path / "scontrol"
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv("PATH", str(tmp_path))

    return install


def test_a_job_is_requeued_by_its_name(scontrol, tmp_path):
    scontrol(f'echo "$@" > {tmp_path}/said')
    assert requeue(Job("17_3"))
    assert (tmp_path / "said").read_text() == "requeue 17_3\n"


def test_where_slurm_refuses_a_warning_says_why(scontrol, caplog):
    scontrol("echo 'Requested operation is presently disabled' >&2; exit 1")
    assert not requeue(Job("17"))
    assert "job 17 is not requeued: scontrol says 'Requested operation is presently disabled'" in caplog.text


def test_a_job_that_is_in_the_queue_already_is_no_trouble(scontrol, caplog):
    scontrol("echo 'Job is pending execution for job 17' >&2; exit 1")
    assert requeue(Job("17"))
    assert "not requeued" not in caplog.text


def test_where_there_is_no_scontrol_a_warning_says_so(monkeypatch, tmp_path, caplog):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert not requeue(Job("17"))
    assert "there is no scontrol on this node" in caplog.text


@pytest.mark.parametrize("name", ["SIGUSR1", "SIGUSR2", "SIGTERM"])
def test_a_signal_is_noted_and_kills_nobody(name):
    former = signal.getsignal(signal.Signals[name])
    with StopSignals("SIGUSR2" if name == "SIGUSR2" else "SIGUSR1") as signals:
        assert signals.received is None
        os.kill(os.getpid(), signal.Signals[name])
        os.kill(os.getpid(), signal.SIGTERM)  # the first one counts
        assert signals.received == name
    assert signal.getsignal(signal.Signals[name]) == former


def test_without_an_early_signal_only_the_last_is_noted():
    former = signal.getsignal(signal.SIGUSR1)
    with StopSignals(None) as signals:
        assert signal.getsignal(signal.SIGUSR1) == former
        os.kill(os.getpid(), signal.SIGTERM)
        assert signals.received == "SIGTERM"


def test_signals_of_a_former_run_are_forgotten():
    signals = StopSignals("SIGUSR1")
    with signals:
        os.kill(os.getpid(), signal.SIGUSR1)
    with signals:
        assert signals.received is None


def test_a_thread_leaves_signals_alone():
    former, seen = signal.getsignal(signal.SIGTERM), []

    def work():
        with StopSignals("SIGUSR1") as signals:
            seen.append((signals.received, signal.getsignal(signal.SIGTERM) == former))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(None, True)]


@pytest.mark.parametrize("name", ["USR1", "SIGNOTHING", "SIGKILL", "SIGSTOP", ""])
def test_what_cannot_be_caught_is_refused(name):
    with pytest.raises(ConfigurationError, match=f"trainer.preempt_signal must name a signal .* got '{name}'"):
        StopSignals(name)
