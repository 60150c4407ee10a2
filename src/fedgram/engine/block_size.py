"""How many clients fit into one block, and how much memory a run took."""

import math
import sys
from collections.abc import Iterable

import numpy as np
import psutil
import torch

from fedgram.data.tokens import TokenTable
from fedgram.engine.network import ClientNetwork
from fedgram.errors import ConfigurationError
from fedgram.state import ModelState, parameters_of

__all__ = ["COPIES", "choose_clients_per_block", "held_bytes", "peak_megabytes", "saved_bytes"]

_SHARE = 0.5
"""Share of the free memory that a block may fill: the rest is for kernels' workspaces and evaluation."""
_CPU_TOKEN_BYTES = 2048
"""On a CPU a batch of 512 tokens keeps the cores busy, in half precision one of 1,024; larger ones gain little."""
_BLOCKS = 4
"""A round has at least this many blocks, as far as it has clients, so that as many ranks have work."""
COPIES = 4
"""Float copies of a client's parameters in a block: value, gradient, and AdamW's two moments."""


def saved_bytes(network: ClientNetwork, state: ModelState, table: TokenTable, rows: np.ndarray) -> int:
    """Count the bytes that one client's forward pass keeps for its backward pass, by running it."""
    sizes: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        sizes.update(_storages([tensor]))
        return tensor.detach()  # what a node has made, kept in it with its history, would keep the node for ever

    network.load_one(state)
    for layer in network.layers.values():
        layer.load({field: tensor.requires_grad_() for field, tensor in layer.clients.items()})
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        network.run(table, rows)
    shared = _storages(network.held_once())
    return sum(size for storage, size in sizes.items() if storage not in shared)


def held_bytes(network: ClientNetwork) -> int:
    """Count the bytes that a rank holds once, however many clients it trains: the backbone, and what they share."""
    return sum(_storages(network.held_once()).values())


def _storages(tensors: Iterable[torch.Tensor]) -> dict[int, int]:
    """Return the bytes of the memory behind some tensors, each once, by what tells it apart.

    That is no address, since fake tensors, which have shapes and no numbers, are at none.
    """
    storages = [tensor.untyped_storage() for tensor in tensors]
    return {storage._cdata: storage.nbytes() for storage in storages}


def choose_clients_per_block(
    network: ClientNetwork, state: ModelState, table: TokenTable, batch_size: int, cohort: int
) -> int:
    """Return how many clients to train in one pass: as half of the free memory holds, at most a quarter of the cohort.

    A CPU gains nothing from more tokens than keep its cores busy, so there the mean batch bounds it as well.

    Args:
        network: the backbone with its client layers.
        state: the server's state.
        table: the training samples.
        batch_size: samples of one local step.
        cohort: clients of one round.
    """
    if cohort == 1 or not _can_batch(network, state, table):
        return 1
    longest = np.argsort(table.lengths)[-batch_size:]
    own = {n: {f: t for f, t in layer.items() if f not in network.shared} for n, layer in state.adapter.items()}
    parameters = parameters_of(own) + parameters_of(state.head)
    per_client = saved_bytes(network, state, table, longest) + COPIES * 4 * parameters
    by_memory = int(_SHARE * _free_bytes(network.device) // per_client)
    if network.device.type == "cpu":
        tokens = _CPU_TOKEN_BYTES / next(network.task.parameters()).dtype.itemsize
        by_memory = min(by_memory, round(tokens / (batch_size * float(table.lengths.mean()))))
    return max(1, min(by_memory, math.ceil(cohort / _BLOCKS)))


def _can_batch(network: ClientNetwork, state: ModelState, table: TokenTable) -> bool:
    """Say whether the backbone keeps the rows of clients apart in all adapted layers (DeBERTa-v2 does not)."""
    network.load_one(state)
    for layer in network.layers.values():
        layer.load({field: tensor.expand(2, *tensor.shape[1:]) for field, tensor in layer.clients.items()})
    try:
        with torch.inference_mode():
            network.run(table, np.array([0, 0]))
    except ConfigurationError:
        return False
    return True


def _free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)


def peak_megabytes(device: torch.device) -> float:
    """Return the largest memory of this process so far, in MB: on the GPU where there is one, else in RAM."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    return _peak_bytes() / 1e6


def _peak_bytes() -> int:
    try:
        import resource
    except ImportError:  # Windows, where psutil knows the peak
        memory = psutil.Process().memory_info()
        return int(getattr(memory, "peak_wset", memory.rss))
    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, other systems kilobytes
    return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) * unit
