"""Running what a sweep has not finished yet, one process a run."""

import os
import signal
import subprocess
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import IO, Literal

from fedgram.sweep.plan import Point
from fedgram.sweep.standing import Standing, command, look, remember

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
        seconds: how long it took, from the start of its process on.
        log: what it wrote to the terminal.
    """

    point: Point
    exit_code: int
    seconds: float
    log: Path

    @property
    def reason(self) -> str:
        """The last thing that a run said, which of a failed one is its error."""
        lines = self.log.read_text(errors="replace").split("\n") if self.log.exists() else []
        return next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")


@dataclass
class Progress:
    """How far a sweep is.

    Attributes:
        total: all its runs.
        finished: those that are done, of earlier calls too.
        failed: those that failed in this call.
        running: the names of those that run.
        seconds: what finished runs took, by the labels of their points.
        jobs: how many run at a time.
    """

    total: int
    finished: int = 0
    failed: int = 0
    running: dict[str, float] = field(default_factory=dict)
    seconds: list[tuple[Mapping[str, str], float]] = field(default_factory=list)
    jobs: int = 1

    def seconds_left(self, waiting: Sequence[Point]) -> float | None:
        """Return how long the rest should take, as finished runs that are most alike took; None if there are none."""
        if not self.seconds:
            return None
        return sum(expected_seconds(point.labels, self.seconds) for point in waiting) / self.jobs


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
    log: IO[str]
    started: float


Stop = Literal["SIGINT", "SIGTERM"]


class _Signals:
    """Notes a signal to stop while it is entered, and leaves what to do about it to `run_all`."""

    def __init__(self) -> None:
        self.received: Stop | None = None

    def __enter__(self) -> "_Signals":
        self._former = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = "SIGINT" if number == signal.SIGINT else "SIGTERM"


def run_all(
    points: Sequence[Point],
    root: Path,
    jobs: int,
    tell: Callable[[Progress, Sequence[Point], Outcome | None], None],
) -> tuple[list[Outcome], Stop | None]:
    """Run the points that are not finished, and have those that were cut off go on.

    A run that fails does not stop the others. At SIGINT and SIGTERM the runs end after their local step, and can go on.

    Args:
        points: the runs of a sweep.
        root: the folder of its runs.
        jobs: how many run at a time; they share the cores.
        tell: is told of every change: the progress, the runs that are not done, and what has just ended.

    Returns:
        How the runs of this call ended, and the signal that stopped the sweep, if one did.
    """
    standings = {point.name: look(point, root) for point in points}
    progress, waiting = _survey(points, standings, jobs)
    running: list[_Job] = []
    outcomes: list[Outcome] = []
    with _Signals() as signals:
        while (waiting or running) and not signals.received:
            while waiting and len(running) < jobs:
                point = waiting.popleft()
                running.append(_start(point, root, standings[point.name], jobs))
                progress.running[point.name] = time.monotonic()
                tell(progress, _rest(waiting, running), None)
            time.sleep(_PAUSE)
            for job in [job for job in running if job.process.poll() is not None]:
                running.remove(job)
                outcomes.append(_outcome(job))
                _note(progress, outcomes[-1])
                tell(progress, _rest(waiting, running), outcomes[-1])
            tell(progress, _rest(waiting, running), None)
        outcomes += [_ended(job) for job in running]
    return outcomes, signals.received


def _survey(points: Sequence[Point], standings: Mapping[str, Standing], jobs: int) -> tuple[Progress, deque[Point]]:
    """Return the progress that earlier calls have made, and the runs that are left, those that were cut off first."""
    done = [point for point in points if standings[point.name].state == "finished"]
    left = [point for point in points if standings[point.name].state != "finished"]
    left.sort(key=lambda point: standings[point.name].state != "cut off")
    known = [(point.labels, float(standings[point.name].summary["seconds"])) for point in done]
    return Progress(len(points), len(done), seconds=known, jobs=jobs), deque(left)


def _rest(waiting: Sequence[Point], running: Sequence[_Job]) -> list[Point]:
    return [*(job.point for job in running), *waiting]


def _start(point: Point, root: Path, standing: Standing, jobs: int) -> _Job:
    """Start a run in a process of its own, out of the terminal's reach: a Ctrl-C is for the sweep to pass on."""
    remember(point, root, standing)
    log = (root / point.name / "log.txt").open("a")
    environment = dict(os.environ)
    if jobs > 1:
        environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // jobs)))
    process = subprocess.Popen(
        command(point, root, standing),
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        env=environment,
        start_new_session=True,
    )
    return _Job(point, process, log, time.monotonic())


def _outcome(job: _Job) -> Outcome:
    job.log.close()
    return Outcome(job.point, job.process.wait(), time.monotonic() - job.started, Path(job.log.name))


def _note(progress: Progress, outcome: Outcome) -> None:
    del progress.running[outcome.point.name]
    if outcome.exit_code:
        progress.failed += 1
    else:
        progress.finished += 1
        progress.seconds.append((outcome.point.labels, outcome.seconds))


def _ended(job: _Job) -> Outcome:
    """Have a run end where it can go on, and kill it if it does not."""
    job.process.terminate()
    try:
        job.process.wait(_PATIENCE)
    except subprocess.TimeoutExpired:
        os.killpg(job.process.pid, signal.SIGKILL)
    return _outcome(job)
