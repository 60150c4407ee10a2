"""What a run tells its loggers, and TensorBoard in particular."""

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.fabric.loggers.logger import Logger
from lightning.fabric.loggers.tensorboard import TensorBoardLogger

from fedgram.methods import Diagnostics

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["default_loggers", "log_diagnostics", "log_figure", "log_hyperparameters", "log_round"]

MEGABYTE = 1_000_000


def default_loggers(folder: Path) -> list[Logger]:
    """Return a TensorBoard logger that writes into the run's folder."""
    return [TensorBoardLogger(root_dir=folder, name="", version="")]


def log_round(loggers: list[Logger], row: Mapping[str, float], evaluated: list[str]) -> None:
    """Log a round's figures against the round, and the task's metrics against megabytes sent as well.

    Args:
        loggers: where to.
        row: the round's row of metrics.csv.
        evaluated: the keys of the task's metrics in it.
    """
    step = int(row["round"])
    for logger in loggers:
        logger.log_metrics({key: value for key, value in row.items() if key != "round"}, step=step)
        if isinstance(logger, TensorBoardLogger):
            megabytes = round(row["megabytes_up"] + row["megabytes_down"])
            logger.log_metrics({f"by_megabytes/{key}": row[key] for key in evaluated}, step=megabytes)


def log_diagnostics(loggers: list[Logger], figures: Diagnostics, step: int) -> None:
    """Log the figures about an aggregation, layer by layer."""
    for logger in loggers:
        logger.log_metrics(
            {f"{key}/{name}": v for name, layer in figures.items() for key, v in layer.items()}, step=step
        )


def log_figure(loggers: list[Logger], tag: str, figure: "Figure") -> None:
    """Show a picture in TensorBoard."""
    for logger in loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_figure(tag, figure, close=False)


def log_hyperparameters(loggers: list[Logger], settings: Mapping[str, Any], metrics: Mapping[str, float]) -> None:
    """Log the run's settings with its final metrics, so that runs can be compared in TensorBoard's HPARAMS tab."""
    for logger in loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.log_hyperparams(dict(settings), {f"final/{key}": value for key, value in metrics.items()})
        else:
            with suppress(NotImplementedError):  # some loggers, such as Fabric's CSVLogger, have nowhere to put them
                logger.log_hyperparams(dict(settings))
