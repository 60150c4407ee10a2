"""Running what a sweep has not finished yet, one process a run."""

import os
import signal
import subprocess
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import IO, Literal

import psutil

from fedgram.runs.lock import FolderLock
from fedgram.sweep.plan import Point
from fedgram.sweep.status import Standing, command, lock, look, remember, stand

__all__ = ["Outcome", "Progress", "expected_seconds", "run_all"]

_PAUSE = 0.2
"""Seconds between looks at the runs."""
_PATIENCE = 60.0
"""Seconds that a run has to end by itself after SIGTERM, at which it finishes its local step."""


@dataclass(frozen=True)
class Outcome:
    """How a run of this call ended.

    Attributes:
        point: which.
        exit_code: 0 where it finished.
        seconds: how long its rounds took, over all its starts; where it did not finish, how long this start took.
        said: what it wrote to the terminal.
        log: the file that has it.
        is_stopped: whether it was the sweep that ended it.
    """

    point: Point
    exit_code: int
    seconds: float
    said: str
    log: Path
    is_stopped: bool = False

    @property
    def has_failed(self) -> bool:
        """Whether it ended by itself, and did not finish."""
        return bool(self.exit_code) and not self.is_stopped

    @property
    def reason(self) -> str:
        """The last thing that the run said, which of a failed one is its error."""
        return next((line.strip() for line in reversed(self.said.split("\n")) if line.strip()), "it said nothing")


@dataclass
class Progress:
    """How far a sweep is.

    Attributes:
        total: all its runs.
        finished: those that are done, of earlier calls too.
        failed: those that failed in this call.
        elsewhere: those that another process has begun, and that are left to it.
        running: those that run, with the time since when.
        waiting: those that are to come.
        seconds: what finished runs took, by the labels of their points.
        jobs: how many run at a time.
    """

    total: int
    finished: int = 0
    failed: int = 0
    elsewhere: int = 0
    running: dict[str, tuple[Point, float]] = field(default_factory=dict)
    waiting: deque[Point] = field(default_factory=deque)
    seconds: list[tuple[Mapping[str, str], float]] = field(default_factory=list)
    jobs: int = 1

    @property
    def ended(self) -> int:
        """How many runs need no more of this call."""
        return self.finished + self.failed + self.elsewhere

    def seconds_left(self, now: float) -> float | None:
        """Return how long the rest should take, as finished runs that are most alike took; None if there are none."""
        if not self.seconds:
            return None
        begun = ((point, now - since) for point, since in self.running.values())
        rest = [max(0.0, expected_seconds(point.labels, self.seconds) - passed) for point, passed in begun]
        rest += [expected_seconds(point.labels, self.seconds) for point in self.waiting]
        return max(sum(rest) / self.jobs, max(rest, default=0.0))


def expected_seconds(labels: Mapping[str, str], known: Sequence[tuple[Mapping[str, str], float]]) -> float:
    """Return the mean time of the finished runs that share most labels with a run.

    >>> expected_seconds({"task": "rte", "seed": "1"}, [({"task": "rte", "seed": "0"}, 9.0), ({"task": "sst2"}, 1.0)])
    9.0
    """
    shared = [len(labels.items() & other.items()) for other, _ in known]
    nearest = [seconds for (_, seconds), count in zip(known, shared, strict=True) if count == max(shared)]
    return sum(nearest) / len(nearest)


@dataclass
class _Job:
    point: Point
    process: subprocess.Popen
    lock: FolderLock
    log: IO[str]
    began_at: int
    started: float


Stop = Literal["SIGINT", "SIGTERM", "SIGHUP"]


class _Signals:
    """Notes a signal to stop while it is entered, and leaves what to do about it to `run_all`."""

    def __init__(self) -> None:
        self.received: Stop | None = None

    def __enter__(self) -> "_Signals":
        names = ("SIGINT", "SIGTERM", "SIGHUP")  # Windows has no SIGHUP
        numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
        self._former = {number: signal.signal(number, self._note) for number in numbers}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number).name  # type: ignore[assignment]


