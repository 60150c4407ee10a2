"""Hooks into a run."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fedgram.trainer import FederatedTrainer

__all__ = ["Callback", "Row"]

Row = dict[str, float]
"""A row of metrics.csv."""


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
