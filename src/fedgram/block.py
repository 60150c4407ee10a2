"""Local training of a block: many clients in one forward and backward pass.

The C clients of a block are rows of one (C, P) tensor of trainable parameters. One batch holds the next samples of
every client that still trains, client after client; the loss is the sum over clients of each client's mean loss, so
that the gradient of a row is that client's own, and an elementwise optimizer makes C separate trainings of it.
"""

from collections.abc import Collection, Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from fedgram.data.tokens import TokenTable
from fedgram.network import ClientNetwork
from fedgram.optim import ClientOptimizer
from fedgram.state import Layout, State, merge, prefix, split, stack

__all__ = ["train_block"]


def train_block(
    network: ClientNetwork,
    optimizer: ClientOptimizer,
    start: Sequence[State],
    table: TokenTable,
    batches: Sequence[Sequence[np.ndarray]],
    span: tuple[float, float] = (0.0, 1.0),
    frozen: Collection[str] = (),
) -> tuple[list[State], Float[Tensor, " C"]]:
    """Train the C clients of one block.

    Args:
        network: the backbone with its client layers.
        optimizer: the clients' optimizer; its memory is fresh.
        start: what each client starts from, the one with the most batches first: those that still train are a prefix.
        table: the samples.
        batches: per client, the samples of each local step.
        span: where the learning rate's schedule stands when the round begins and ends.
        frozen: fields of the adapters that are held and not trained.

    Returns:
        What each client ends with, and its mean loss over its local steps.
    """
    trained, frozen_parts = zip(*(split(own, frozen) for own in start), strict=True)
    layout, held = Layout.of(trained[0]), stack(frozen_parts)
    params = layout.pack(trained).to(network.device, network.dtype)
    memory = optimizer.init(params)
    steps = torch.tensor([len(own) for own in batches], dtype=torch.float64, device=network.device)
    losses = torch.zeros(len(batches), dtype=torch.float64, device=network.device)
    for step in range(len(batches[0])):
        active = sum(len(own) > step for own in batches)
        leaf = params[:active].detach().requires_grad_()
        network.load(merge(layout.unpack(leaf), prefix(held, active)))
        means = _mean_losses(network, table, [own[step] for own in batches[:active]])
        (gradient,) = torch.autograd.grad(means.sum(), leaf)
        rate = optimizer.learning_rate(span[0] + (span[1] - span[0]) * step / steps[:active])
        optimizer.update(params[:active], gradient, {key: value[:active] for key, value in memory.items()}, rate)
        losses[:active] += means.detach()
    return [merge(own, new) for own, new in zip(start, layout.rows(params), strict=True)], losses / steps


def _mean_losses(network: ClientNetwork, table: TokenTable, rows: Sequence[np.ndarray]) -> Float[Tensor, " C"]:
    """Return each client's mean loss over its batch, with the model that is loaded for it."""
    samples, weights = _rectangle(rows)
    losses = network.task.sample_losses(*network.run(table, samples))
    return (losses.reshape(len(rows), -1) * weights.to(losses)).sum(dim=1)


def _rectangle(rows: Sequence[np.ndarray]) -> tuple[np.ndarray, Float[Tensor, "C b"]]:
    """Fill the batches of all clients up to the size of the largest, with filler rows (-1) of weight zero.

    Returns:
        The sample indices, client after client, and the weight of each in its client's mean.
    """
    width = max(len(own) for own in rows)
    padded = np.full((len(rows), width), -1, dtype=np.int64)
    weights = np.zeros((len(rows), width))
    for client, own in enumerate(rows):
        padded[client, : len(own)] = own
        weights[client, : len(own)] = 1 / len(own)
    return padded.reshape(-1), torch.from_numpy(weights)
