"""What a run has of its machine and of its caller."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lightning.fabric import Fabric
from lightning.fabric.loggers.logger import Logger

from fedgram.callbacks import Callback
from fedgram.distributed.collectives import Ranks
from fedgram.runs.monitor import Mode, Monitor
from fedgram.settings import TrainerSettings

__all__ = ["Session"]


@dataclass(frozen=True)
class Session:
    """A run's settings, processes, callbacks and loggers.

    Attributes:
        settings: of the run.
        fabric: its devices and precision.
        ranks: its processes.
        run_name: of the folder below the root of all runs.
        callbacks: hooks into the run, Fabric's own among them.
        loggers: where figures go; true for TensorBoard in the run's folder, false for none.
        set_up: is called with the figure that the best checkpoint is chosen by, and with all that a round can be judged
            by, before anything is written.
    """

    settings: TrainerSettings
    fabric: Fabric
    ranks: Ranks
    run_name: str
    callbacks: Sequence[Callback]
    loggers: Logger | list[Logger] | bool
    set_up: Callable[[Monitor, Mapping[str, Mode]], None]

    @property
    def home(self) -> tuple[Path, str]:
        """The root folder of all runs, and the name of this one."""
        return self.settings.root, self.run_name
