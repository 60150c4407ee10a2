"""Hooks into a run, and the progress bar, which is one."""

import logging
import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from fedgram.trainer import FederatedTrainer

__all__ = ["Callback", "ProgressBar"]

log = logging.getLogger(__name__)

Row = dict[str, float]


class Callback:
    """Does something at certain moments of a run; override what you need.

    Give your own in a config as ``trainer.callbacks: [{class_path: my_module.MyCallback}]``.
    """

    def on_fit_start(self, trainer: "FederatedTrainer", first_round: int) -> None:
        """Before the first round that is to be run; ``first_round`` is greater than 1 after a resume."""

    def on_round_start(self, trainer: "FederatedTrainer", round_number: int, clients: int) -> None:
        """Before local training; ``clients`` is how many this rank trains: none in round 0, which only evaluates."""

    def on_block_end(self, trainer: "FederatedTrainer", clients: int) -> None:
        """After a block of clients was trained on this rank."""

    def on_round_end(self, trainer: "FederatedTrainer", row: Row) -> None:
        """After a round was logged; ``row`` is its row of metrics.csv."""

    def on_fit_end(self, trainer: "FederatedTrainer") -> None:
        """After the last round, also when the run stops early."""


class ProgressBar(Callback):
    """Shows round, loss, metrics, seconds a round and time left; without a terminal, a log line a round."""

    def __init__(self) -> None:
        self._bar: Progress | None = None
        self._rounds: TaskID | None = None
        self._clients: TaskID | None = None
        self._metrics: Row = {}

    def on_fit_start(self, trainer: "FederatedTrainer", first_round: int) -> None:
        if trainer.fabric.global_rank:
            return
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        console = Console(stderr=True)
        if not console.is_terminal:
            return
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            TextColumn("{task.fields[unit]}"),
            MofNCompleteColumn(),
            TextColumn("{task.fields[status]}"),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
        )
        name = trainer.run_name
        self._rounds = self._bar.add_task(
            name, total=trainer.rounds, completed=first_round - 1, unit="round", status=""
        )
        self._clients = self._bar.add_task("  this round", total=None, unit="client", status="")
        self._bar.start()

    def on_round_start(self, trainer: "FederatedTrainer", round_number: int, clients: int) -> None:
        if self._bar is not None and self._clients is not None:
            self._bar.reset(self._clients, total=clients)

    def on_block_end(self, trainer: "FederatedTrainer", clients: int) -> None:
        if self._bar is not None and self._clients is not None:
            self._bar.advance(self._clients, clients)

    def on_round_end(self, trainer: "FederatedTrainer", row: Row) -> None:
        metrics = trainer.federation.evaluated(row) if trainer.federation is not None else {}
        self._metrics |= metrics  # a round that was not evaluated keeps the last metrics in sight
        if self._bar is not None and self._rounds is not None:
            self._bar.update(self._rounds, completed=row["round"], status=status_line(row, self._metrics))
        elif trainer.fabric.global_rank == 0:
            log.info("%s round %d/%d  %s", trainer.run_name, row["round"], trainer.rounds, status_line(row, metrics))

    def on_fit_end(self, trainer: "FederatedTrainer") -> None:
        if self._bar is not None:
            self._bar.stop()


def status_line(row: Row, metrics: Row) -> str:
    """Return what a round's row says in a few words, with the metrics of an evaluation.

    >>> status_line({"round": 1, "train_loss": 0.5, "seconds": 2.0}, {"accuracy": 0.75})
    'loss 0.5000  accuracy 0.7500  2.00 s/round'
    """
    figures = {"loss": row["train_loss"], **metrics} if "train_loss" in row else metrics
    shown = [f"{name} {'undefined' if math.isnan(value) else f'{value:.4f}'}" for name, value in figures.items()]
    if "seconds" in row:
        shown.append(f"{row['seconds']:.2f} s/round")
    return "  ".join(shown)
