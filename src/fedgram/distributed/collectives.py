"""What the ranks say to each other: exact sums, gathers in a fixed order, that they agree, and that one is in trouble.

A float sum over ranks depends on how the terms are dealt, since addition rounds. Here terms become 64-bit integers with
a scale that all ranks agree on, so that the sum is exact and has no order: the same bits on any number of ranks.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from itertools import islice
from typing import TYPE_CHECKING, TypeVar, cast

import torch
from torch import Tensor

from fedgram.distributed.failure import Alarm
from fedgram.errors import FedgramError, Preempted, TrainingError, explain, located
from fedgram.ledger import Ledger, Traffic
from fedgram.state import PARTS, tensor_hash

if TYPE_CHECKING:
    from lightning.fabric import Fabric

__all__ = ["Ranks", "grouped"]

T = TypeVar("T")

_INTEGER_BITS = 62
"""Bits of a signed 64-bit integer that a sum may fill: one is the sign, one is kept free for rounding up."""
_LARGEST_EXPONENT = 1000
"""2^1000 is still a float64; a tensor whose largest entry needs more is zero for every purpose."""


_TOGETHER = 2**22
"""Numbers that are computed with at once, 32 MB in float64: of small tensors many, so that each costs little."""


def grouped(items: Iterable[T], numel: int) -> Iterator[list[T]]:
    """Yield items in groups: as many at once as are few numbers, where each stands for a tensor of ``numel`` of them.

    >>> list(grouped("abc", 2**21))
    [['a', 'b'], ['c']]
    """
    iterator = iter(items)
    while group := list(islice(iterator, max(1, _TOGETHER // numel))):
        yield group


class _CalledAwayError(Exception):
    """This rank leaves its own work, since another is in trouble or all shall stop."""


class Ranks:
    """The processes of a run.

    Args:
        fabric: the launched Fabric, or None for one process without torch.distributed.
        asked_to_stop: returns the name of the signal by which this rank was asked to stop, if it was.

    Attributes:
        moved: bytes of tensors that this rank has put into collectives so far.
    """

    def __init__(self, fabric: "Fabric | None" = None, asked_to_stop: Callable[[], str | None] = lambda: None) -> None:
        self._fabric = fabric
        self._asked_to_stop = asked_to_stop
        self._alarm = Alarm(fabric)
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
        if not like.numel():
            return like.double()
        peaks = [torch.stack(group).abs().max() for group in grouped(terms(), like.numel())]
        peak = float(torch.stack(peaks).max()) if peaks else 0.0  # nan, if one is
        largest = self.maximum(peak if math.isfinite(peak) else math.inf)
        if not math.isfinite(largest):
            raise TrainingError(
                "a sum over clients is not finite: an upload holds nan or inf; a lower learning rate helps"
            )
        shift = _INTEGER_BITS - math.ceil(math.log2(max(count, 1))) - math.frexp(largest)[1]
        shift = min(shift, _LARGEST_EXPONENT)
        total = torch.zeros(like.shape, dtype=torch.int64, device=like.device)
        for group in grouped(terms(), like.numel()):
            total += torch.round(torch.stack(group).double() * 2.0**shift).to(torch.int64).sum(dim=0)
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
        if list(ids) == list(order):
            return rows
        place = {identity: row for row, identity in enumerate(ids)}
        return rows.index_select(0, torch.tensor([place[i] for i in order], dtype=torch.int64, device=rows.device))

    def merge(self, ledger: Ledger) -> Ledger:
        """Return the traffic of all ranks together."""
        if self.size == 1:
            return ledger
        keys = [(direction, part) for direction in ("up", "down") for part in PARTS]
        traffic = [ledger.entries.get(key, Traffic()) for key in keys]
        merged = iter(self.add_up([count for t in traffic for count in (t.clients, t.parameters, t.bytes)]))
        return Ledger.of(
            [
                {"direction": key[0], "part": key[1], "clients": c, "parameters": p, "bytes": b}
                for key, c, p, b in zip(keys, merged, merged, merged, strict=True)
                if c
            ]
        )

    def add_up(self, counts: Sequence[int]) -> list[int]:
        """Return the sums of whole numbers over all ranks, each below 2^63."""
        if self.size == 1:
            return list(counts)
        own = torch.tensor(counts, dtype=torch.int64, device=self.device)
        return [int(count) for count in self._all_reduce(own, "sum").tolist()]

    def broadcast(self, value: T, source: int = 0) -> T:
        """Return one rank's value on every rank."""
        if self._fabric is None:
            return value
        with self._together():
            return self._fabric.broadcast(value, source)

    def first(self, value: T | None) -> T | None:
        """Return the value of the lowest rank that has one, on every rank; None if there is none."""
        found = self.size - int(self.maximum(0.0 if value is None else float(self.size - self.rank)))
        return self.broadcast(value, found) if found < self.size else None

    @contextmanager
    def apart(self, where: str | None = None) -> Iterator[None]:
        """Let every rank work by itself, without collectives, and meet at the end: the trouble of one stops all.

        Without this, a rank that raised would leave the others waiting in their next collective. They hear of it as
        soon as they `heed`, and stop with its error.

        Args:
            where: what is done, such as "round 3"; None before the first round.

        Raises:
            Preempted: on every rank, if one of them was asked to stop.
            FedgramError: on every rank, the error of the lowest rank that has one, with rank and place; a
                `TrainingError` in place of one that is not fedgram's. That one goes on where it was raised.
        """
        trouble: Exception | None = None
        try:
            with nullcontext() if where is None else located(where):
                yield
        except Exception as error:  # noqa: BLE001 (raised again once all ranks know)
            trouble = error
            if not isinstance(error, _CalledAwayError):
                self.warn_others(error)
        self._meet(trouble, where)

    def heed(self) -> None:
        """Leave the work that is done `apart`, if all shall stop: call this between steps."""
        if self._asked_to_stop() is not None:
            self._alarm.ring("a signal came")
            raise _CalledAwayError
        if self._alarm.heard() is not None:
            raise _CalledAwayError

    def warn_others(self, error: BaseException) -> None:
        """Tell the other ranks of an error here, for those that would wait for this one."""
        self._alarm.ring(f"rank {self.rank}, {explain(error)}")

    def _meet(self, trouble: Exception | None, where: str | None) -> None:
        """Stop all ranks together, if one has trouble or was asked to stop."""
        own, signal = None if isinstance(trouble, _CalledAwayError) else trouble, self._asked_to_stop()
        if not self.maximum(float(trouble is not None or signal is not None)):
            return
        first = self.first(None if own is None else _retold(own, self.rank))
        if own is not None and (self.size == 1 or not isinstance(own, FedgramError)):
            raise own
        if first is not None:
            kind, message = first
            raise self._agreed(kind(message)) from own
        signal = self.first(signal)
        if signal is not None:
            raise self._agreed(
                Preempted(f"{signal} came {f'in {where}' if where else 'before the first round'}", signal)
            )
        raise self._agreed(TrainingError(str(self.first(self._alarm.heard()))))  # rung by a rank that stopped elsewhere

    def _agreed(self, error: FedgramError) -> FedgramError:
        """Mark an error that every rank raises, so that rank 0 alone reports it."""
        error.reported_elsewhere = self.rank > 0
        return error

    def stop_on(self, problem: str | None) -> None:
        """Stop all ranks if one of them has a problem: a rank that raised alone would leave the others waiting.

        Args:
            problem: what is wrong on this rank; None if nothing is.

        Raises:
            TrainingError: on every rank, with the problem of the lowest rank that has one.
        """
        first = self.first(problem)
        if first is not None:
            raise self._agreed(TrainingError(first))

    def check_agreement(self, tensors: Mapping[str, Tensor], what: str) -> None:
        """Stop all ranks if one of them holds other bits.

        Args:
            tensors: what must be equal, under flat names.
            what: what they are, for the message.

        Raises:
            TrainingError: on every rank, with the lowest rank that differs from rank 0, and the first tensor.
        """
        if self.size == 1:
            return
        own = torch.tensor(list(bytes.fromhex(tensor_hash(tensors))), dtype=torch.uint8, device=self.device)
        everyone = self._all_gather(own)
        if all(torch.equal(digest, everyone[0]) for digest in everyone):
            return
        digests = {name: tensor_hash({name: tensor}) for name, tensor in tensors.items()}
        theirs = self.broadcast(digests)
        names = sorted(name for name in digests.keys() | theirs.keys() if digests.get(name) != theirs.get(name))
        self.stop_on(
            f"{what}: rank {self.rank} differs from rank 0 in {len(names)} of {len(theirs)} tensors, the first is "
            f"{names[0]}; are hardware, threads and versions of all ranks equal?"
            if names
            else None
        )

    @contextmanager
    def _together(self) -> Iterator[None]:
        """Say what it means when a collective breaks: another rank is gone.

        Raises:
            TrainingError: with what that rank said before, if it did.
        """
        try:
            yield
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            first = self._alarm.heard(at_once=True) or "another rank is gone"
            raise TrainingError(
                f"rank {self.rank} lost the others: {first}; --ckpt_path last goes on after the last finished round"
            ) from error

    def _all_reduce(self, tensor: Tensor, operation: str) -> Tensor:
        if self._fabric is None or self.size == 1:
            return tensor
        self.moved += tensor.numel() * tensor.element_size()
        with self._together():
            reduced = cast(Tensor, self._fabric.all_reduce(tensor.to(self.device), reduce_op=operation))
        return reduced.to(tensor.device)

    def _all_gather(self, tensor: Tensor) -> Tensor:
        if self._fabric is None or self.size == 1:
            return tensor.unsqueeze(0)
        self.moved += tensor.numel() * tensor.element_size()
        with self._together():
            return cast(Tensor, self._fabric.all_gather(tensor))


def _retold(error: Exception, rank: int) -> tuple[type[FedgramError], str]:
    """Return class and message of what other ranks raise where one raised this."""
    if not isinstance(error, FedgramError):
        return TrainingError, f"rank {rank}, {explain(error)}"
    # Without a place it is about the input, which is the same on all ranks.
    return type(error), f"rank {rank}, {explain(error)}" if hasattr(error, "__notes__") else str(error)
