"""What a model says of a split, the same on any number of ranks."""

from collections.abc import Sequence

import numpy as np
import torch

from fedgram.collectives import Ranks
from fedgram.data.tokens import TokenTable
from fedgram.models.base import Outputs
from fedgram.network import ClientNetwork
from fedgram.state import State

__all__ = ["evaluate", "infer"]


def infer(
    network: ClientNetwork, state: State, table: TokenTable, batch_size: int, ranks: Ranks
) -> tuple[Outputs, torch.Tensor]:
    """Return the outputs and the losses of all samples, in the order of the data, on every rank.

    The batches hold samples of like length and do not depend on the ranks, which take them in turn. No sample is
    padded on or counted twice, so that metrics are exact.
    """
    batches = _batches(table, batch_size)
    own = batches[ranks.rank :: ranks.size]
    network.load_one(state)
    with torch.inference_mode():
        results = [network.run(table, rows) for rows in own or batches[:1]]
    rows = np.concatenate(own) if own else np.empty(0, dtype=np.int64)
    ids, order = rows.tolist(), range(len(table))

    def collect(pieces: Sequence[torch.Tensor]) -> torch.Tensor:
        return ranks.gather(torch.cat(list(pieces))[: len(ids)], order, ids).cpu()

    outputs = {key: collect([piece[key] for piece, _ in results]) for key in results[0][0]}
    return outputs, collect([losses for _, losses in results])


def evaluate(
    network: ClientNetwork, state: State, table: TokenTable, batch_size: int, ranks: Ranks
) -> dict[str, float]:
    """Return the mean loss and the task's metrics over a labelled split."""
    outputs, losses = infer(network, state, table, batch_size, ranks)
    return {
        "loss": float(losses.double().mean()),
        **network.task.evaluate(outputs, torch.from_numpy(table.labels.copy())),
    }


def _batches(table: TokenTable, batch_size: int) -> list[np.ndarray]:
    """Cut a split into batches of like lengths."""
    order = np.argsort(table.lengths, kind="stable")
    return [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
