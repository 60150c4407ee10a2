"""The figures that a run can be judged by while it trains, by the names of their columns in metrics.csv."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from fedgram.data import FederatedData
from fedgram.errors import ConfigurationError
from fedgram.models import FederatedTask
from fedgram.runs.folder import column_of, is_loss

__all__ = ["LOSS", "TRAIN_LOSS", "Mode", "Monitor", "figures_of", "find_monitor"]

Mode = Literal["max", "min"]
"""Whether larger or smaller is better."""
TRAIN_LOSS = "train_loss"


@dataclass(frozen=True)
class Monitor:
    """A figure that is watched.

    Attributes:
        column: its column in metrics.csv.
        mode: whether larger or smaller is better.
    """

    column: str
    mode: Mode

    @property
    def key(self) -> str:
        """Its name among the metrics of an evaluation.

        >>> Monitor("val_loss", "min").key, Monitor("accuracy", "max").key
        ('loss', 'accuracy')
        """
        own = self.column.removeprefix("val_")
        return own if is_loss(own) else self.column

    def is_better(self, new: float, old: float, by: float = 0.0) -> bool:
        """Return whether a figure is better than another by more than a margin; nan is never better, and always worse.

        >>> Monitor("loss", "min").is_better(0.4, 0.5), Monitor("loss", "min").is_better(0.4, 0.5, by=0.2)
        (True, False)
        """
        if math.isnan(new) or math.isnan(old):
            return not math.isnan(new)
        return new > old + by if self.mode == "max" else new < old - by


LOSS = Monitor("val_loss", "min")


def figures_of(task: FederatedTask, data: FederatedData) -> dict[str, Mode]:
    """Return the columns of metrics.csv that are known before the first round, and which way each is better.

    Args:
        task: the task, configured for the data.
        data: the data; without a validation split there is the training loss alone.
    """
    suffixes = data.parts("validation") if "validation" in data.tables else {}
    found: dict[str, Mode] = {}
    for suffix in suffixes:
        found |= {f"{name}{suffix}": mode for name, mode in task.directions.items()}
    return found | {column_of(f"loss{suffix}"): "min" for suffix in suffixes} | {TRAIN_LOSS: "min"}


def find_monitor(setting: str, name: str, figures: Mapping[str, Mode], mode: Mode | None = None) -> Monitor:
    """Return a figure by its name: a column of metrics.csv, or the key of an evaluation, such as loss.

    Args:
        setting: what asks for it.
        name: of the figure.
        figures: those that there are.
        mode: which way is better, if not as is known.

    Raises:
        ConfigurationError: there is none of this name.
    """
    column = column_of(name)
    if column not in figures:
        without = "" if len(figures) > 1 else "; there is no validation split"
        raise ConfigurationError(f"{setting} must be one of {', '.join(figures)}; got {name!r}{without}")
    return Monitor(column, mode or figures[column])
