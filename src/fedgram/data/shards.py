"""Which samples each client holds, and whether what a partition returned is such a thing."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedgram.errors import DataError

__all__ = ["Samples", "Shards", "checked_owners", "checked_shards"]


@dataclass(frozen=True, eq=False)
class Shards:
    """The samples of each client: one permutation of all samples, cut into pieces.

    Args:
        order: indices of samples, client by client and ascending within a client, int64 ``(samples,)``.
        offsets: where each client's piece starts and ends, int64 ``(clients + 1,)``.
    """

    order: np.ndarray
    offsets: np.ndarray

    @classmethod
    def of(cls, owners: np.ndarray, clients: int) -> "Shards":
        """Sort samples by their owner, int64 ``(samples,)`` with values in ``0..clients-1``."""
        sizes = np.bincount(owners, minlength=clients)
        offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes, dtype=np.int64)])
        return cls(np.argsort(owners, kind="stable").astype(np.int64, copy=False), offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, client: int) -> np.ndarray:
        """Return the samples of a client in ascending order, int64 ``(samples of the client,)``."""
        if not 0 <= client < len(self):
            raise IndexError(f"clients are numbered 0..{len(self) - 1}, got {client}")
        return self.order[self.offsets[client] : self.offsets[client + 1]]

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self[client] for client in range(len(self)))

    def expanded(self, units: np.ndarray) -> "Shards":
        """Return the pieces of samples, where these are pieces of units.

        Args:
            units: the number of the unit that each sample belongs to, int64 ``(samples,)``.
        """
        return Shards.of(self.owners[units], len(self))

    @property
    def sizes(self) -> np.ndarray:
        """Number of samples of each client, int64 ``(clients,)``."""
        return np.diff(self.offsets)

    def sizes_of(self, clients: np.ndarray) -> np.ndarray:
        """Return the numbers of samples of some clients, int64 ``(n,)``, without a look at the others."""
        return self.offsets[clients + 1] - self.offsets[clients]

    @property
    def owners(self) -> np.ndarray:
        """The client of each sample, int64 ``(samples,)``."""
        owners = np.empty(len(self.order), np.int64)
        owners[self.order] = np.repeat(np.arange(len(self)), self.sizes)
        return owners


@dataclass(frozen=True, eq=False)
class Samples:
    """The samples that a partition deals.

    Args:
        labels: the class of each sample, int64 ``(samples,)``.
        rows: the row of the train split's file, counted from 0, that each sample was, int64 ``(samples,)``: fewer than
            the file has where some were held out for validation or left out.
        note: how many samples there are and why not more, for messages.
    """

    labels: np.ndarray
    rows: np.ndarray
    note: str = ""

    def __len__(self) -> int:
        return len(self.labels)

    @classmethod
    def of(cls, labels: np.ndarray) -> "Samples":
        """Return the samples of a file of which every row is dealt."""
        return cls(labels, np.arange(len(labels)))

    def __str__(self) -> str:
        """Say how many there are."""
        return self.note or f"{len(self):,} training samples"


def checked_owners(owners: Any, samples: Samples, clients: int, name: str) -> np.ndarray:
    """Return what a partition says of samples as int64 ``(samples,)``.

    Raises:
        DataError: if it is not one client for each sample, and at least one sample for each client.
    """
    try:
        array = np.asarray(owners)
    except ValueError:
        array = np.zeros((0, 0))  # lists of unequal lengths
    if array.ndim != 1 or not np.issubdtype(array.dtype, np.integer):
        raise DataError(
            f"the partition {name} must return the client of each sample as a vector of whole numbers, got"
            f" {type(owners).__name__} of {array.dtype} {array.shape}"
        )
    if len(array) != len(samples):
        raise DataError(
            f"the partition {name} returned the clients of {len(array):,} samples, but {samples} are dealt; owners must"
            " be one for each of the labels: owners_of(samples, clients, seed) gets samples.rows, the row of the file"
            " that each of them was"
        )
    wrong = np.flatnonzero((array < 0) | (array >= clients))
    if len(wrong):
        raise DataError(
            f"the partition {name} gives {len(wrong):,} of {len(array):,} samples to clients that there are not, the"
            f" first, sample {wrong[0]}, to {array[wrong[0]]}; clients are numbered 0..{clients - 1}: set"
            " trainer.clients, or correct the partition"
        )
    _check_filled(np.bincount(array, minlength=clients), name)
    return array.astype(np.int64)


def checked_shards(shards: Any, samples: Samples, clients: int, name: str) -> Shards:
    """Return what a partition with a `Partition.__call__` of its own dealt.

    Raises:
        DataError: if it did not deal every sample to exactly one client, and at least one sample to each client.
    """
    if not isinstance(shards, Shards) or len(shards) != clients:
        came = f"those of {len(shards)}" if isinstance(shards, Shards) else type(shards).__name__
        raise DataError(f"the partition {name} must return the Shards of {clients} clients, got {came}")
    offsets, order = np.asarray(shards.offsets), np.asarray(shards.order)
    if offsets[0] != 0 or offsets[-1] != len(order) or (np.diff(offsets) < 0).any():
        raise DataError(f"the partition {name} returned Shards whose offsets do not rise from 0 to {len(order)}")
    if len(order) and not 0 <= order.min() <= order.max() < len(samples):
        raise DataError(
            f"the partition {name} deals samples {order.min()}..{order.max()}, but {samples} are dealt, numbered from 0"
        )
    times = np.bincount(order, minlength=len(samples))
    if (times != 1).any():
        first = int(np.flatnonzero(times != 1)[0])
        raise DataError(
            f"the partition {name} deals {int((times > 1).sum()):,} samples more than once and"
            f" {int((times == 0).sum()):,} to nobody, of {samples}; the first is sample {first}, dealt"
            f" {int(times[first])} times: each must go to exactly one client"
        )
    _check_filled(shards.sizes, name)
    return shards


def _check_filled(sizes: np.ndarray, name: str) -> None:
    """Refuse clients without samples."""
    empty = np.flatnonzero(sizes == 0)
    if len(empty):
        named = ", ".join(map(str, empty[:5])) + (", ..." if len(empty) > 5 else "")
        raise DataError(
            f"the partition {name} leaves {len(empty):,} of {len(sizes):,} clients without a sample ({named}); give"
            " each at least one, or set trainer.clients to fewer"
        )
