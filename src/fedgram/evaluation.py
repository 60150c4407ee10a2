"""What a model says of a split, the same on any number of ranks."""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from fedgram.collectives import Ranks
from fedgram.data import FederatedData
from fedgram.data.tokens import TokenTable
from fedgram.models.base import Outputs
from fedgram.network import ClientNetwork
from fedgram.state import State

__all__ = ["evaluate", "infer"]


def infer(network: ClientNetwork, state: State, table: TokenTable, batch_size: int, ranks: Ranks) -> Outputs:
    """Return the outputs for all samples, in the order of the data, on the CPU of every rank.

    The batches hold samples of like length and do not depend on the ranks, which take them in turn. No sample is
    padded on or counted twice, so that metrics are exact. Outputs that have a column for every token are filled up
    with -inf to the longest sample.
    """
    batches = _batches(table, batch_size)
    own = batches[ranks.rank :: ranks.size]
    network.load_one(state)
    with torch.inference_mode():
        results = [network.run(table, rows)[0] for rows in own or batches[:1]]
    ids = np.concatenate(own).tolist() if own else []

    def collect(key: str) -> Tensor:
        width = int(ranks.maximum(max(float(piece[key].shape[-1]) for piece in results)))
        rows = torch.cat([_widened(piece[key], width) for piece in results])[: len(ids)]
        return ranks.gather(rows, range(len(table)), ids).cpu()

    return {key: collect(key) for key in results[0]}


def evaluate(network: ClientNetwork, state: State, data: FederatedData, split: str, ranks: Ranks) -> dict[str, float]:
    """Return the mean loss and the task's metrics over a labelled split, and over its further parts with a suffix."""
    metrics: dict[str, float] = {}
    for suffix, part in data.parts(split).items():
        table = data.split(part)
        outputs = infer(network, state, table, data.eval_batch_size, ranks)
        losses = network.task.sample_losses(outputs, torch.tensor(table.labels))
        found = {"loss": float(losses.double().mean()), **network.task.evaluate(outputs, data, part)}
        metrics |= {f"{name}{suffix}": value for name, value in found.items()}
    return metrics


def _batches(table: TokenTable, batch_size: int) -> list[np.ndarray]:
    """Cut a split into batches of like lengths."""
    order = np.argsort(table.lengths, kind="stable")
    return [order[i : i + batch_size] for i in range(0, len(order), batch_size)]


def _widened(rows: Tensor, width: int) -> Tensor:
    return functional.pad(rows, (0, width - rows.shape[-1]), value=-torch.inf)
