"""How far a run has come, and what it has come to."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fedgram.cost.compute import Compute
from fedgram.ledger import Ledger
from fedgram.runs.folder import is_loss
from fedgram.runs.monitor import LOSS, Monitor

__all__ = ["Progress"]


@dataclass
class Progress:
    """What a checkpoint keeps of a run beside tensors and settings.

    Attributes:
        monitor: the figure that the best checkpoint is chosen by.
        compute: all operations so far.
        devices: the kinds of devices that the run has had so far, in the order of their first use.
        finished: the last round that is done; 0 is the evaluation before training, -1 that nothing is.
        totals: all traffic so far.
        seconds: time spent in rounds so far, over all starts of the run.
        seconds_training: of these, those of local training and of the server, without evaluation and figures.
        initial: the evaluation before training.
        metrics: the last evaluation.
        best: the evaluation with the best monitored figure, with its round; empty where that was never defined.
        evaluated_at: the last round that was evaluated; -1 where none was.
        stopped: why the run ends with the round that is done; None where it does not.
        stopped_for_rounds: the number of rounds that the run was to have when it was stopped for good: it goes on only
            if it is given more. None where it was not.
    """

    monitor: Monitor = LOSS
    compute: Compute = field(default_factory=Compute)
    devices: list[str] = field(default_factory=list)
    finished: int = -1
    totals: Ledger = field(default_factory=Ledger)
    seconds: float = 0.0
    seconds_training: float = 0.0
    initial: dict[str, float] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    best: dict[str, float] = field(default_factory=dict)
    evaluated_at: int = -1
    stopped: str | None = None
    stopped_for_rounds: int | None = None

    def metrics_of(self, row: Mapping[str, float]) -> dict[str, float]:
        """Return the task's metrics, without losses, in a row of metrics.csv; none where it was not evaluated."""
        return {key: row[key] for key in self.metrics if not is_loss(key) and key in row}

    def note_best(self, row: Mapping[str, float]) -> bool:
        """Return whether the monitored figure has never been better than in a row of the last round, and note it."""
        figure, key = row.get(self.monitor.column, math.nan), self.monitor.key
        better = self.monitor.is_better(figure, self.best.get(key, math.nan))
        if better:
            evaluated = self.metrics if self.evaluated_at == self.finished else {}
            self.best = {"round": self.finished, **evaluated, key: figure}
        return better

    def to_json(self) -> dict[str, Any]:
        """Return all of it but `finished`, as numbers, texts, lists and dicts."""
        kept = None if self.stopped_for_rounds is None else {"reason": self.stopped, "rounds": self.stopped_for_rounds}
        return {
            "totals": self.totals.rows(),
            **self.compute.sums(),
            "seconds": self.seconds,
            "seconds_training": self.seconds_training,
            "initial": self.initial,
            "metrics": self.metrics,
            "best": self.best,
            "devices": self.devices,
            "monitor": self.monitor.key,
            "evaluated": self.evaluated_at,
            "stopped": kept,
        }

    def resume(self, saved: Mapping[str, Any], finished: int, rounds: int) -> None:
        """Go on where a checkpoint stands.

        Args:
            saved: what `to_json` returned then; what former versions left out is taken to be as it was with them.
            finished: the checkpoint's round.
            rounds: how many the run has now.
        """
        self.finished = finished
        self.totals = Ledger.of(saved["totals"])
        self.compute.resume(saved)
        self.seconds, self.seconds_training = saved["seconds"], saved["seconds_training"]
        self.initial, self.metrics = saved["initial"], saved["metrics"]
        self.best = saved["best"] if self.monitor.key in saved["best"] else {}  # it was chosen by another figure
        self.evaluated_at = saved.get("evaluated", finished)
        stopped = saved.get("stopped")
        if stopped is not None and rounds <= stopped["rounds"]:
            self.stopped, self.stopped_for_rounds = stopped["reason"], rounds
        self.devices = list(dict.fromkeys([*saved["devices"], *self.devices]))
