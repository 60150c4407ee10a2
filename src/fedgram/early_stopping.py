"""A callback that ends a run which no longer becomes better."""

import math
from collections.abc import Mapping
from typing import Any

from fedgram.callbacks import Callback, Row, RunningTrainer
from fedgram.errors import CheckpointError, ConfigurationError, require_choice
from fedgram.runs.monitor import Mode, Monitor, find_monitor
from fedgram.settings import check

__all__ = ["EarlyStopping"]


class EarlyStopping(Callback):
    """Ends a run once a figure has not become better for some evaluations.

    In a config: ``trainer.callbacks: [{class_path: EarlyStopping, init_args: {patience: 5}}]``. What it remembers is
    kept in checkpoints: a run that goes on ends after the same round as one in one go. One that it has ended goes on
    with a greater patience, or without it.

    Args:
        monitor: a column of metrics.csv: a metric of the task, val_loss or train_loss; that of trainer.monitor if not
            given.
        mode: whether larger ("max") or smaller ("min") is better; if not given, as it is known of the figure.
        patience: after how many evaluations in a row without a better figure the run ends; of train_loss, rounds.
        min_delta: by how much more a figure must be better to count.

    Raises:
        ConfigurationError: a setting is out of range.
    """

    def __init__(
        self, monitor: str | None = None, mode: Mode | None = None, patience: int = 3, min_delta: float = 0.0
    ) -> None:
        if mode is not None:
            require_choice("EarlyStopping.mode", mode, Mode)
        check("EarlyStopping.patience", patience, at_least=1)
        if not 0 <= min_delta < math.inf:
            raise ConfigurationError(f"EarlyStopping.min_delta must be a number of at least 0, got {min_delta}")
        self.monitor = monitor
        self.mode = mode
        self.patience = patience
        self.min_delta = min_delta
        self._watched: Monitor | None = None
        self._best, self._round, self._waited = math.nan, 0, 0

    def on_setup(self, trainer: RunningTrainer, figures: Mapping[str, Mode]) -> None:
        """Find the figure, and forget what was seen of another run."""
        setting, name = "EarlyStopping.monitor", self.monitor
        if name is None:
            setting, name = "EarlyStopping.monitor, by default trainer.monitor,", trainer.monitored.column
        self._watched = find_monitor(setting, name, figures, self.mode)
        self._best, self._round, self._waited = math.nan, 0, 0

    def on_round_logged(self, trainer: RunningTrainer, row: Row) -> None:
        """Compare the round with the best one so far, if it has the figure."""
        watched = self._watched
        if watched is None or watched.column not in row:
            return
        if watched.is_better(row[watched.column], self._best, self.min_delta):
            self._best, self._round, self._waited = row[watched.column], int(row["round"]), 0
        else:
            self._waited += 1

    def reason_to_stop(self) -> str | None:
        """Return that the figure has not become better, once it has not for long enough."""
        if self._watched is None or self._waited < self.patience:
            return None
        what = "evaluation" if self._waited == 1 else f"{self._waited} evaluations"
        than = "" if math.isnan(self._best) else f" than {self._best:.6g} of round {self._round}"
        return f"{self._watched.column} has not become better{than} for {what} (EarlyStopping)"

    @property
    def state_key(self) -> str:
        """The name of its state in checkpoints: that of another figure is another one."""
        watched = self._watched
        return type(self).__name__ if watched is None else f"{type(self).__name__} {watched.column} {watched.mode}"

    def state_dict(self) -> dict[str, Any]:
        """Return the best figure so far, its round, and for how many evaluations there was no better one."""
        return {"best": None if math.isnan(self._best) else self._best, "round": self._round, "waited": self._waited}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up the state of a checkpoint.

        Raises:
            CheckpointError: it is none that `state_dict` returns.
        """
        best, number, waited = (state.get(key) for key in ("best", "round", "waited"))
        fits = best is None or isinstance(best, int | float)
        if not (fits and isinstance(number, int) and isinstance(waited, int) and number >= 0 and waited >= 0):
            raise CheckpointError(
                f"the checkpoint has no state of {self.state_key} with best, round and waited, got {state!r}; use an "
                "older one or start again"
            )
        self._best, self._round, self._waited = math.nan if best is None else float(best), number, waited
