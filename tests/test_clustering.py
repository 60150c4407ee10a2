import doctest

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import adjusted_rand_score

from fedgram import clustering
from fedgram.clustering import coordinates, first_seen, k_means
from helpers import rng


def gram_of(X):
    X = X - X.mean(axis=0)
    return torch.from_numpy(X @ X.T)


def test_the_examples_of_the_documentation():
    assert doctest.testmod(clustering).failed == 0


@given(st.integers(1, 9), st.integers(1, 12), st.integers(0, 2**32 - 1))
@settings(max_examples=40, deadline=None)
def test_points_are_as_far_apart_as_the_vectors(count, width, seed):
    X = rng(seed).normal(size=(count, width))
    points = coordinates(gram_of(X))
    of_vectors, of_points = (((Z[:, None] - Z[None]) ** 2).sum(axis=2) for Z in (X, points))
    np.testing.assert_allclose(of_points, of_vectors, rtol=1e-9, atol=1e-9)


@given(st.integers(2, 5), st.integers(0, 2**32 - 1))
@settings(max_examples=20, deadline=None)
def test_groups_that_are_far_apart_are_found(clusters, seed):
    random = rng(seed)
    truth = random.permutation(np.repeat(np.arange(clusters), 4))
    X = 100 * np.eye(clusters, 30)[truth] + random.normal(size=(len(truth), 30))
    found = k_means(gram_of(X), clusters, seed)
    assert adjusted_rand_score(truth, found) == 1
    assert found == first_seen(found)


def test_the_same_points_have_the_same_clusters_and_others_may_be_cut_otherwise_by_another_seed():
    gram = gram_of(rng(1).normal(size=(40, 6)))
    assert k_means(gram, 8, 0) == k_means(gram, 8, 0)
    assert any(k_means(gram, 8, seed) != k_means(gram, 8, 0) for seed in range(1, 4))


@pytest.mark.parametrize("common", [0.0, 0.1, 1e6])
def test_vectors_that_do_not_differ_are_one_cluster(common):
    """No warning, which would be an error here."""
    X = np.full((6, 9), common)
    assert k_means(gram_of(X), 3, 0) == [0] * 6
    X[[1, 4]] += 1 + abs(common)
    assert k_means(gram_of(X), 3, 0) == [0, 1, 0, 0, 1, 0]
    assert k_means(gram_of(X), 1, 0) == [0] * 6
