"""Makers of matrices with known properties. All are float64 NumPy arrays from a given generator."""

import numpy as np

from fedgram.methods import RoundContext

INFO = RoundContext(3, 0, dict.fromkeys(range(20), 2), 20)
"""A round that no client comes new to."""


def rng(seed=0):
    return np.random.default_rng(seed)


def orthogonal(n, random):
    """An n x n orthogonal matrix."""
    Q, R = np.linalg.qr(random.standard_normal((n, n)))
    return Q * np.sign(np.diag(R))


def with_singular_values(rows, cols, values, random):
    """A rows x cols matrix of the given singular values, with random singular vectors."""
    values = np.asarray(values, dtype=float)
    left = orthogonal(rows, random)[:, : len(values)]
    right = orthogonal(cols, random)[:, : len(values)]
    return left * values @ right.T


def conditioned(rows, cols, condition, random):
    """A rows x cols matrix of full rank, with singular values from 1 down to 1/condition."""
    return with_singular_values(rows, cols, np.geomspace(1, 1 / condition, min(rows, cols)), random)


def deficient(rows, cols, rank, random):
    """A rows x cols matrix of the given rank, well-conditioned on it."""
    return with_singular_values(rows, cols, np.linspace(2, 1, rank), random)


def drifted(A, clients, drift, random):
    """What the clients make of A: each adds noise of `drift` times A's norm. (N, r, k)."""
    noise = random.standard_normal((clients, *A.shape))
    return A + drift * np.linalg.norm(A) * noise / np.linalg.norm(noise, axis=(1, 2), keepdims=True)


def unequal_weights(clients, random):
    """Positive weights that sum to 1, the largest several times the smallest."""
    weights = np.arange(1.0, clients + 1)
    random.shuffle(weights)
    return weights / weights.sum()
