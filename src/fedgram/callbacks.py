"""Hooks into a run."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from lightning.fabric import Fabric

    from fedgram.runs.folder import RunFolder
    from fedgram.runs.monitor import Mode, Monitor
    from fedgram.settings import TrainerSettings

__all__ = ["Callback", "Row", "RunningTrainer"]

Row = dict[str, float]
"""A row of metrics.csv."""


class RunningTrainer(Protocol):
    """What callbacks see of a `fedgram.FederatedTrainer`.

    Attributes:
        settings: as they were given.
        plan: the same, with what was chosen for the run.
        run_name: the run's name.
        folder: the run's folder, once `fit` has begun.
        fabric: the run's devices and processes.
        federation: the run itself: a `fedgram.federation.rounds.Federation`, once `fit` has begun.
        monitored: the figure that the best checkpoint is chosen by, once data and model are known.
        should_stop: may be set, in any process, to end the run with the round that is done.
    """

    settings: "TrainerSettings"
    plan: "TrainerSettings | None"
    run_name: str
    folder: "RunFolder | None"
    federation: Any
    monitored: "Monitor"
    should_stop: bool

    @property
    def rounds(self) -> int:
        """How many rounds the run has."""

    @property
    def fabric(self) -> "Fabric":
        """The run's devices and processes."""


class Callback:
    """Does something at certain moments of a run; override what you need.

    Give your own in a config as ``trainer.callbacks: [{class_path: my_module.MyCallback}]``. Every process has its own
    objects. ``trainer.should_stop = True``, in any process, ends the run at the end of the round.
    """

    def on_setup(self, trainer: RunningTrainer, figures: Mapping[str, "Mode"]) -> None:
        """Before anything is written.

        Args:
            trainer: the run's.
            figures: the columns of metrics.csv that a round can be judged by, and which way each is better.

        Raises:
            ConfigurationError: a setting of the callback does not fit the run.
        """

    def on_fit_start(self, trainer: RunningTrainer, first_round: int) -> None:
        """Before the first round that is to be run; ``first_round`` is greater than 1 after a resume."""

    def on_round_start(self, trainer: RunningTrainer, round_number: int, clients: int) -> None:
        """Before local training; ``clients`` is how many this rank trains: none in round 0, which only evaluates."""

    def on_block_end(self, trainer: RunningTrainer, clients: int) -> None:
        """After a block of clients was trained on this rank."""

    def on_round_logged(self, trainer: RunningTrainer, row: Row) -> None:
        """Before the checkpoint of a round, which keeps what `state_dict` returns; ``row`` is that of metrics.csv."""

    def on_round_end(self, trainer: RunningTrainer, row: Row) -> None:
        """After a round counts, as its checkpoint is there; ``row`` is its row of metrics.csv."""

    def on_fit_end(self, trainer: RunningTrainer) -> None:
        """After the last round, also when the run stops early."""

    def reason_to_stop(self) -> str | None:
        """Return why the run should end after the round that is done; None where it should not.

        It is asked for at the end of each round, and where a run goes on, before a round begins.
        """
        return None

    @property
    def state_key(self) -> str:
        """The name of the callback's state in checkpoints."""
        return type(self).__name__

    def state_dict(self) -> dict[str, Any]:
        """Return what checkpoints keep of the callback, as JSON has it: dicts, lists, texts, numbers."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what `state_dict` returned, where a run goes on."""
