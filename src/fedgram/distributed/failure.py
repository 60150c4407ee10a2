"""How a rank that is in trouble calls the others away from their work, which has no collectives for a long time."""

import time
from datetime import timedelta
from typing import TYPE_CHECKING

import torch.distributed as dist
from torch.distributed import TCPStore  # type: ignore[attr-defined]  # torch exports it where it is built in

if TYPE_CHECKING:
    from lightning.fabric import Fabric

__all__ = ["Alarm"]

_KEY = "alarm"
_SECONDS_BETWEEN_LOOKS = 0.25
"""A look asks rank 0 over the network: a tenth of a millisecond, too much for every step of a tiny model."""
_SECONDS_TO_CONNECT = 30


class Alarm:
    """A bell that every rank can ring and hear, whatever the others do meanwhile.

    Args:
        fabric: the launched Fabric; where it has no process group, or None is given, nobody else hears the bell.
    """

    def __init__(self, fabric: "Fabric | None" = None) -> None:
        self._store = None if fabric is None or not dist.is_initialized() else _connect(fabric)
        self._rung: str | None = None
        self._next_look = 0.0

    def ring(self, message: str) -> None:
        """Call all ranks; the first message is the one that they hear."""
        self._rung = self._rung or message
        try:
            if self._store is not None:
                self._store.compare_set(_KEY, "", message)
        except RuntimeError:
            self._store = None  # rank 0 is gone, and with it whom a message could reach

    def heard(self, at_once: bool = False) -> str | None:
        """Return the message that was rung, if any.

        Args:
            at_once: look now, even if the last look was a moment ago.
        """
        if self._store is None or not (at_once or time.monotonic() >= self._next_look):
            return self._rung
        self._next_look = time.monotonic() + _SECONDS_BETWEEN_LOOKS
        try:
            if self._store.check([_KEY]):
                self._rung = self._store.get(_KEY).decode()
        except RuntimeError:
            self._store, self._rung = None, self._rung or "rank 0 is gone"
        return self._rung


def _connect(fabric: "Fabric") -> TCPStore:
    """Return a store that rank 0 keeps, on a free port."""
    wait = timedelta(seconds=_SECONDS_TO_CONNECT)
    own = None
    if fabric.global_rank == 0:
        own = TCPStore("localhost", 0, is_master=True, wait_for_workers=False, timeout=wait)
    port = fabric.broadcast(own.port if own is not None else 0)
    if own is not None:
        return own
    return TCPStore(_main_address(fabric), port, is_master=False, timeout=wait)


def _main_address(fabric: "Fabric") -> str:
    """Return where rank 0 runs."""
    environment = getattr(fabric.strategy, "cluster_environment", None)
    return "localhost" if environment is None else str(environment.main_address)
