"""k-means of vectors that are known by their inner products."""

import numpy as np
from jaxtyping import Float
from torch import Tensor

__all__ = ["coordinates", "first_seen", "k_means"]

_SAME = 1e-9
"""Points that differ by less, relative to the largest norm, are one: their coordinates are good to √ε."""


def coordinates(gram: Float[Tensor, "N N"]) -> np.ndarray:
    """Return N points (N, p) with these inner products, p <= N; distances between them are those of the vectors.

    >>> import torch
    >>> float(np.linalg.norm(np.diff(coordinates(torch.tensor([[9.0, 0.0], [0.0, 16.0]])), axis=0)))
    5.0
    """
    values, vectors = np.linalg.eigh(gram.double().cpu().numpy())
    keep = values > np.finfo(float).eps * len(values) * max(values[-1], 0.0)
    return vectors[:, keep] * np.sqrt(values[keep])


def k_means(gram: Float[Tensor, "N N"], clusters: int, seed: int) -> list[int]:
    """Return the cluster of each of N vectors, of the best of ten starts, numbered as they are first seen.

    k-means looks at distances alone, which inner products tell; so vectors of millions of numbers, layer after layer,
    need not be in one place.

    Args:
        gram: the inner products of the vectors, centred for precision.
        clusters: how many; where fewer vectors differ there are as many as these.
        seed: of the ten starts.
    """
    points = coordinates(gram)
    largest = float(np.linalg.norm(points, axis=1).max())
    distinct = np.unique(np.round(points / (largest or 1.0) / _SAME), axis=0, return_inverse=True)
    if len(distinct[0]) <= clusters:
        return first_seen(distinct[1].ravel().tolist())
    from sklearn.cluster import KMeans
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1):  # sums of several threads come in any order, and ranks must agree
        model = KMeans(clusters, n_init=10, random_state=seed % 2**32).fit(points)
    return first_seen(model.labels_.tolist())


def first_seen(labels: list[int]) -> list[int]:
    """Return labels numbered in the order in which they are first seen.

    >>> first_seen([7, 3, 7, 5])
    [0, 1, 0, 2]
    """
    numbers = {label: number for number, label in enumerate(dict.fromkeys(labels))}
    return [numbers[label] for label in labels]
