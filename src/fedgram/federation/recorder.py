"""What a run writes while it goes on: its tables, its loggers and its checkpoints."""

from collections.abc import Mapping
from dataclasses import dataclass

from fedgram.ledger import Ledger
from fedgram.methods import Diagnostics
from fedgram.runs import tensorboard
from fedgram.runs.checkpoint import Checkpoint, save
from fedgram.runs.folder import RunFolder

__all__ = ["Recorder"]


@dataclass
class Recorder:
    """Writes a run's tables and checkpoints, and logs to its loggers; process 0 has the only one that is asked.

    Attributes:
        folder: the run's.
        tracker: of its loggers.
        keep_last: how many checkpoints of rounds are kept.
    """

    folder: RunFolder
    tracker: tensorboard.Tracker
    keep_last: int

    def log(
        self, row: Mapping[str, float], ledger: Ledger, diagnostics: Diagnostics, metrics: Mapping[str, float]
    ) -> None:
        """Write a round into the run's tables and loggers.

        Args:
            row: of metrics.csv.
            ledger: what travelled in the round.
            diagnostics: figures about the aggregation.
            metrics: the task's metrics in the row.
        """
        number = row["round"]
        self.folder.reopen()
        self.folder.metrics.extend([row])
        self.folder.communication.extend({"round": number, **entry} for entry in ledger.rows())
        self.folder.diagnostics.extend(
            {"round": number, "layer": name, **figures} for name, figures in diagnostics.items()
        )
        self.tracker.log_round(row, metrics, diagnostics)

    def amend(self, number: int, found: Mapping[str, float], totals: Ledger, metrics: Mapping[str, float]) -> None:
        """Add what was evaluated after a round was logged.

        Args:
            number: of the round.
            found: further columns of its row of metrics.csv.
            totals: all traffic until then.
            metrics: the task's metrics among these columns.
        """
        sent = {f"megabytes_{way}": totals.total(way).bytes / tensorboard.MEGABYTE for way in ("up", "down")}
        self.folder.metrics.amend(number, dict(found))
        self.tracker.log_round({"round": number, **sent, **found}, metrics, {})

    def save(self, checkpoint: Checkpoint, is_best: bool) -> None:
        """Save where the run stands, and as ``best`` as well if it is.

        Args:
            checkpoint: where it stands.
            is_best: whether the monitored figure has never been better.
        """
        if is_best:  # before the last, which says that it is there
            save(self.folder.checkpoint("best"), checkpoint)
        save(self.folder.round_checkpoint(checkpoint.round), checkpoint)
        self.folder.keep_checkpoints(self.keep_last)
