"""Local training of a block: many clients in one forward and backward pass.

The C clients of a block are rows of one (C, P) tensor of trainable parameters. One batch holds the next samples of
every client that still trains, client after client; the loss is the sum over clients of each client's mean loss, so
that the gradient of a row is that client's own, and an elementwise optimizer makes C separate trainings of it.

Nothing here waits for a GPU: while it computes one local step, the host prepares the batch of the next and queues it.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from fedgram.data.tokens import TokenTable
from fedgram.engine.network import ClientNetwork
from fedgram.errors import located
from fedgram.optim import ClientOptimizer
from fedgram.state import Layers, Layout, ModelState, merge, prefix, send, split, stack

__all__ = ["Memory", "Trained", "train_block"]

Memory = dict[str, Tensor]
"""What an optimizer remembers, by name: of one client, or of several with a leading client axis."""


@dataclass(frozen=True)
class Trained:
    """What comes of a block.

    Attributes:
        states: what each client ends with.
        losses: its mean loss over its local steps, without a penalty; 0 where it has none.
        memories: what its optimizer remembers.
    """

    states: list[ModelState]
    losses: Float[Tensor, " C"]
    memories: list[Memory]


def train_block(
    network: ClientNetwork,
    optimizer: ClientOptimizer,
    start: Sequence[ModelState],
    table: TokenTable,
    batches: Sequence[Sequence[np.ndarray]],
    span: tuple[float, float] = (0.0, 1.0),
    trained: Collection[str] | None = None,
    memories: Sequence[Memory | None] | None = None,
    heed: Callable[[], None] = lambda: None,
    penalty: Callable[[Layers], Tensor | None] = lambda _: None,
    origins: Sequence[ModelState] | None = None,
) -> Trained:
    """Train the C clients of one block.

    Args:
        network: the backbone with its client layers, which hold already what all clients share.
        optimizer: the clients' optimizer.
        start: what each client starts from, the one with the most batches first: those that still train are a prefix.
        table: the samples.
        batches: per client, the samples of each local step.
        span: where the learning rate's schedule stands when the round begins and ends.
        trained: fields of the adapters that are trained, beside the head; by default all.
        memories: what each client's optimizer remembers of earlier rounds; None for one that is fresh.
        heed: called before each local step; may raise to end the training (see `Ranks.heed`).
        penalty: what is added to the loss of each client, of the adapters' tensors with a leading client axis.
        origins: what weight decay draws each client to, in the form of start; None for zero.
    """
    fields = {field for layer in start[0].adapter.values() for field in layer} if trained is None else trained
    own_parts, held_parts = zip(*(split(own, fields) for own in start), strict=True)
    layout, held = Layout.of(own_parts[0]), stack(held_parts)
    params = send(layout.pack(own_parts), network.device).to(network.dtype)
    drawn_to = (
        None if origins is None else send(_packed_like(layout, origins, fields), network.device).to(network.dtype)
    )
    memory = _remember(optimizer.init(params), memories or [None] * len(start))
    steps = torch.tensor([len(own) for own in batches], dtype=torch.float64)
    losses = torch.zeros(len(batches), dtype=torch.float64, device=network.device)
    for step in range(len(batches[0])):
        heed()
        with located(f"local step {step + 1}"):
            active = sum(len(own) > step for own in batches)
            leaf = params[:active].detach().requires_grad_()
            model = merge(layout.unpack(leaf), prefix(held, active))
            network.load(model)
            means = _mean_losses(network, table, [own[step] for own in batches[:active]])
            added = penalty(model.adapter)
            total = means if added is None else means + added
            (gradient,) = torch.autograd.grad(total.sum(), leaf)
            rate = optimizer.learning_rate(span[0] + (span[1] - span[0]) * step / steps[:active])
            known = {key: value[:active] for key, value in memory.items()}
            towards = None if drawn_to is None else drawn_to[:active]
            optimizer.update(params[:active], gradient, known, send(rate, network.device), towards)
            losses[:active] += means.detach()
    states = [merge(own, new) for own, new in zip(start, layout.rows(params), strict=True)]
    remembered = [{k: v[i] for k, v in memory.items()} for i in range(len(start))]
    return Trained(states, losses / send(steps.clamp(min=1), network.device), remembered)


def _packed_like(layout: Layout, states: Sequence[ModelState], fields: Collection[str]) -> Float[Tensor, "C P"]:
    """Lay out what is trained of the states of C clients."""
    return layout.pack([split(state, fields)[0] for state in states])


def _remember(fresh: Memory, memories: Sequence[Memory | None]) -> Memory:
    """Fill the rows of those clients that have kept their optimizer's memory."""
    for row, kept in enumerate(memories):
        for key, value in (kept or {}).items():
            fresh[key][row] = send(value, fresh[key].device)
    return fresh


def _mean_losses(network: ClientNetwork, table: TokenTable, rows: Sequence[np.ndarray]) -> Float[Tensor, " C"]:
    """Return each client's mean loss over its batch, with the model that is loaded for it."""
    samples, weights = _rectangle(rows, table)
    losses = network.task.sample_losses(*network.run(table, samples))
    return (losses.reshape(len(rows), -1) * send(weights, losses.device).to(losses.dtype)).sum(dim=1)


def _rectangle(rows: Sequence[np.ndarray], table: TokenTable) -> tuple[np.ndarray, Float[Tensor, "C b"]]:
    """Fill the batches of all clients up to the size of the largest, with filler rows of weight zero.

    They repeat the client's own shortest sample: a row that the model takes as it takes all others, such as BART, whose
    head wants as many end tokens in every row.

    Returns:
        The sample indices, client after client, and the weight of each in its client's mean.
    """
    width = max(len(own) for own in rows)
    padded = np.empty((len(rows), width), np.int64)
    weights = np.zeros((len(rows), width))
    for client, own in enumerate(rows):
        padded[client] = own[np.argmin(table.lengths_of(own))]
        padded[client, : len(own)] = own
        weights[client, : len(own)] = 1 / len(own)
    return padded.reshape(-1), torch.from_numpy(weights)
