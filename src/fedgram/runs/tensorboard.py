"""What a run tells its loggers, and TensorBoard in particular.

TensorBoard calls a run by the path of its event file below the folder that it was started on. The file lies in the
run's folder where the run's name says the method, and else in a folder of the method's name in there, so that every
path says the method. Rounds are steps, but for what is told against bytes sent: TensorBoard knows whole steps only, and
bytes are whole however little a round sends; it writes them on the axis as k, M and G.
"""

import math
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.fabric.loggers.csv_logs import CSVLogger
from lightning.fabric.loggers.logger import Logger
from lightning.fabric.loggers.tensorboard import TensorBoardLogger

from fedgram.files import writing
from fedgram.methods import Diagnostics
from fedgram.runs import event_files, hparams

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["MEGABYTE", "Tracker", "default_loggers", "rewind"]

MEGABYTE = 1_000_000

_BY_BYTES = "by_bytes/"
_FINAL = "final/"
_PARTITION = "partition"
_OF_A_START = re.compile(rf"{_FINAL}|_hparams_/|{_PARTITION}$|custom_scalars__config__$")
"""Tags of what is told at the start of a run and at its end, and so anew when it goes on."""
_LAYOUT = "methods side by side"


def default_loggers(folder: Path, method: str) -> list[Logger]:
    """Return a TensorBoard logger that writes into the run's folder, where the path of its file says the method."""
    is_told = method.casefold() in folder.parent.name.casefold()
    return [TensorBoardLogger(root_dir=folder, name="", version="", sub_dir=None if is_told else method)]


def rewind(folder: Path, round_number: int, bytes_sent: int) -> None:
    """Drop from the event files of a run that goes on what they say of rounds that did not count.

    What callbacks have logged is taken to be of the round that is its step.

    Args:
        folder: the run's.
        round_number: the last round that counts.
        bytes_sent: how much was sent until then, up and down.
    """

    def counts(tag: str, step: int) -> bool:
        if _OF_A_START.match(tag):
            return False
        return step <= (bytes_sent if tag.startswith(_BY_BYTES) else round_number)

    event_files.keep(folder, counts)


class Tracker:
    """Tells loggers about a run.

    What TensorBoard needs to put runs side by side, the settings and which charts to draw, is told once the names of
    the task's metrics are known, which is at the first evaluation. So a run that was stopped is in the table of the
    HPARAMS tab as well; its final metrics are empty.

    Args:
        loggers: where to; none on all ranks but the first.
        settings: the run's settings by dotted name.
    """

    def __init__(self, loggers: list[Logger], settings: Mapping[str, Any]) -> None:
        self._loggers = loggers
        self._boards = [logger for logger in loggers if isinstance(logger, TensorBoardLogger)]
        self._settings = dict(settings)
        self._is_introduced = False

    def start(self, partition: "Figure", evaluated: Collection[str]) -> None:
        """Tell of a run that starts or goes on.

        Args:
            partition: the picture of the partition.
            evaluated: the keys of the task's metrics, where the run was evaluated before.
        """
        for logger in self._loggers:
            if isinstance(logger, TensorBoardLogger):
                with _writing(logger):
                    logger.experiment.add_figure(_PARTITION, partition, close=False)
            else:
                # Some, such as Fabric's CSVLogger, have nowhere to put them.
                with _writing(logger), suppress(NotImplementedError):
                    logger.log_hyperparams(dict(self._settings))
        if evaluated:
            self._introduce(evaluated)

    def log_round(self, row: Mapping[str, float], evaluated: Collection[str], diagnostics: Diagnostics) -> None:
        """Tell of a round: its figures, the task's metrics against bytes sent as well, and each layer's aggregation.

        A figure that is undefined, and so nan, is left out: curves have a gap there.

        Args:
            row: the round's row of metrics.csv.
            evaluated: the keys of the task's metrics in it.
            diagnostics: figures about the aggregation.
        """
        if evaluated:
            self._introduce(evaluated)
        step, sent = int(row["round"]), round(MEGABYTE * (row["megabytes_up"] + row["megabytes_down"]))
        figures = {key: value for key, value in row.items() if key != "round"}
        by_layer = {f"{key}/{name}": v for name, layer in diagnostics.items() for key, v in layer.items()}
        for logger in self._loggers:
            with _writing(logger):
                logger.log_metrics(_defined(figures | by_layer), step=step)
        for board in self._boards:
            with _writing(board):
                board.log_metrics(_defined({f"{_BY_BYTES}{key}": row[key] for key in evaluated}), step=sent)
                board.experiment.flush()  # before the checkpoint, so that a round that counts is there after a kill

    def finish(self, round_number: int, final: Mapping[str, float]) -> None:
        """Tell of a run that is over.

        Args:
            round_number: its last round.
            final: what it comes to: the task's metrics, megabytes sent and so on.
        """
        self._introduce(())
        for board in self._boards:
            with _writing(board):
                figures = _defined({f"{_FINAL}{key}": value for key, value in final.items()})
                board.log_metrics(figures, step=round_number)
                board.experiment.file_writer.add_summary(hparams.end())
        for logger in self._loggers:
            with _writing(logger):
                logger.finalize("success")

    def _introduce(self, evaluated: Collection[str]) -> None:
        """Tell TensorBoard how to hold the run against others, unless it was told."""
        if self._is_introduced:
            return
        self._is_introduced = True
        columns = [*evaluated, *(["loss"] if evaluated else []), "megabytes_up", "megabytes_down"]
        for board in self._boards:
            table = hparams.table(self._settings, {f"{_FINAL}{key}": key for key in columns})
            with _writing(board):
                writer = board.experiment
                writer.file_writer.add_summary(table)
                writer.file_writer.add_summary(hparams.start(self._settings))
                writer.add_custom_scalars({_LAYOUT: _charts(evaluated)})


@contextmanager
def _writing(logger: Logger) -> Iterator[None]:
    """Turn what a full disk raises into one line, where a logger writes into a folder and not to a service."""
    if not isinstance(logger, TensorBoardLogger | CSVLogger):
        yield
        return
    with writing(Path(logger.log_dir)):
        try:
            yield
        except ValueError as error:
            if isinstance(error.__cause__, OSError):  # which Fabric's logger takes for a wrong value
                raise error.__cause__ from error
            raise


def _defined(figures: Mapping[str, float]) -> dict[str, float]:
    return {name: value for name, value in figures.items() if not math.isnan(value)}


def _charts(evaluated: Collection[str]) -> dict[str, tuple[str, list[str]]]:
    """Return the charts of the CUSTOM SCALARS tab, each of which has the curves of all runs: title -> kind, tags."""
    first, further = list(evaluated)[:1], list(evaluated)[1:]
    tags = {
        **_charts_of(first),
        "aggregation error, by round": "aggregation_error",
        "megabytes sent up, by round": "megabytes_up",
        "megabytes sent down, by round": "megabytes_down",
        **_charts_of(further),
    }
    return {title: ("Multiline", [f"^{re.escape(tag)}$"]) for title, tag in tags.items()}


def _charts_of(evaluated: Collection[str]) -> dict[str, str]:
    """Return the charts of some of the task's metrics, with the tag of each."""
    against = {", by round": "", ", by bytes sent up and down": _BY_BYTES}
    return {f"{key}{title}": f"{prefix}{key}" for key in evaluated for title, prefix in against.items()}
