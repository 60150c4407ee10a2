import doctest

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from fedgram.numerics import mixtures
from fedgram.numerics.mixtures import (
    Mixture,
    component_costs,
    describe_classes,
    distances,
    fit_mixture,
    read_classes,
    transport_costs,
)
from fedgram.state import bytes_of, parameters_of
from helpers import rng


def test_the_examples_of_the_documentation():
    assert doctest.testmod(mixtures).failed == 0


def mixture(random, components, width=4):
    return Mixture(
        random.dirichlet(np.ones(components)),
        random.normal(size=(components, width)),
        random.random((components, width)),
    )


@given(st.integers(1, 5), st.integers(0, 2**32 - 1))
@settings(max_examples=30, deadline=None)
def test_moving_equal_masses_is_an_assignment(size, seed):
    cost = rng(seed).random((size, size))
    mass = np.full(size, 1 / size)
    best = cost[linear_sum_assignment(cost)].mean()
    assert transport_costs([(mass, mass, cost)])[0] == pytest.approx(best, abs=1e-9)


def test_moving_along_a_line_costs_the_distance_of_the_quantiles():
    """W₁ on a line is the area between the distribution functions."""
    random, problems, expected = rng(1), [], []
    for g, h in [(3, 3), (2, 5), (1, 4), (4, 1), (6, 2)] * 50:  # more than one linear program
        x, a, y, b = (draw for n in (g, h) for draw in (random.normal(size=n), random.dirichlet(np.ones(n))))
        problems.append((a, b, np.abs(x[:, None] - y)))
        grid = np.sort(np.concatenate([x, y]))
        gaps = [abs(a[x <= edge].sum() - b[y <= edge].sum()) for edge in grid[:-1]]
        expected.append(np.diff(grid) @ gaps)
    np.testing.assert_allclose(transport_costs(problems), expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("scale", [1e-12, 1e6])
def test_a_cost_scales_with_its_units(scale):
    random = rng(2)
    a, b, cost = random.dirichlet(np.ones(3)), random.dirichlet(np.ones(4)), random.random((3, 4))
    plain, scaled = transport_costs([(a, b, cost)]), transport_costs([(a, b, scale * cost)])
    np.testing.assert_allclose(scaled, scale * plain, rtol=1e-8)
    assert transport_costs([(a, b, 0 * cost)]) == [0.0]


def test_components_are_as_far_apart_as_gaussians_are():
    """By the formula for any covariances, with roots of matrices."""
    random = rng(3)
    one, other = mixture(random, 2), mixture(random, 3)
    found = component_costs(one, other)
    for g in range(2):
        for h in range(3):
            S, T = np.diag(one.variances[g]), np.diag(other.variances[h])
            middle = np.sqrt(np.sqrt(S) @ T @ np.sqrt(S))
            expected = ((one.means[g] - other.means[h]) ** 2).sum() + np.trace(S + T - 2 * middle)
            assert found[g, h] == pytest.approx(expected, rel=1e-12)


def test_clients_of_one_gaussian_are_as_far_apart_as_these():
    random = rng(4)
    gaussians = [mixture(random, 1) for _ in range(3)]
    found = distances([(np.ones(1), [each]) for each in gaussians])
    for k, one in enumerate(gaussians):
        for j, other in enumerate(gaussians):
            assert found[k, j] == pytest.approx(component_costs(one, other)[0, 0] if k != j else 0.0, rel=1e-12)


def test_distances_are_those_of_two_stages_whatever_the_order_of_classes():
    random = rng(5)
    classes = [[mixture(random, 2) for _ in range(count)] for count in (2, 3, 1)]
    shares = [random.dirichlet(np.ones(len(own))) for own in classes]
    found = distances(list(zip(shares, classes, strict=True)))
    assert np.array_equal(found, found.T)
    assert not found.diagonal().any()
    assert (found + np.eye(3) > 0).all()
    inner = np.array([[transport_costs([(o.weights, p.weights, component_costs(o, p))])[0] for p in classes[1]]
                      for o in classes[0]])  # fmt: skip
    assert found[0, 1] == pytest.approx(transport_costs([(shares[0], shares[1], inner)])[0], rel=1e-9)
    turned = distances([(share[::-1], own[::-1]) for share, own in zip(shares, classes, strict=True)])
    np.testing.assert_allclose(turned, found, rtol=1e-9)


def test_clients_with_the_same_data_are_at_no_distance_and_others_are_further_the_less_they_share():
    random = rng(6)
    good, bad = mixture(random, 2), mixture(random, 2)
    shares = (0.5, 0.5), (0.5, 0.5), (0.9, 0.1), (1.0, 0.0)
    found = distances([(np.array(share), [good, bad]) for share in shares])
    assert found[0, 1] == pytest.approx(0, abs=1e-12)
    assert 0 < found[0, 2] < found[0, 3]


def test_a_mixture_finds_what_was_drawn_and_is_the_same_again():
    random = rng(7)
    centres = np.array([[0.0, 0.0], [9.0, 0.0], [0.0, 9.0]])
    samples = np.repeat(centres, [60, 30, 30], axis=0) + 0.1 * random.normal(size=(120, 2))
    found = fit_mixture(samples, 3, 0, 5)
    order = np.argsort(found.means @ [1, 2])
    np.testing.assert_allclose(found.means[order], centres, atol=0.1)
    np.testing.assert_allclose(found.weights[order], [0.5, 0.25, 0.25], atol=1e-6)
    np.testing.assert_allclose(found.variances, 0.01, rtol=0.6)
    again = fit_mixture(samples, 3, 0, 5)
    assert all(np.array_equal(getattr(again, name), getattr(found, name)) for name in ("weights", "means", "variances"))


@pytest.mark.parametrize(("samples", "components"), [(1, 1), (2, 2), (5, 3), ("equal", 1)])
def test_a_mixture_has_no_more_components_than_samples_that_differ(samples, components):
    data = np.ones((4, 3)) if samples == "equal" else rng(8).normal(size=(samples, 3))
    found = fit_mixture(data, 3, 0)
    assert found.weights.shape == (components,)
    assert found.weights.sum() == pytest.approx(1)
    assert found.means.shape == found.variances.shape == (components, 3)
    assert (found.variances > 0).all()


def test_what_a_client_sends_is_its_mixtures_in_single_precision_and_no_names():
    random = rng(9)
    samples, classes = random.normal(size=(20, 5)), np.array([7] * 12 + [2] * 7 + [4])
    sent = describe_classes(samples, classes, 3, 0, 1)
    assert parameters_of({"": sent}) == 7 * (1 + 2 * 5)  # two classes of three components, one of one
    assert bytes_of({"": sent}) == 4 * 7 * 11 + 8 * 2 * 3
    shares, mixtures = read_classes(sent)
    np.testing.assert_allclose(shares, [7 / 20, 1 / 20, 12 / 20])
    assert [len(each.weights) for each in mixtures] == [3, 1, 3]
    own = fit_mixture(samples[classes == 2], 3, 0, 1, 2)
    np.testing.assert_allclose(mixtures[0].means, own.means, rtol=1e-6)
    assert all(torch.equal(sent[key], tensor) for key, tensor in describe_classes(samples, classes, 3, 0, 1).items())
