"""How the samples of a data set are dealt to clients."""

from itertools import pairwise

import numpy as np

from fedgram.data.shards import Samples, Shards, checked_owners
from fedgram.errors import ConfigurationError, DataError
from fedgram.seeding import numpy_generator

__all__ = [
    "IID",
    "Dirichlet",
    "Partition",
    "Samples",
    "Shards",
    "deal_like",
    "quantile_edges",
    "quantile_groups",
    "quantile_names",
]


class Partition:
    """A rule that deals the samples of a training set to clients: a pure function of (labels, clients, seed).

    A rule of one's own defines `owners`; or `owners_of`, which also gets the row of the file that each sample was, such
    as one that looks the user of every row up in a list. What it returns is checked.
    """

    def __call__(self, labels: np.ndarray, clients: int, seed: int) -> Shards:
        """Deal every sample to exactly one client, and at least one sample to every client.

        Args:
            labels: the class of each sample, int64 ``(samples,)``.
            clients: how many clients there are.
            seed: the seed of the run.

        Raises:
            ConfigurationError: if there is no client.
            DataError: if there are fewer samples than clients need, or owners that are no clients or not one a sample.
        """
        return self.deal(Samples.of(labels), clients, seed)

    def deal(self, samples: Samples, clients: int, seed: int) -> Shards:
        """Deal samples as `__call__` does, by what is known of them besides their labels."""
        if clients < 1:
            raise ConfigurationError(f"clients must be at least 1, got {clients}")
        if clients > len(samples):
            raise DataError(
                f"{clients:,} clients cannot share {samples}: each needs at least one;"
                f" set clients to {len(samples)} or fewer, or use more data"
            )
        owners = self.owners_of(samples, clients, seed)
        return Shards.of(checked_owners(owners, samples, clients, type(self).__name__), clients)

    def owners_of(self, samples: Samples, clients: int, seed: int) -> np.ndarray:
        """Return the client of each sample, int64 ``(samples,)``: what `owners` says of the labels, by default."""
        return self.owners(samples.labels, clients, seed)

    def owners(self, labels: np.ndarray, clients: int, seed: int) -> np.ndarray:
        """Return the client of each sample, int64 ``(samples,)``."""
        raise ConfigurationError(
            f"the partition {type(self).__name__} must define owners(labels, clients, seed), or"
            " owners_of(samples, clients, seed)"
        )


class IID(Partition):
    """Deals the samples at random; the sizes of clients differ by one at most."""

    def owners(self, labels: np.ndarray, clients: int, seed: int) -> np.ndarray:
        owners = np.empty(len(labels), np.int64)
        owners[numpy_generator(seed, "partition").permutation(len(labels))] = np.arange(len(labels)) % clients
        return owners


class Dirichlet(Partition):
    """Deals each label to the clients in proportions that are drawn from a symmetric Dirichlet distribution.

    Args:
        rho: concentration. Small values give clients of few labels and unequal size, large ones near-equal clients.
        min_samples: no client is left with fewer samples: what it lacks is taken, one sample at a time, from the
            client that is the largest at that moment. 0 moves nothing, and refuses a draw that leaves a client empty.
    """

    def __init__(self, rho: float = 0.5, min_samples: int = 1) -> None:
        if not 0 < rho < float("inf"):
            raise ConfigurationError(f"rho must be a positive number, got {rho}; IID is the limit of large rho")
        if min_samples < 0:
            raise ConfigurationError(f"min_samples must be at least 0, got {min_samples}")
        self.rho = rho
        self.min_samples = min_samples

    def owners(self, labels: np.ndarray, clients: int, seed: int) -> np.ndarray:
        self._check(labels, clients)
        owners = np.empty(len(labels), np.int64)
        for label in np.unique(labels):
            generator = numpy_generator(seed, "partition", int(label))
            samples = generator.permutation(np.flatnonzero(labels == label))
            cuts = np.rint(np.cumsum(_proportions(generator, self.rho, clients)) * len(samples)).astype(np.int64)
            # The sum of the proportions may miss 1 by rounding; the last client takes what is left.
            cuts[-1] = len(samples)
            owners[samples] = np.repeat(np.arange(clients), np.diff(cuts, prepend=0))
        return self._filled(owners, clients, numpy_generator(seed, "partition-moves"))

    def _check(self, labels: np.ndarray, clients: int) -> None:
        if not np.issubdtype(labels.dtype, np.integer):
            raise DataError(
                f"Dirichlet deals by class, but the labels are {labels.dtype} numbers; use the partition IID"
            )
        if clients * self.min_samples > len(labels):
            raise DataError(
                f"{clients:,} clients with at least {self.min_samples} samples each need"
                f" {clients * self.min_samples:,} training samples, got {len(labels):,}; lower min_samples or clients"
            )

    def _filled(self, owners: np.ndarray, clients: int, generator: np.random.Generator) -> np.ndarray:
        sizes = np.bincount(owners, minlength=clients)
        if self.min_samples:
            return _moved(owners, sizes, self.min_samples, generator)
        empty = np.flatnonzero(sizes == 0)
        if len(empty):
            named = ", ".join(map(str, empty[:5])) + (", ..." if len(empty) > 5 else "")
            raise DataError(
                f"{len(empty):,} of {clients:,} clients got no sample ({named});"
                f" set min_samples to 1, raise rho (now {self.rho}), or use fewer clients"
            )
        return owners


