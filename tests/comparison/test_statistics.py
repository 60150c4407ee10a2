import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from fedgram.comparison.statistics import (
    best,
    bootstrap_interval,
    estimate,
    paired_difference,
    rank_agreement,
    t_interval,
)

FIGURES = st.lists(st.floats(0, 1), min_size=2, max_size=8)
BY_SEED = st.dictionaries(st.integers(0, 6), st.floats(0, 1), max_size=7)


def test_the_t_interval_is_scipys_and_that_of_the_tables_of_student():
    values = [0.71, 0.74, 0.69, 0.75]
    found = t_interval(values)
    low, high = stats.t.interval(0.95, 3, np.mean(values), stats.sem(values))
    assert (found.mean, found.low, found.high) == pytest.approx((0.7225, low, high), abs=1e-12)
    assert found.count == 4
    assert t_interval([1, 2, 3]).half_width == pytest.approx(
        4.302653 / np.sqrt(3), abs=1e-6
    )  # t of 2 degrees: 4.302653
    assert t_interval([0, 1]).half_width == pytest.approx(12.7062 / 2, abs=1e-4)


def test_the_t_interval_covers_the_mean_as_often_as_it_says():
    samples = np.random.default_rng(0).normal(3, 2, (2000, 3))
    covered = np.mean([abs(found.mean - 3) <= found.half_width for found in map(t_interval, samples)])
    assert abs(covered - 0.95) < 0.015  # three standard deviations of a share of 2,000


def test_the_bootstrap_is_the_quantiles_of_means_of_resamples():
    values = np.random.default_rng(1).normal(0, 1, 30)
    found = bootstrap_interval(values)
    other = stats.bootstrap((values,), np.mean, method="percentile", n_resamples=10_000, rng=2).confidence_interval
    assert found.mean == pytest.approx(values.mean())
    assert (found.low, found.high) == pytest.approx(tuple(other), abs=0.05)
    assert found == bootstrap_interval(values)


def test_the_bootstrap_of_three_is_their_range():
    found = bootstrap_interval([0.7, 0.9, 0.75])
    assert (found.low, found.high) == pytest.approx((0.7, 0.9))


@pytest.mark.parametrize("how", ["t", "bootstrap"])
def test_one_seed_has_no_interval_and_none_no_mean(how):
    one, none = estimate([0.5], how), estimate([], how)
    assert one.mean == 0.5
    assert none.count == 0
    assert all(map(np.isnan, (one.low, one.high, one.half_width, none.mean, none.low, none.high)))


def test_seeds_without_a_figure_do_not_count():
    assert estimate([0.5, np.nan, 0.7]) == estimate([0.5, 0.7])


@given(FIGURES, st.sampled_from(["t", "bootstrap"]))
@settings(max_examples=50, deadline=None)
def test_an_interval_holds_its_mean(values, how):
    found = estimate(values, how)
    assert found.low <= found.mean <= found.high
    assert found.half_width >= 0


@given(FIGURES, st.floats(0.1, 10), st.floats(-5, 5))
def test_an_interval_moves_and_grows_with_the_figures(values, scale, shift):
    one, other = t_interval(values), t_interval([scale * value + shift for value in values])
    assert other.low == pytest.approx(scale * one.low + shift, abs=1e-9)
    assert other.high == pytest.approx(scale * one.high + shift, abs=1e-9)


def test_the_p_value_is_that_of_scipys_paired_test():
    one, other = [0.71, 0.74, 0.69, 0.75, 0.70], [0.70, 0.70, 0.68, 0.71, 0.71]
    found = paired_difference(dict(enumerate(one)), dict(enumerate(other)))
    assert found.p == pytest.approx(stats.ttest_rel(one, other).pvalue, rel=1e-10)
    assert found.mean == pytest.approx(0.018)
    assert found.count == 5


def test_two_seeds_have_a_p_value_of_one_degree_of_freedom():
    found = paired_difference({0: 0.5, 1: 0.7}, {0: 0.4, 1: 0.5})
    assert found.mean == pytest.approx(0.15)
    assert found.p == pytest.approx(2 * np.arctan2(1, 3) / np.pi)  # Cauchy: t = 0.15 / 0.05 = 3


def test_only_shared_seeds_count():
    assert paired_difference({0: 1.0, 1: 2.0, 5: 9.0}, {7: 0.0, 1: 1.0, 0: 2.0}).mean == 0
    assert paired_difference({0: 1.0, 1: np.nan}, {0: 0.5, 1: 0.5}).count == 1


@pytest.mark.parametrize(
    ("one", "other", "mean"),
    [
        ({}, {}, np.nan),
        ({0: 1.0}, {1: 1.0}, np.nan),
        ({0: 1.0}, {0: 0.5}, 0.5),
        ({0: 0.7, 1: 0.8}, {0: 0.7, 1: 0.8}, 0.0),
        ({0: 0.3, 1: 0.2, 2: 0.7}, {0: 0.2, 1: 0.1, 2: 0.6}, 0.1),  # alike but for rounding
    ],
)
def test_differences_without_spread_have_no_p_value(one, other, mean):
    found = paired_difference(one, other)
    assert found.mean == pytest.approx(mean, nan_ok=True)
    assert np.isnan(found.p)


@given(BY_SEED, BY_SEED)
def test_a_difference_is_antisymmetric_and_its_p_value_symmetric(one, other):
    there, back = paired_difference(one, other), paired_difference(other, one)
    assert there.mean == pytest.approx(-back.mean, nan_ok=True)
    assert there.p == pytest.approx(back.p, nan_ok=True)
    assert np.isnan(there.p) or 0 <= there.p <= 1


def test_the_best_are_the_highest_or_the_lowest_and_all_of_equal_ones():
    values = [0.2, np.nan, 0.9, 0.9, 0.2]
    assert best(values) == {2, 3}
    assert best(values, lowest=True) == {0, 4}
    assert best([np.nan]) == best([]) == frozenset()


def test_agreement_of_orders_is_that_of_ranks():
    assert rank_agreement([1, 2, 3], [10, 20, 300]) == pytest.approx((1, 1))
    assert rank_agreement([1, 2, 3], [3, 2, 1]) == pytest.approx((-1, -1))
    assert rank_agreement([1, 2], [5, 4]) == pytest.approx((-1, -1))
    # By hand: ranks 1 2 3 4 and 2 1 3 4, d² = 1 + 1: ρ = 1 - 6·2/(4·15); 5 of 6 pairs agree: τ = 4/6.
    assert rank_agreement([1, 2, 3, 4], [2, 1, 3, 4]) == pytest.approx((0.8, 2 / 3))


@pytest.mark.parametrize(("one", "other"), [([], []), ([1], [1]), ([1, 1], [1, 2]), ([1, 2, 3], [4, 4, 4])])
def test_orders_of_too_little_do_not_agree_or_disagree(one, other):
    assert all(map(np.isnan, rank_agreement(one, other)))
