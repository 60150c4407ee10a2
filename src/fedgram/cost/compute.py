"""What a run computes, in floating-point operations, kept from round to round."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fedgram.cost.client_flops import TrainingFlops, Work, flops_by_round
from fedgram.cost.server_flops import server_flops
from fedgram.engine.network import ClientNetwork
from fedgram.errors import FedgramError
from fedgram.methods import Method

__all__ = ["Compute", "Prices", "find_prices"]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prices:
    """What things cost, in operations.

    Attributes:
        training: local steps.
        aggregation: the server's part of a round.
        by_round: local steps of rounds by their numbers, where clients do not train the same fields in all of them.
    """

    training: TrainingFlops
    aggregation: int
    by_round: Mapping[int, TrainingFlops] = field(default_factory=dict)


@dataclass
class Compute:
    """The operations of a run so far, as whole numbers.

    Attributes:
        prices: what things cost; None where that is not known, and so neither are the sums.
        client_flops: of all clients in all rounds.
        server_flops: of the server.
    """

    prices: Prices | None = None
    client_flops: int = 0
    server_flops: int = 0

    def add(self, work: Work, number: int = 1) -> None:
        """Add a round, by its number, in which all clients together did some work."""
        if self.prices is not None:
            self.client_flops += self.prices.by_round.get(number, self.prices.training).of(work)
            self.server_flops += self.prices.aggregation

    def sums(self) -> dict[str, int]:
        """Return both sums by name; none where they are not known."""
        return {} if self.prices is None else {"client_flops": self.client_flops, "server_flops": self.server_flops}

    def resume(self, progress: Mapping[str, Any]) -> None:
        """Go on from a checkpoint; where its run has not counted, neither does this one."""
        if "client_flops" not in progress:
            self.prices = None
        else:
            self.client_flops, self.server_flops = int(progress["client_flops"]), int(progress["server_flops"])


def find_prices(
    network: ClientNetwork, method: Method, clients: int, cohort: int, longest: int, rounds: int
) -> Prices | None:
    """Return what a run's steps and rounds cost; None where that can't be told, of which a warning says why.

    Args:
        network: the run's.
        method: the run's.
        clients: how many there are.
        cohort: how many of them take part in a round.
        longest: tokens of the longest sample.
        rounds: how many the run has.
    """
    config: Any = network.task.loaded().config
    try:
        training = flops_by_round(network.task, config, method, longest, clients, rounds)
        by_round = dict(enumerate(training, 1)) if len(set(training)) > 1 else {}
        return Prices(training[0], server_flops(method, network.layers, clients, cohort), by_round)
    except FedgramError as error:
        log.warning("%s; client_flops and server_flops are left out", error)
        return None
