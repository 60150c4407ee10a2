"""What a method knows of a round beside tensors."""

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["ClientContext", "RoundContext"]


@dataclass(frozen=True)
class RoundContext:
    """A round.

    Attributes:
        number: 1 for the first.
        seed: the seed of the run, from which a method derives what it draws (see `fedgram.seeding`).
        last_rounds: every client of the cohort with the last round that it took part in; 0 for none.
        clients: N, how many clients there are, in the cohort and beside it.
    """

    number: int
    seed: int
    last_rounds: Mapping[int, int]
    clients: int = 0

    @property
    def cohort(self) -> list[int]:
        """The clients of the round, ascending: the order of every stack of uploads."""
        return sorted(self.last_rounds)


@dataclass(frozen=True)
class ClientContext:
    """One client of a round's cohort.

    Attributes:
        round: the round.
        client: the client's number.
        rank: of its adapters.
    """

    round: RoundContext
    client: int
    rank: int

    @property
    def last_round(self) -> int:
        """The last round that the client took part in; 0 for none."""
        return self.round.last_rounds[self.client]

    @property
    def is_new(self) -> bool:
        """Whether the client takes part for the first time."""
        return self.last_round == 0