def _proportions(generator: np.random.Generator, rho: float, clients: int) -> np.ndarray:
    """Draw from Dir(rho, ..., rho), float64 ``(clients,)``."""
    proportions = generator.dirichlet(np.full(clients, rho))
    if np.isfinite(proportions).all() and proportions.sum() > 0.5:
        return proportions
    # Every gamma variate underflowed: in the limit of small rho, one client holds all.
    return np.eye(1, clients, int(generator.integers(clients)))[0]


def _surplus(sizes: np.ndarray, wanted: int) -> np.ndarray:
    """Return how many samples each client gives if ``wanted`` go one at a time from the largest, int64 ``(clients,)``.

    That process levels the largest clients down, so the level is searched instead; of equals, the first gives first.
    """
    low, high = 0, int(sizes.max())
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if np.maximum(sizes - middle, 0).sum() <= wanted else (middle + 1, high)
    given = np.maximum(sizes - low, 0)
    rest = wanted - int(given.sum())
    given[np.flatnonzero(sizes >= low)[:rest]] += 1
    return given


def _moved(owners: np.ndarray, sizes: np.ndarray, least: int, generator: np.random.Generator) -> np.ndarray:
    """Move random samples of the largest clients to those with fewer than ``least``."""
    lacking = np.maximum(least - sizes, 0)
    if not lacking.any():
        return owners
    shuffled = generator.permutation(len(owners))
    shuffled = shuffled[np.argsort(owners[shuffled], kind="stable")]
    rank = np.arange(len(owners)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    leaving = shuffled[rank < _surplus(sizes, int(lacking.sum()))[owners[shuffled]]]
    moved = owners.copy()
    moved[generator.permutation(leaving)] = np.repeat(np.arange(len(sizes)), lacking)
    return moved


def deal_like(shards: Shards, groups: np.ndarray, other_groups: np.ndarray, seed: int) -> Shards:
    """Deal the samples of another split, so that a client has its training data's share of every group.

    Of the samples of group g, client c gets ``counts[c, g] / sum_c counts[c, g]``, rounded to one of the neighbouring
    whole numbers by largest remainder; chance decides which samples, and which of equal remainders come first. A group
    that no training sample is of, or -1, is dealt by the sizes of clients. A client may be left without samples.

    Args:
        shards: the training samples of each client.
        groups: the group of each training sample, int64 ``(training samples,)``.
        other_groups: the group of each sample to deal, int64 ``(samples,)``.
        seed: the seed of the run.

    Raises:
        DataError: if the shards are not those of the training samples.
    """
    if len(groups) != len(shards.order):
        raise DataError(
            f"the shards hold {len(shards.order):,} samples, but groups are given for {len(groups):,};"
            " give the groups of the split that the shards were dealt from"
        )
    clients, owners = shards.owners, np.empty(len(other_groups), np.int64)
    for group in np.unique(other_groups):
        held = np.bincount(clients[groups == group], minlength=len(shards)) if group >= 0 else np.zeros(1, np.int64)
        samples = np.flatnonzero(other_groups == group)
        generator = numpy_generator(seed, "partition-of-validation", int(group))
        amounts = _apportioned(len(samples), held if held.any() else shards.sizes, generator)
        owners[generator.permutation(samples)] = np.repeat(np.arange(len(shards)), amounts)
    return Shards.of(owners, len(shards))


def _apportioned(total: int, weights: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Split a number in proportion to weights, by largest remainder, int64 ``(weights,)``.

    In whole numbers, so that no rounding decides; of equal remainders, random ones go first.
    """
    amounts, remainders = np.divmod(total * weights, weights.sum())
    first = np.lexsort((generator.permutation(len(weights)), -remainders))[: total - int(amounts.sum())]
    amounts[first] += 1
    return amounts


def quantile_edges(values: np.ndarray, bins: int) -> np.ndarray:
    """Return where to cut values into bins of about equal size, ascending, float64 ``(at most bins - 1,)``.

    An edge belongs to the bin above it. Equal values stay together, so that there may be fewer bins; none is empty.

    Args:
        values: finite numbers, float64 ``(samples,)``.
        bins: how many bins to cut.

    >>> quantile_edges(np.array([0.0, 1.0, 2.0, 3.0, 4.0, 5.0]), 3).tolist()
    [2.0, 4.0]
    """
    # Edges that are values themselves: one between two values could leave a bin empty.
    edges = np.unique(np.quantile(values, np.arange(1, bins) / bins, method="higher"))
    return edges[edges > values.min()]


def quantile_groups(values: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Return the bin of each value, int64 ``(samples,)``; -1 where the value is NaN.

    >>> quantile_groups(np.array([1.9, 2.0, 9.0, np.nan]), np.array([2.0, 4.0])).tolist()
    [0, 1, 2, -1]
    """
    return np.where(np.isnan(values), -1, np.searchsorted(edges, values, side="right"))


def quantile_names(values: np.ndarray, edges: np.ndarray) -> list[str]:
    """Name the bins by their bounds, with as many decimals as tell them apart, but at least two.

    >>> quantile_names(np.array([0.0, 1.75, 5.0]), np.array([1.75]))
    ['0.00 to 1.75', '1.75 to 5.00']
    """
    bounds = np.unique([values.min(), *edges, values.max()])
    apart = (digits for digits in range(2, 17) if len({f"{bound:.{digits}f}" for bound in bounds}) == len(bounds))
    digits = next(apart, 16)
    named = [f"{bound:.{digits}f}" for bound in (values.min(), *edges, values.max())]
    return [f"{low} to {high}" for low, high in pairwise(named)]