def run_all(
    points: Sequence[Point], root: Path, jobs: int, tell: Callable[[Progress, Outcome | None], None]
) -> tuple[list[Outcome], Stop | None]:
    """Run the points that are not finished, and have those that were cut off go on.

    A run that fails does not stop the others. At SIGINT, SIGTERM and SIGHUP the runs end after their local step, and
    can go on. One that another process of this machine has begun is left to it.

    Args:
        points: the runs of a sweep.
        root: the folder of its runs.
        jobs: how many run at a time; they share the cores.
        tell: is told of every change: the progress, and what has just ended.

    Returns:
        How the runs of this call ended, and the signal that stopped the sweep, if one did.
    """
    progress = _survey(points, root, jobs)
    running: list[_Job] = []
    outcomes: list[Outcome] = []
    with _Signals() as signals:
        try:
            while (progress.waiting or running) and not signals.received:
                while progress.waiting and len(running) < jobs:
                    running += _begin(progress, root)
                tell(progress, None)
                time.sleep(_PAUSE)
                for job in [job for job in running if job.process.poll() is not None]:
                    running.remove(job)
                    outcomes.append(_note(progress, job, root))
                    tell(progress, outcomes[-1])
        finally:
            outcomes += _end(running, root)
    return outcomes, signals.received


def _survey(points: Sequence[Point], root: Path, jobs: int) -> Progress:
    """Return the progress that earlier calls have made, and the runs that are left, those that were cut off first."""
    standings = {point.name: look(point, root) for point in points}
    done = [point for point in points if standings[point.name].state == "finished"]
    left = [point for point in points if standings[point.name].state != "finished"]
    left.sort(key=lambda point: standings[point.name].state != "cut off")
    known = [(point.labels, float(standings[point.name].summary["seconds"])) for point in done]
    return Progress(len(points), len(done), waiting=deque(left), seconds=known, jobs=jobs)


def _begin(progress: Progress, root: Path) -> list[_Job]:
    """Start the next run; none where another process has begun or finished it meanwhile."""
    point = progress.waiting.popleft()
    held = lock(point, root)
    if held is None:
        progress.elsewhere += 1
        return []
    standing = stand(point, root)
    if standing.state == "finished":
        held.close()
        progress.finished += 1
        return []
    job = _start(point, root, standing, held, progress.jobs)
    progress.running[point.name] = (point, job.started)
    return [job]


def _start(point: Point, root: Path, standing: Standing, held: FolderLock, jobs: int) -> _Job:
    """Start a run in a process of its own, out of the terminal's reach: a Ctrl-C is for the sweep to pass on.

    The process inherits the lock, which so outlives a sweep that is killed; on Windows it can't, and has that of its
    run's folder alone.
    """
    remember(point, root, standing)
    log = (root / point.name / "log.txt").open("a")
    environment = dict(os.environ)
    if jobs > 1:
        environment.setdefault("OMP_NUM_THREADS", str(max(1, _cores() // jobs)))
    process = subprocess.Popen(
        command(point, root, standing),
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        env=environment,
        pass_fds=(held.descriptor,) if os.name == "posix" else (),
        start_new_session=True,
    )
    return _Job(point, process, held, log, log.tell(), time.monotonic())


def _note(progress: Progress, job: _Job, root: Path) -> Outcome:
    """Note that a run has ended."""
    outcome = _outcome(job, root)
    del progress.running[job.point.name]
    if outcome.has_failed:
        progress.failed += 1
    else:
        progress.finished += 1
        progress.seconds.append((job.point.labels, outcome.seconds))
    return outcome


def _outcome(job: _Job, root: Path, is_stopped: bool = False) -> Outcome:
    code, log = job.process.wait(), Path(job.log.name)
    job.log.close()
    job.lock.close()
    took = stand(job.point, root).summary.get("seconds") or time.monotonic() - job.started
    with log.open(errors="replace") as text:
        text.seek(job.began_at)
        return Outcome(job.point, code, float(took), text.read(), log, is_stopped)


def _end(jobs: Sequence[_Job], root: Path) -> list[Outcome]:
    """Have runs end where they can go on, all at once, and kill those that do not."""
    for job in jobs:
        job.process.terminate()
    deadline = time.monotonic() + _PATIENCE
    for job in jobs:
        try:
            job.process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            _kill(job.process.pid)
    return [_outcome(job, root, is_stopped=True) for job in jobs]


def _kill(pid: int) -> None:
    """Kill a process and all that it has started."""
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        for each in (process, *process.children(recursive=True)):
            with suppress(psutil.NoSuchProcess):
                each.kill()


def _cores() -> int:
    """Return how many cores this process may run on: those it is bound to, where the system can bind it to some."""
    process = psutil.Process()
    bound = len(process.cpu_affinity()) if hasattr(process, "cpu_affinity") else 0
    return bound or os.cpu_count() or 1
