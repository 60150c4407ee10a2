import doctest

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import adjusted_rand_score

from fedgram.numerics import clustering
from fedgram.numerics.clustering import coordinates, cosine_distances, find_clusters, first_seen, k_means
from helpers import rng


def gram_of(X):
    X = X - X.mean(axis=0)
    return torch.from_numpy(X @ X.T)


def test_the_examples_of_the_documentation():
    result = doctest.testmod(clustering)
    assert result.attempted >= 4
    assert not result.failed


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


def groups(sizes, noise, random, shape=(3, 2)):
    """Matrices of some kinds in turn, and the kind of each, in a random order."""
    kinds = random.permutation(np.repeat(np.arange(len(sizes)), sizes))
    centres = 5 * random.standard_normal((len(sizes), *shape))
    rows = centres[kinds] + noise * random.standard_normal((len(kinds), *shape))
    return torch.from_numpy(rows), kinds


def same(first, second):
    """Whether two ways to cut clients into clusters are one."""
    return np.array_equal(first[:, None] == first, second[:, None] == second)


def test_distances_are_the_mean_over_layers_of_one_minus_the_cosine():
    random = rng(0)
    first = [random.standard_normal((4, *shape)) for shape in ((3, 2), (5, 2))]
    second = [random.standard_normal((3, *shape)) for shape in ((3, 2), (5, 2))]
    found = cosine_distances(*([torch.from_numpy(layer) for layer in layers] for layers in (first, second)))
    for i in range(4):
        for j in range(3):
            pairs = [(X[i].ravel(), Y[j].ravel()) for X, Y in zip(first, second, strict=True)]
            cosines = [x @ y / np.linalg.norm(x) / np.linalg.norm(y) for x, y in pairs]
            assert found[i, j] == pytest.approx(1 - np.mean(cosines), abs=1e-14)


def test_the_size_of_a_matrix_is_of_no_account_and_zeros_are_far_from_all():
    rows = torch.from_numpy(rng(0).standard_normal((3, 4)))
    found = cosine_distances([torch.cat([rows, 7 * rows, 0 * rows[:1]])], [rows])
    np.testing.assert_allclose(found[:3], found[3:6], rtol=0, atol=1e-14)
    np.testing.assert_allclose(found[6], 1)
    assert (found >= 0).all()


@settings(deadline=None, max_examples=20)
@given(sizes=st.lists(st.integers(2, 5), min_size=2, max_size=4), seed=st.integers(0, 99))
def test_kinds_that_are_far_apart_are_found_and_counted(sizes, seed):
    rows, kinds = groups(sizes, 1e-3, rng(seed), shape=(8, 5))
    found = find_clusters(cosine_distances([rows], [rows]), most=5)
    assert same(found, kinds)
    _, first = np.unique(found, return_index=True)
    assert (np.diff(first) > 0).all()  # numbered in the order of their first members


def test_of_few_clients_there_are_fewer_clusters_than_clients():
    for clients, most in ((1, 1), (2, 1), (3, 2), (4, 3)):
        rows = torch.from_numpy(rng(clients).standard_normal((clients, 6)))
        found = find_clusters(cosine_distances([rows], [rows]), most=9)
        assert len(found) == clients
        assert found.max() < most


def test_the_number_may_be_given():
    rows, kinds = groups([3, 3], 1e-3, rng(0))
    distances = cosine_distances([rows], [rows])
    for number in (1, 3, 6, 9):
        assert find_clusters(distances, most=4, exactly=number).max() + 1 == min(number, 6)
    assert same(find_clusters(distances, most=4, exactly=2), kinds)


def test_clients_that_are_all_alike_are_no_trouble():
    assert find_clusters(np.zeros((5, 5)), most=4).max() >= 0
