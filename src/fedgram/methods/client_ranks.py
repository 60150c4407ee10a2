"""Ranks that differ from client to client: who has which."""

from collections.abc import Mapping
from functools import lru_cache
from typing import Literal, get_args

import numpy as np

from fedgram.errors import ConfigurationError
from fedgram.seeding import numpy_generator

__all__ = ["ClientRanks", "RankDistribution", "check_ranks", "deal_ranks"]

RankDistribution = Literal["uniform", "normal", "heavy_tail"]
ClientRanks = list[int] | dict[int, float] | RankDistribution
"""One rank for every client in turn; or rank -> share of the clients that have it; or how ranks are drawn."""


def check_ranks(ranks: ClientRanks, largest: int) -> None:
    """Refuse ranks that no client can have.

    Raises:
        ConfigurationError: a rank is not in 1 to ``largest``, shares do not sum to 1, or the form is not known.
    """
    if isinstance(ranks, str):
        if ranks not in get_args(RankDistribution):
            raise ConfigurationError(
                f"method.client_ranks must be a list of ranks, shares of clients by rank, or one of "
                f"{', '.join(get_args(RankDistribution))}; got {ranks!r}"
            )
        return
    wrong = [rank for rank in ranks if not 1 <= rank <= largest]
    if wrong or not ranks:
        raise ConfigurationError(
            f"method.client_ranks must lie between 1 and method.rank = {largest}, got {wrong or 'none'}; method.rank "
            "is the largest, that of the server"
        )
    if isinstance(ranks, Mapping) and not (min(ranks.values()) >= 0 and abs(sum(ranks.values()) - 1) <= 1e-6):
        raise ConfigurationError(
            f"the shares of method.client_ranks must not be negative and sum to 1, got {dict(ranks)}; "
            "{8: 0.25, 4: 0.75} gives a quarter of the clients rank 8"
        )


def deal_ranks(ranks: ClientRanks, largest: int, clients: int, seed: int) -> np.ndarray:
    """Return the rank of every client, ``(clients,)`` int64, the same on every rank of the run.

    Args:
        ranks: one of every client in turn; shares of clients by rank, in any order, which are dealt at random, whatever
            the clients' data; or a distribution over 1 to ``largest``: "uniform", "normal" (mean in the middle,
            standard deviation a sixth of the range), or "heavy_tail" (rank k as often as 1/k: most are small).
        largest: the rank of the server.
        clients: N.
        seed: of the run.

    Raises:
        ConfigurationError: a list that has not one rank for every client.

    >>> deal_ranks({4: 0.25, 2: 0.75}, 4, 8, seed=0).tolist().count(4)
    2
    """
    if isinstance(ranks, Mapping):
        return _dealt(tuple(sorted(ranks.items())), largest, clients, seed)
    return _dealt(ranks if isinstance(ranks, str) else tuple(ranks), largest, clients, seed)


@lru_cache(maxsize=8)
def _dealt(
    ranks: tuple[tuple[int, float], ...] | tuple[int, ...] | str, largest: int, clients: int, seed: int
) -> np.ndarray:
    generator = numpy_generator(seed, "client ranks")
    if isinstance(ranks, str):
        return _drawn(ranks, largest, clients, generator)
    if ranks and isinstance(ranks[0], tuple):
        shares = dict(ranks)
        edges = np.round(np.cumsum([0.0, *shares.values()]) * clients).astype(int)
        return generator.permutation(np.repeat(np.array(list(shares)), np.diff(edges)))
    if len(ranks) != clients:
        raise ConfigurationError(
            f"method.client_ranks lists {len(ranks)} ranks for {clients} clients; give one for every client, or shares "
            "such as {8: 0.25, 4: 0.75}"
        )
    return np.array(ranks)


def _drawn(kind: str, largest: int, clients: int, generator: np.random.Generator) -> np.ndarray:
    choices = np.arange(1, largest + 1)
    if kind == "normal":
        drawn = generator.normal((1 + largest) / 2, max(1, largest - 1) / 6, clients)
        return np.clip(np.round(drawn), 1, largest).astype(np.int64)
    odds = np.ones(largest) if kind == "uniform" else 1 / choices
    return generator.choice(choices, clients, p=odds / odds.sum())
