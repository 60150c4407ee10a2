"""The settings of a run, and how single settings are checked."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from fedgram.cohort import ClientWeights, cohort_size
from fedgram.errors import ConfigurationError, require_choice
from fedgram.files import expand_home
from fedgram.names import check_path, check_run_name

__all__ = ["MOST_CLIENTS", "PersonalEvaluation", "Precision", "TrainerSettings", "check"]

MOST_ROUNDS = 100_000
"""Nobody trains for more, and what a run costs is added up round by round."""
MOST_CLIENTS = 2**24
"""Beyond it, tables of all clients take gigabytes."""
Precision = Literal["32-true", "64-true", "bf16-true", "bf16-mixed"]
PersonalEvaluation = Literal["own", "all"]


def check(
    setting: str, value: float, *, at_least: float | None = None, at_most: float | None = None, hint: str = ""
) -> None:
    """Refuse a number outside of its range; nan and infinity are outside of every one.

    Args:
        setting: its dotted name, such as method.rank.
        value: what it was set to.
        at_least: the least that it may be; None for no bound.
        at_most: the most that it may be; None for no bound.
        hint: what helps, after the value that came.

    Raises:
        ConfigurationError: it is outside.

    >>> check("method.rank", 0, at_least=1)
    Traceback (most recent call last):
        ...
    fedgram.errors.ConfigurationError: method.rank must be at least 1, got 0
    """
    expected = ""
    if at_least is not None and not value >= at_least:  # nan is not
        expected = f"at least {at_least:,}"
    elif at_most is not None and not value <= at_most:
        expected = f"at most {at_most:,}"
    elif not math.isfinite(value):
        expected = "a finite number"
    if expected:
        raise ConfigurationError(f"{setting} must be {expected}, got {value}{f'; {hint}' if hint else ''}")


@dataclass(frozen=True)
class TrainerSettings:
    """How a federation trains; `fedgram.trainer.FederatedTrainer` has what each setting means, and its default.

    Raises:
        ConfigurationError: a setting is out of range, or two contradict each other.
    """

    rounds: int
    clients: int
    participation: float
    local_epochs: int | None
    local_steps: int | None
    clients_per_block: int | Literal["auto"]
    packing: bool
    client_weights: ClientWeights
    personal_evaluation: PersonalEvaluation
    evaluate_every: int
    evaluate_at_start: bool
    monitor: str | None
    keep_last: int
    seed: int
    threads: int | None
    precision: Precision
    default_root_dir: str | Path
    name: str | None
    root: Path = field(init=False)

    def __post_init__(self) -> None:
        self._check_numbers()
        require_choice("trainer.client_weights", self.client_weights, ClientWeights)
        require_choice("trainer.personal_evaluation", self.personal_evaluation, PersonalEvaluation)
        require_choice("trainer.precision", self.precision, Precision)
        check_path("trainer.default_root_dir", str(self.default_root_dir))
        object.__setattr__(self, "root", expand_home(str(self.default_root_dir)))
        if self.name is not None:
            check_run_name("trainer.name", self.name)

    @property
    def cohort_size(self) -> int:
        """How many clients train in a round."""
        return cohort_size(self.participation, self.clients)

    def _check_numbers(self) -> None:
        check("trainer.rounds", self.rounds, at_least=1, at_most=MOST_ROUNDS)
        check("trainer.clients", self.clients, at_least=1, at_most=MOST_CLIENTS)
        counts = ("local_epochs", "local_steps", "clients_per_block", "evaluate_every", "keep_last", "threads")
        for key in counts:
            value = getattr(self, key)
            if isinstance(value, int):
                check(f"trainer.{key}", value, at_least=1)
        if self.local_epochs is not None and self.local_steps is not None:
            raise ConfigurationError(
                f"give trainer.local_epochs or trainer.local_steps, not both; got {self.local_epochs} and "
                f"{self.local_steps}"
            )
        if not 0 < self.participation <= self.clients or (self.participation > 1 and self.participation % 1):
            raise ConfigurationError(
                "trainer.participation must be a share of the clients in (0, 1], or a whole number of at most "
                f"trainer.clients = {self.clients}; got {self.participation}"
            )
        if isinstance(self.clients_per_block, int) and self.clients_per_block > self.cohort_size:
            raise ConfigurationError(
                f"trainer.clients_per_block must be at most the {self.cohort_size} clients of a round, got "
                f"{self.clients_per_block}; auto chooses for you"
            )
