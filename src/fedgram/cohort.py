"""Who trains in a round, in which blocks, on which rank, for how many steps: pure functions, equal on every rank."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np

from fedgram.errors import DataError
from fedgram.seeding import numpy_generator

__all__ = [
    "Block",
    "ClientWeights",
    "client_weights",
    "cohort_size",
    "cut_blocks",
    "cut_steps",
    "deal_blocks",
    "imbalance",
    "local_batches",
    "local_step_count",
    "mean_over_clients",
    "sample",
]

ClientWeights = Literal["uniform", "samples"]


@dataclass(frozen=True)
class Block:
    """Clients that are trained together in one batched pass.

    Attributes:
        clients: the longest first, so that those still training are always a prefix.
        steps: local steps of each.
    """

    clients: tuple[int, ...]
    steps: tuple[int, ...]


def cohort_size(participation: float, clients: int) -> int:
    """Return how many clients train in a round.

    Args:
        participation: a share of the clients where it is at most 1 (so 1 is everyone), else a number of clients.
        clients: N, how many there are.

    >>> cohort_size(0.2, 20), cohort_size(1, 20), cohort_size(5, 20)
    (4, 20, 5)
    """
    return max(1, round(participation * clients)) if participation <= 1 else int(participation)


def sample(seed: int, round_number: int, clients: int, size: int) -> list[int]:
    """Return the cohort of a round in ascending order, drawn without replacement."""
    if size == clients:
        return list(range(clients))
    generator = numpy_generator(seed, "cohort", round_number)
    return sorted(generator.choice(clients, size, replace=False, shuffle=False).tolist())


def client_weights(kind: ClientWeights, cohort: Sequence[int], sizes: Sequence[int]) -> dict[int, float]:
    """Return wₙ of every client of the cohort, summing to 1: 1/N, or its share of the cohort's samples."""
    if kind == "uniform":
        return {client: 1 / len(cohort) for client in cohort}
    total = sum(sizes)
    return {client: size / total for client, size in zip(cohort, sizes, strict=True)}


def cut_blocks(cohort: Sequence[int], steps: Sequence[int], clients_per_block: int) -> list[Block]:
    """Cut a cohort into blocks of clients with like numbers of local steps, whatever the number of ranks."""
    ordered = sorted(zip(cohort, steps, strict=True), key=lambda pair: (-pair[1], pair[0]))
    chunks = [ordered[i : i + clients_per_block] for i in range(0, len(ordered), clients_per_block)]
    return [Block(tuple(c for c, _ in chunk), tuple(s for _, s in chunk)) for chunk in chunks]


def deal_blocks(blocks: Sequence[Block], ranks: int) -> list[list[Block]]:
    """Deal blocks to ranks, each to the one with the fewest local steps so far (longest processing time first)."""
    loads = [0] * ranks
    hands: list[list[Block]] = [[] for _ in range(ranks)]
    for block in sorted(blocks, key=lambda b: (-sum(b.steps), b.clients)):
        rank = loads.index(min(loads))
        hands[rank].append(block)
        loads[rank] += sum(block.steps)
    return hands


def imbalance(hands: Sequence[Sequence[Block]]) -> float:
    """Return the most local steps of a rank, over the mean of all ranks: 1 where they share the work equally.

    >>> imbalance([[Block((0, 1), (4, 2))], [Block((2,), (2,))]])
    1.5
    """
    loads = [sum(sum(block.steps) for block in hand) for hand in hands]
    return max(loads) * len(loads) / sum(loads)


def local_step_count(samples: int, batch_size: int, local_epochs: int | None, local_steps: int | None) -> int:
    """Return how many optimizer steps a client makes in a round."""
    if local_steps is not None:
        return local_steps
    return (local_epochs or 1) * math.ceil(samples / batch_size)


def local_batches(indices: np.ndarray, steps: int, batch_size: int, generator: np.random.Generator) -> list[np.ndarray]:
    """Return a client's batches of one round: its samples in a fresh random order, again and again, cut into batches.

    A batch never spans two passes, so that every pass sees every sample once; its last batch may be smaller.
    """
    if not len(indices):
        raise DataError(
            "a client of the cohort has no samples; use a partition that leaves none without, or min_samples"
        )
    batches: list[np.ndarray] = []
    while len(batches) < steps:
        order = generator.permutation(indices)
        starts = range(0, len(order), batch_size)[: steps - len(batches)]
        batches += [order[i : i + batch_size] for i in starts]
    return batches


def cut_steps(steps: np.ndarray, shares: Sequence[float]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return where each phase of the clients' local training begins and ends, in whole local steps.

    Args:
        steps: local steps of each client, (C,).
        shares: of the steps, phase after phase.

    >>> [(int(first[0]), int(last[0])) for first, last in cut_steps(np.array([5]), [0.5, 0.25, 0.25])]
    [(0, 2), (2, 4), (4, 5)]
    """
    ends = [0.0]
    for share in shares:
        ends.append(ends[-1] + share)
    edges = [np.rint(steps * end).astype(int) for end in ends]
    return list(pairwise(edges))


def mean_over_clients(values: Mapping[int, float], weights: Mapping[int, float]) -> float:
    """Return Σ wₙ xₙ over clients, in whatever order: the products are added without error, and rounded once."""
    return math.fsum(weights[client] * value for client, value in values.items())
