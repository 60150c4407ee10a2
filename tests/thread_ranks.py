"""Ranks that are threads of one process: what many ranks say to each other, at the cost of none."""

import threading

import torch

from fedgram.distributed.collectives import Ranks
from fedgram.errors import TrainingError


class ThreadFabric:
    """What `Ranks` uses of Fabric, for one thread of several."""

    device = torch.device("cpu")

    def __init__(self, rank, table, barrier):
        self.global_rank, self.world_size = rank, len(table)
        self._table, self._wait = table, barrier

    def _exchange(self, value):
        self._table[self.global_rank] = value
        self._wait.wait()
        values = list(self._table)
        self._wait.wait()
        return values

    def all_reduce(self, tensor, reduce_op):
        rows = _stacked(self._exchange(tensor))
        return {"sum": rows.sum(dim=0), "max": rows.amax(dim=0)}[reduce_op] if rows.numel() else rows[0]

    def all_gather(self, tensor):
        return _stacked(self._exchange(tensor))

    def broadcast(self, value, src=0):
        return self._exchange(value)[src]


def _stacked(tensors):
    """Put the tensors of all ranks together; as with gloo, they must be of one type, which torch.stack would find."""
    if len({tensor.dtype for tensor in tensors}) > 1:
        raise RuntimeError(f"the ranks sent {[tensor.dtype for tensor in tensors]}")
    return torch.stack(tensors)


def on_ranks(size, function):
    """Return ``function(ranks)`` of every rank; a `TrainingError` that a rank raised is its result."""
    table, results, barrier = [None] * size, [None] * size, threading.Barrier(size, timeout=20)

    def work(rank):
        try:
            results[rank] = function(Ranks(ThreadFabric(rank, table, barrier) if size > 1 else None))
        except TrainingError as error:
            results[rank] = error
        except BaseException:
            barrier.abort()  # or the other ranks would wait for this one
            raise

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results
