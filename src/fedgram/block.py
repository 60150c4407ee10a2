"""Local training of a block: many clients in one forward and backward pass.

The C clients of a block are rows of one (C, P) tensor of trainable parameters. One batch holds the next samples of
every client that still trains, client after client; the loss is the sum over clients of each client's mean loss, so
that the gradient of a row is that client's own, and an elementwise optimizer makes C separate trainings of it.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from fedgram.data.tokens import TokenTable
from fedgram.network import ClientNetwork
from fedgram.optim import ClientOptimizer
from fedgram.state import Layout, State

__all__ = ["train_block"]


def train_block(
    network: ClientNetwork,
    optimizer: ClientOptimizer,
    start: Sequence[State],
    table: TokenTable,
    batches: Sequence[Sequence[np.ndarray]],
    span: tuple[float, float] = (0.0, 1.0),
) -> tuple[list[State], Float[Tensor, " C"]]:
    """Train the C clients of one block.

    Args:
        network: the backbone with its client layers.
        optimizer: the clients' optimizer; its memory is fresh.
        start: what each client starts from, the one with the most batches first: those that still train are a prefix.
        table: the samples.
        batches: per client, the samples of each local step.
        span: where the learning rate's schedule stands when the round begins and ends.

    Returns:
        What each client ends with, and its mean loss over its local steps.
    """
    layout = Layout.of(start[0])
    params = layout.pack(start).to(network.device, network.dtype)
    memory = optimizer.init(params)
    steps = torch.tensor([len(own) for own in batches], dtype=torch.float64, device=network.device)
    losses = torch.zeros(len(batches), dtype=torch.float64, device=network.device)
    for step in range(len(batches[0])):
        active = sum(len(own) > step for own in batches)
        means, gradient = _gradient(network, params[:active], layout, table, [own[step] for own in batches[:active]])
        rate = optimizer.learning_rate(span[0] + (span[1] - span[0]) * step / steps[:active])
        optimizer.update(params[:active], gradient, {key: value[:active] for key, value in memory.items()}, rate)
        losses[:active] += means
    return layout.rows(params), losses / steps


def _gradient(
    network: ClientNetwork,
    params: Float[Tensor, "C P"],
    layout: Layout,
    table: TokenTable,
    rows: Sequence[np.ndarray],
) -> tuple[Float[Tensor, " C"], Float[Tensor, "C P"]]:
    """Return each client's mean loss over its batch, and its gradient with respect to its own parameters."""
    leaf = params.detach().requires_grad_()
    network.load(layout.unpack(leaf))
    samples, weights = _rectangle(rows)
    losses = network.task.sample_losses(*network.run(table, samples))
    means = (losses.reshape(len(rows), -1) * weights.to(losses)).sum(dim=1)
    (gradient,) = torch.autograd.grad(means.sum(), leaf)
    return means.detach(), gradient


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
