"""Progress of a run: a live display in a terminal or a notebook, and one line a round in a pipe or a file."""

import io
import logging
import math
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from fedgram.callbacks import Callback, Row, RunningTrainer

if TYPE_CHECKING:
    from rich.console import Console, RenderableType


__all__ = ["ProgressBar", "RemainingTime", "duration", "status_line"]

log = logging.getLogger(__name__)

_RECENT = 10
"""Rounds, and evaluations, whose mean time the next ones are expected to take."""
_BAR = 20
"""Columns of a bar."""
_NOTEBOOK = 100
"""Columns of the display in a notebook."""


class RemainingTime:
    """Estimate of the seconds that a run still takes, from the rounds and clients that are done.

    Training takes as long as in the recent rounds, on average, and in the first round as long as its clients so far
    make expect; evaluations are counted apart, by those that were seen.

    Args:
        rounds: the number of the last round.
        is_evaluated: returns whether a round, by its number, is evaluated.
        clock: returns seconds since some moment.
    """

    def __init__(
        self, rounds: int, is_evaluated: Callable[[int], bool], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._rounds, self._is_evaluated, self._clock = rounds, is_evaluated, clock
        self._training: deque[float] = deque(maxlen=_RECENT)
        self._evaluation: deque[float] = deque(maxlen=_RECENT)
        self._number = self._clients = self._done = 0
        self._started = self._changed = clock()

    def start_round(self, number: int, clients: int) -> None:
        """Begin a round in which this process trains some clients."""
        self._number, self._clients, self._done = number, clients, 0
        self._started = self._changed = self._clock()

    def finish_clients(self, count: int) -> None:
        """Count clients of the round as trained."""
        self._done += count
        self._changed = self._clock()

    def finish_round(self, row: Row) -> None:
        """End a round with its row of metrics.csv."""
        training = row.get("seconds_local", 0.0) + row.get("seconds_server", 0.0)
        if self._number:
            self._training.append(training)
        if self._is_evaluated(self._number):
            self._evaluation.append(max(row["seconds"] - training, 0.0))
        self._number, self._clients, self._done = self._number + 1, 0, 0
        self._started = self._changed = self._clock()

    def seconds(self) -> float | None:
        """Return the estimate; None before the first client is done."""
        if self._number > self._rounds:
            return 0.0
        share = self._done / self._clients if self._clients else 0.0
        pace = self._pace(share)
        if pace is None:
            return None
        evaluation = sum(self._evaluation) / len(self._evaluation) if self._evaluation else 0.0
        current = pace * (1 - share) + evaluation * self._is_evaluated(self._number)
        later = sum(map(self._is_evaluated, range(self._number + 1, self._rounds + 1)))
        waited = self._clock() - self._changed
        return max(current - waited, 0.0) + pace * (self._rounds - self._number) + evaluation * later

    def _pace(self, share: float) -> float | None:
        """Return the seconds of training in a round, of whose clients a share is done."""
        if self._training:
            return sum(self._training) / len(self._training)
        return (self._changed - self._started) / share if share else None


class _Display(Protocol):
    """Where a run's progress is shown."""

    width: int

    def update(self) -> None: ...

    def stop(self) -> None: ...


class _Terminal:
    """A display that redraws itself at the bottom of a terminal."""

    def __init__(self, console: "Console", rendered: "Callable[[], RenderableType]") -> None:
        from rich.live import Live

        self.width = console.width
        self._live = Live(console=console, get_renderable=rendered, refresh_per_second=4)
        self._live.start()

    def update(self) -> None:
        """Do nothing: a thread of Rich redraws it."""

    def stop(self) -> None:
        self._live.stop()


class _Notebook:
    """An output of a notebook's cell, which is replaced whenever something has changed."""

    width = _NOTEBOOK

    def __init__(self, rendered: "Callable[[], RenderableType]") -> None:
        from IPython.display import display

        self._rendered = rendered
        self._output = display(self._bundle(""), raw=True, display_id=True)

    def update(self) -> None:
        from rich.console import Console

        console = Console(file=io.StringIO(), width=self.width, force_jupyter=False, color_system=None)
        with console.capture() as text:
            console.print(self._rendered())
        self._output.update(self._bundle(text.get()), raw=True)

    def stop(self) -> None:
        self.update()

    @staticmethod
    def _bundle(text: str) -> dict[str, Any]:
        return {"text/plain": text}


class ProgressBar(Callback):
    """Shows round, clients of the round, loss, metrics, pace and time left; in a pipe or a file, one line a round."""

    def __init__(self) -> None:
        self._display: _Display | None = None
        self._trainer: RunningTrainer | None = None
        self._left: RemainingTime | None = None
        self._round = self._clients = self._done = 0
        self._metrics: Row = {}
        self._status = ""
        self._stage = "this round"

    def on_fit_start(self, trainer: RunningTrainer, first_round: int) -> None:
        if trainer.fabric.global_rank:
            return
        self._trainer, self._round = trainer, max(first_round - 1, 0)
        federation = trainer.federation
        self._left = RemainingTime(trainer.rounds, (lambda _: False) if federation is None else federation.is_due)
        self._display = _display(self._rendered)

    def on_round_start(self, trainer: RunningTrainer, round_number: int, clients: int) -> None:
        self._clients, self._done = clients, 0
        self._stage = "this round" if clients else "evaluating"
        if self._left is not None:
            self._left.start_round(round_number, clients)
        self._update()

    def on_block_end(self, trainer: RunningTrainer, clients: int) -> None:
        self._done += clients
        federation = trainer.federation
        if self._done == self._clients and federation is not None and federation.is_due(self._round + 1):
            self._stage = "evaluating"
        if self._left is not None:
            self._left.finish_clients(clients)
        self._update()

    def on_round_end(self, trainer: RunningTrainer, row: Row) -> None:
        if self._left is None:
            return
        metrics = trainer.federation.progress.metrics_of(row) if trainer.federation is not None else {}
        self._metrics |= metrics  # a round that was not evaluated keeps the last metrics in sight
        self._round = int(row["round"])
        self._left.finish_round(row)
        self._stage = "this round"
        self._status = status_line(row, self._metrics)
        self._update()
        if self._display is None:
            left = f"{duration(self._left.seconds())} left"
            where = f"{trainer.run_name} round {self._round}/{trainer.rounds}"
            log.info("%s %s  %s  %s", time.strftime("%H:%M:%S"), where, status_line(row, metrics), left)

    def on_fit_end(self, trainer: RunningTrainer) -> None:
        if self._display is not None:
            self._display.stop()

    def _update(self) -> None:
        if self._display is not None:
            self._display.update()

    def _rendered(self) -> "RenderableType":
        """Return three lines: the run, its round and time left; clients of the round; figures of the round before."""
        from rich.console import Group
        from rich.progress_bar import ProgressBar as Bar
        from rich.table import Table
        from rich.text import Text

        if self._trainer is None or self._left is None or self._display is None:
            return ""  # it is drawn while it is made
        rounds = self._trainer.rounds
        numbers = [f"round {self._round}/{rounds}", f"client {self._done}/{self._clients}" if self._clients else ""]
        left = f"{duration(self._left.seconds())} left"
        width = self._display.width - _BAR - max(map(len, numbers)) - len(left) - 3
        table = Table.grid(padding=(0, 1))
        table.add_row(_cut(self._trainer.run_name, width), Bar(rounds, self._round, _BAR), numbers[0], left)
        table.add_row(_cut(f"  {self._stage}", width), Bar(max(self._clients, 1), self._done, _BAR), numbers[1], "")
        return Group(table, Text(f"  {self._status}"))


def _display(rendered: "Callable[[], RenderableType]") -> _Display | None:
    """Return a display of what is rendered; None where output goes into a pipe or a file."""
    from rich.console import Console

    console = Console(stderr=True)
    if console.is_jupyter:  # where Rich's own display needs ipywidgets, and shows nothing without
        return _Notebook(rendered)
    return _Terminal(console, rendered) if console.is_terminal else None


def _cut(text: str, width: int) -> str:
    """Return a text that is no wider than some columns, with an ellipsis for what was cut off."""
    return text if len(text) <= max(width, 8) else text[: max(width, 8) - 1] + "…"


def duration(seconds: float | None) -> str:
    """Return a duration in hours, minutes and seconds.

    >>> duration(83.4), duration(7265), duration(None)
    ('1:23', '2:01:05', '-:--')
    """
    if seconds is None:
        return "-:--"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def status_line(row: Row, metrics: Row) -> str:
    """Return loss, metrics of an evaluation and times of a round's row of metrics.csv.

    >>> row = {"train_loss": 0.5, "accuracy": 0.75, "seconds_local": 1.5, "seconds_server": 0.5, "seconds": 3.0}
    >>> status_line(row, {"accuracy": 0.75})
    'loss 0.5000  accuracy 0.7500  2.00 s/round + 1.00 s evaluation'
    """
    figures = {"loss": row["train_loss"], **metrics} if "train_loss" in row else metrics
    shown = [f"{name} {'undefined' if math.isnan(value) else f'{value:.4f}'}" for name, value in figures.items()]
    training = row.get("seconds_local", 0.0) + row.get("seconds_server", 0.0)
    times = [f"{training:.2f} s/round"] if training else []
    if row.keys() & metrics.keys() and row["seconds"] > training:
        times.append(f"{row['seconds'] - training:.2f} s evaluation")
    return "  ".join([*shown, " + ".join(times)]).strip()
