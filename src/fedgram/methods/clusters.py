"""Which clients are alike: clusters of what they have trained."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

__all__ = ["cosine_distances", "find_clusters"]


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
    _, first, own = np.unique(labels, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[own]
