"""What the ranks say to each other: exact sums, gathers in a fixed order, and the check that they agree.

A float sum over ranks depends on how the terms are dealt, since addition rounds. Here terms become 64-bit integers with
a scale that all ranks agree on, so that the sum is exact and has no order: the same bits on any number of ranks.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, TypeVar, cast

import torch
from torch import Tensor

from fedgram.errors import TrainingError
from fedgram.ledger import Ledger, Traffic
from fedgram.state import PARTS

if TYPE_CHECKING:
    from lightning.fabric import Fabric

__all__ = ["Ranks"]

T = TypeVar("T")

_INTEGER_BITS = 62
"""Bits of a signed 64-bit integer that a sum may fill: one is the sign, one is kept free for rounding up."""
_LARGEST_EXPONENT = 1000
"""2^1000 is still a float64; a tensor whose largest entry needs more is zero for every purpose."""


class Ranks:
    """The processes of a run.

    Args:
        fabric: the launched Fabric, or None for one process without torch.distributed.

    Attributes:
        moved: bytes that this rank has put into collectives so far.
    """

    def __init__(self, fabric: "Fabric | None" = None) -> None:
        self._fabric = fabric
        self.rank: int = 0 if fabric is None else fabric.global_rank
        self.size: int = 1 if fabric is None else fabric.world_size
        self.device: torch.device = torch.device("cpu") if fabric is None else fabric.device
        self.moved = 0

    def sum(self, terms: Callable[[], Iterable[Tensor]], count: int, like: Tensor) -> Tensor:
        """Return the exact sum over all ranks of their terms, in float64.

        Every term is rounded to a multiple of a power of two below 2^-60 N max|term| (but not below 2^-1000), and the
        rounded terms are added without error.

        Args:
            terms: yields this rank's terms, and yields the same when called again: the first pass finds the scale.
            count: N, the number of terms on all ranks together.
            like: a tensor of the shape of the terms, for ranks that have none.

        Raises:
            TrainingError: a term is not finite.
        """
        peaks = [float(term.abs().max()) for term in terms() if term.numel()]
        # Python's max overlooks a nan that is not the first.
        largest = self.maximum(max(peaks, default=0.0) if all(map(math.isfinite, peaks)) else math.inf)
        if not math.isfinite(largest):
            raise TrainingError(
                "a sum over clients is not finite: an upload holds nan or inf; a lower learning rate helps"
            )
        shift = _INTEGER_BITS - math.ceil(math.log2(max(count, 1))) - math.frexp(largest)[1]
        shift = min(shift, _LARGEST_EXPONENT)
        total = torch.zeros(like.shape, dtype=torch.int64, device=like.device)
        for term in terms():
            total += torch.round(term.double() * 2.0**shift).to(torch.int64)
        return self._all_reduce(total, "sum").double() * 2.0**-shift

    def maximum(self, value: float) -> float:
        """Return the largest of the ranks' values, none of which is nan."""
        if self.size == 1:
            return value
        return float(self._all_reduce(torch.tensor([value], dtype=torch.float64, device=self.device), "max"))

    def gather(self, rows: Tensor, order: Sequence[int], ids: Sequence[int]) -> Tensor:
        """Return the rows of all ranks in one fixed order.

        Args:
            rows: (n, ...) this rank's rows; n may differ from rank to rank.
            order: the ids of all rows of all ranks, as the result has them.
            ids: the ids of this rank's rows.
        """
        if self.size > 1:
            widest = int(self.maximum(float(len(ids))))
            labels = torch.full((widest,), -1, dtype=torch.int64, device=self.device)
            labels[: len(ids)] = torch.tensor(ids, dtype=torch.int64, device=self.device)
            padded = torch.zeros(widest, *rows.shape[1:], dtype=rows.dtype, device=self.device)
            padded[: len(ids)] = rows
            rows = self._all_gather(padded).flatten(0, 1)
            ids = self._all_gather(labels).flatten().tolist()
        place = {identity: row for row, identity in enumerate(ids)}
        return rows[torch.tensor([place[i] for i in order], dtype=torch.int64, device=rows.device)]

    def merge(self, ledger: Ledger) -> Ledger:
        """Return the traffic of all ranks together."""
        if self.size == 1:
            return ledger
        keys = [(direction, part) for direction in ("up", "down") for part in PARTS]
        traffic = [ledger.entries.get(key, Traffic()) for key in keys]
        counts = [[t.clients, t.parameters, t.bytes] for t in traffic]
        merged = self._all_reduce(torch.tensor(counts, dtype=torch.int64, device=self.device), "sum").tolist()
        return Ledger.of(
            [
                {"direction": key[0], "part": key[1], "clients": c, "parameters": p, "bytes": b}
                for key, (c, p, b) in zip(keys, merged, strict=True)
                if c
            ]
        )

    def broadcast(self, value: T, source: int = 0) -> T:
        """Return one rank's value on every rank."""
        return value if self._fabric is None else self._fabric.broadcast(value, source)

    def first(self, value: T | None) -> T | None:
        """Return the value of the lowest rank that has one, on every rank; None if there is none."""
        found = self.size - int(self.maximum(0.0 if value is None else float(self.size - self.rank)))
        return self.broadcast(value, found) if found < self.size else None

    def stop_on(self, problem: str | None) -> None:
        """Stop all ranks if one of them has a problem: a rank that raised alone would leave the others waiting.

        Args:
            problem: what is wrong on this rank; None if nothing is.

        Raises:
            TrainingError: on every rank, with the problem of the lowest rank that has one.
        """
        first = self.first(problem)
        if first is not None:
            raise TrainingError(first)

    def check_agreement(self, digest: str, what: str) -> None:
        """Stop all ranks if one of them holds another state.

        Args:
            digest: a SHA-256 in hexadecimal.
            what: what it is the digest of, for the message.

        Raises:
            TrainingError: on every rank, naming those that differ from rank 0.
        """
        if self.size == 1:
            return
        mine = torch.tensor(list(bytes.fromhex(digest)), dtype=torch.uint8, device=self.device)
        everyone = self._all_gather(mine)
        different = [r for r in range(self.size) if not torch.equal(everyone[r], everyone[0])]
        if different:
            raise TrainingError(
                f"{what}: ranks {different} differ from rank 0; are hardware and threads of all ranks equal?"
            )

    def _all_reduce(self, tensor: Tensor, operation: str) -> Tensor:
        if self._fabric is None or self.size == 1:
            return tensor
        self.moved += tensor.numel() * tensor.element_size()
        return cast(Tensor, self._fabric.all_reduce(tensor.to(self.device), reduce_op=operation)).to(tensor.device)

    def _all_gather(self, tensor: Tensor) -> Tensor:
        if self._fabric is None or self.size == 1:
            return tensor.unsqueeze(0)
        self.moved += tensor.numel() * tensor.element_size()
        return cast(Tensor, self._fabric.all_gather(tensor))
