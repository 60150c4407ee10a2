"""Which clients are alike: k-means of vectors that are known by their inner products, and clusters by distances."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

__all__ = ["coordinates", "cosine_distances", "find_clusters", "first_seen", "k_means"]

_SAME = 1e-9
"""Points that differ by less, relative to the largest norm, are one: their coordinates are good to √ε."""


def coordinates(gram: Float[Tensor, "N N"]) -> np.ndarray:
    """Return N points (N, p) with these inner products, p <= N; distances between them are those of the vectors.

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


def cosine_distances(first: Sequence[Tensor], second: Sequence[Tensor]) -> Float[np.ndarray, "N M"]:
    """Return the mean over layers of 1 - cos(vec Xₙ, vec Yₘ), in float64; a tensor of zeros is at distance 1 from all.

    Args:
        first: X of every layer, (N, ...).
        second: Y of every layer, (M, ...).

    >>> cosine_distances([torch.eye(2)], [torch.tensor([[0.0, 3.0]])])
    array([[1.],
           [0.]])
    """
    cosines = [_directions(X) @ _directions(Y).mT for X, Y in zip(first, second, strict=True)]
    mean: np.ndarray = torch.stack(cosines).mean(dim=0).cpu().numpy()
    return np.clip(1 - mean, 0, 2)


def _directions(rows: Tensor) -> Float[Tensor, "N p"]:
    return torch.nn.functional.normalize(rows.double().flatten(1), dim=1)


def find_clusters(distances: Float[np.ndarray, "N N"], most: int, exactly: int | None = None) -> Int[np.ndarray, " N"]:
    """Cut clients into clusters by average linkage, numbered in the order of their first members.

    Args:
        distances: between the clients, symmetric.
        most: of 2 to this many clusters, but fewer than clients, that number is taken which has the largest silhouette,
            the least such number; of one or two clients there is one cluster.
        exactly: how many clusters to make instead, as far as there are as many clients.

    >>> find_clusters(np.array([[0, 9, 9, 1], [9, 0, 1, 9], [9, 1, 0, 9], [1, 9, 9, 0]]), most=3)
    array([0, 1, 1, 0])
    """
    from sklearn.metrics import silhouette_score

    clients = len(distances)
    between = (distances + distances.T) / 2 * (1 - np.eye(clients))
    if exactly is not None:
        return _cut(between, min(exactly, clients))
    found = [_cut(between, number) for number in range(2, min(most, clients - 1) + 1)]
    if not found:
        return np.zeros(clients, np.int64)
    return found[int(np.argmax([silhouette_score(between, labels, metric="precomputed") for labels in found]))]


def _cut(distances: Float[np.ndarray, "N N"], clusters: int) -> Int[np.ndarray, " N"]:
    from sklearn.cluster import AgglomerativeClustering

    if clusters == 1:
        return np.zeros(len(distances), np.int64)
    labels = AgglomerativeClustering(clusters, metric="precomputed", linkage="average").fit_predict(distances)
    return np.array(first_seen(labels.tolist()), np.int64)


def first_seen(labels: list[int]) -> list[int]:
    """Return labels numbered in the order in which they are first seen.

    >>> first_seen([7, 3, 7, 5])
    [0, 1, 0, 2]
    """
    numbers = {label: number for number, label in enumerate(dict.fromkeys(labels))}
    return [numbers[label] for label in labels]
