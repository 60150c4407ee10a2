"""SLURM: signals that announce a job's end, its way back into the queue, and the name by which it knows its runs."""

import logging
import os
import shutil
import signal
import subprocess
import threading
from dataclasses import dataclass
from types import FrameType, TracebackType
from typing import Any

from fedgram.errors import ConfigurationError

__all__ = ["DEFAULT_EARLY", "Job", "StopSignals", "current_job", "requeue"]

log = logging.getLogger(__name__)

_SECONDS_FOR_SCONTROL = 60
DEFAULT_EARLY = "SIGUSR1"
"""The signal that announces a job's end unless a run says otherwise."""


@dataclass(frozen=True)
class Job:
    """The job that this process is part of.

    Attributes:
        name: its number, or that of a task of an array such as ``17_3``; a requeued job keeps it.
        restarts: how often it was requeued.
    """

    name: str
    restarts: int = 0


def current_job() -> Job | None:
    """Return the SLURM job that this process is part of, if it is.

    A task of an array is named by array and index: the number of its own that the first task of an array has is also
    that of the whole array, and ``scontrol requeue`` would take it so.
    """
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    name = f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID")
    return Job(name, int(os.environ.get("SLURM_RESTART_COUNT", "0"))) if name else None


def requeue(job: Job) -> bool:
    """Put a job back into the queue, and say whether that worked; a warning tells why not."""
    scontrol = shutil.which("scontrol")
    if scontrol is None:
        log.warning("job %s is not requeued: there is no scontrol on this node; submit it again", job.name)
        return False
    try:
        subprocess.run(
            [scontrol, "requeue", job.name],
            capture_output=True,
            text=True,
            timeout=_SECONDS_FOR_SCONTROL,
            check=True,
        )
    except (OSError, subprocess.SubprocessError) as error:
        said = str(getattr(error, "stderr", None) or error).strip()
        if "pending" in said:
            log.info("job %s is in the queue again already", job.name)  # another run in it was faster
            return True
        log.warning("job %s is not requeued: scontrol says %r; submit it again", job.name, said)
        return False
    log.info("job %s goes back into the queue", job.name)
    return True


class StopSignals:
    """Notes the signals that ask a run to stop, while it is entered, instead of dying of them.

    That is ``SIGTERM``, and the signal that SLURM sends some time before the end where a job says so
    (``sbatch --signal=USR1@120``). A signal is only noted: the run stops when its local step is done.

    Args:
        early: the name of that signal, such as ``SIGUSR1``; None for none.

    Attributes:
        received: the name of the first signal that came.

    Raises:
        ConfigurationError: there is no signal of that name.
    """

    def __init__(self, early: str | None) -> None:
        self.received: str | None = None
        if early == DEFAULT_EARLY and not hasattr(signal, early):  # Windows, where nothing sends it
            early = None
        names = {"SIGTERM"} | ({early} if early is not None else set())
        unknown = names - {known.name for known in signal.Signals} | names & {"SIGKILL", "SIGSTOP"}
        if unknown:
            raise ConfigurationError(
                f"trainer.preempt_signal must name a signal that can be caught, such as SIGUSR1; got {unknown.pop()!r}"
            )
        self._signals = [signal.Signals[name] for name in sorted(names)]
        self._former: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "StopSignals":
        self.received = None
        if threading.current_thread() is threading.main_thread():  # Python lets no other one handle signals
            self._former = {number: signal.signal(number, self._note) for number in self._signals}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)
        self._former = {}

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = self.received or signal.Signals(number).name
