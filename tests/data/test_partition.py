import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedgram.data.partition import (
    IID,
    Dirichlet,
    Shards,
    _proportions,
    _surplus,
    deal_like,
    quantile_edges,
    quantile_groups,
    quantile_names,
)
from fedgram.data.partition_picture import counts
from fedgram.errors import ConfigurationError, DataError

labels_strategy = st.lists(st.integers(0, 4), min_size=1, max_size=60).map(np.array)
rho_strategy = st.sampled_from([1e-300, 1e-6, 1e-3, 0.1, 0.5, 10.0, 1e6])
LABELS = np.arange(3000) % 3


def assert_deals(shards, labels, clients):
    """Every sample goes to exactly one client, in ascending order."""
    assert len(shards) == clients
    assert np.array_equal(np.sort(np.concatenate(list(shards))), np.arange(len(labels)))
    assert all((np.diff(shard) > 0).all() for shard in shards)
    assert shards.sizes.tolist() == [len(shard) for shard in shards]
    assert shards.order.dtype == shards.offsets.dtype == np.int64


def same(left, right):
    return np.array_equal(left.order, right.order) and np.array_equal(left.offsets, right.offsets)


@given(labels_strategy, st.integers(0, 2**32), st.data())
def test_iid(labels, seed, data):
    clients = data.draw(st.integers(1, len(labels)))
    shards = IID()(labels, clients, seed)
    assert_deals(shards, labels, clients)
    assert np.ptp(shards.sizes) <= 1
    assert same(shards, IID()(labels, clients, seed))


@given(labels_strategy, st.integers(0, 2**32), rho_strategy, st.data())
def test_dirichlet(labels, seed, rho, data):
    least = data.draw(st.integers(1, min(4, len(labels))))
    clients = data.draw(st.integers(1, len(labels) // least))
    shards = Dirichlet(rho, least)(labels, clients, seed)
    assert_deals(shards, labels, clients)
    assert shards.sizes.min() >= least
    assert same(shards, Dirichlet(rho, least)(labels, clients, seed))


def test_the_sizes_of_some_clients_are_found_without_the_others():
    shards = Dirichlet(0.3)(LABELS, 10, 0)
    assert shards.sizes_of(np.array([7, 2, 2])).tolist() == shards.sizes[[7, 2, 2]].tolist()
    assert shards.sizes_of(np.zeros(0, np.int64)).tolist() == []


@pytest.mark.parametrize("partition", [IID(), Dirichlet(0.5)])
def test_another_seed_deals_otherwise(partition):
    assert not same(partition(LABELS, 10, 0), partition(LABELS, 10, 1))


def test_the_global_generator_plays_no_part():
    np.random.seed(1)  # noqa: NPY002  (this is what must have no effect)
    first = Dirichlet(0.1)(LABELS, 10, 0)
    np.random.seed(2)  # noqa: NPY002
    assert same(first, Dirichlet(0.1)(LABELS, 10, 0))


def test_dirichlet_follows_the_drawn_proportions():
    """The share of a client in a label has mean 1/N and variance (1/N)(1 - 1/N)/(N rho + 1)."""
    clients, rho, labels = 5, 0.5, np.zeros(2000, int)
    shares = np.stack([Dirichlet(rho)(labels, clients, seed).sizes / len(labels) for seed in range(600)])
    variance = (1 / clients) * (1 - 1 / clients) / (clients * rho + 1)
    assert np.allclose(shares.mean(0), 1 / clients, atol=0.04)
    assert np.allclose(shares.var(0), variance, rtol=0.25)


def test_concentration_sets_the_skew():
    def skew(rho):
        table = counts(Dirichlet(rho)(LABELS, 10, 3), LABELS, 3)
        return (table / table.sum(1, keepdims=True)).max(1).mean()

    assert skew(0.01) > 0.9 > skew(1.0) > skew(1000.0)
    assert skew(1000.0) < 0.4


def test_labels_are_drawn_independently():
    shards = Dirichlet(1e-6, min_samples=1)(LABELS, 5, 1)
    table = counts(shards, LABELS, 3)
    assert (table.max(1) > 900).sum() >= 2


@pytest.mark.parametrize("rho", [1e-320, 1e-300, 1e-6, 1e-3])
def test_tiny_rho_gives_proportions(rho):
    for seed in range(50):
        proportions = _proportions(np.random.default_rng(seed), rho, 7)
        assert np.isfinite(proportions).all()
        assert proportions.sum() == pytest.approx(1)


@pytest.mark.parametrize("broken", [np.full(7, np.nan), np.zeros(7)])
def test_underflowed_proportions_give_all_to_a_random_client(broken):
    class Generator:
        def dirichlet(self, alpha):
            return broken

        def integers(self, high):
            return high - 2

    assert _proportions(Generator(), 1e-9, 7).tolist() == [0, 0, 0, 0, 0, 1, 0]


@given(st.lists(st.integers(0, 9), min_size=1, max_size=8), st.data())
def test_surplus_equals_taking_one_at_a_time_from_the_largest(sizes, data):
    wanted = data.draw(st.integers(0, sum(sizes)))
    left = np.array(sizes)
    for _ in range(wanted):
        left[left.argmax()] -= 1
    assert _surplus(np.array(sizes), wanted).tolist() == (np.array(sizes) - left).tolist()


def test_only_what_is_lacking_is_moved():
    labels, clients = np.zeros(100, int), 8
    drawn = Dirichlet(0.1)
    drawn._filled = lambda owners, clients, generator: owners
    seed = next(
        seed for seed in range(99) if (np.bincount(drawn.owners(labels, clients, seed), minlength=8) == 0).sum() == 2
    )
    before, after = drawn.owners(labels, clients, seed), Dirichlet(0.1).owners(labels, clients, seed)
    moved = np.flatnonzero(before != after)
    assert len(moved) == 2
    assert set(after[moved]) == set(range(8)) - set(before)
    assert set(before[moved]) == {np.bincount(before).argmax()}


def test_without_min_samples_an_empty_client_is_refused_by_number():
    labels = np.zeros(50, int)
    owned = Dirichlet(1e-6, 1)(labels, 3, 0).sizes
    empty = [client for client in range(3) if owned[client] == 1]
    with pytest.raises(
        DataError, match=rf"2 of 3 clients got no sample \({empty[0]}, {empty[1]}\); set min_samples to 1"
    ):
        Dirichlet(1e-6, 0)(labels, 3, 0)


def test_without_min_samples_nothing_is_moved():
    shards = Dirichlet(100.0, 0)(LABELS, 4, 0)
    assert same(shards, Dirichlet(100.0, 1)(LABELS, 4, 0))


@pytest.mark.parametrize("partition", [IID(), Dirichlet(), Dirichlet(min_samples=0)])
def test_more_clients_than_samples(partition):
    with pytest.raises(DataError, match=r"11 clients cannot share 10 training samples.*set clients to 10"):
        partition(np.zeros(10, int), 11, 0)


def test_min_samples_that_the_data_cannot_give():
    with pytest.raises(DataError, match=r"need 12 training samples, got 10"):
        Dirichlet(min_samples=3)(np.zeros(10, int), 4, 0)


@pytest.mark.parametrize("rho", [0, -0.5, float("nan"), float("inf")])
def test_bad_rho(rho):
    with pytest.raises(ConfigurationError, match=r"rho must be a positive number"):
        Dirichlet(rho)


def test_bad_min_samples():
    with pytest.raises(ConfigurationError, match=r"min_samples must be at least 0"):
        Dirichlet(min_samples=-1)


def test_no_clients():
    with pytest.raises(ConfigurationError, match=r"clients must be at least 1, got 0"):
        IID()(LABELS, 0, 0)


def test_dirichlet_needs_classes():
    with pytest.raises(DataError, match=r"use the partition IID"):
        Dirichlet()(np.linspace(0, 1, 10), 2, 0)


def test_a_client_that_does_not_exist():
    shards = IID()(LABELS, 4, 0)
    with pytest.raises(IndexError, match=r"numbered 0\.\.3, got 4"):
        shards[4]


@pytest.mark.parametrize("partition", [IID(), Dirichlet(0.5)])
def test_many_clients_are_dealt(partition):
    shards = partition(np.arange(250_000) % 2, 200_000, 0)
    assert shards.sizes.min() == 1
    assert shards.sizes.sum() == 250_000


# --- other splits ---

other_strategy = st.lists(st.integers(-1, 6), max_size=60).map(lambda groups: np.array(groups, np.int64))


@given(labels_strategy, other_strategy, st.integers(0, 2**32), st.data())
def test_another_split_is_dealt_like_the_training_data(groups, other, seed, data):
    clients = data.draw(st.integers(1, len(groups)))
    shards = Dirichlet(0.5)(groups, clients, seed)
    dealt = deal_like(shards, groups, other, seed)
    assert_deals(dealt, other, clients)
    for group in set(other.tolist()):
        known = group >= 0 and (groups == group).any()
        weights = np.array([(groups[shard] == group).sum() if known else len(shard) for shard in shards])
        got = np.array([(other[shard] == group).sum() for shard in dealt])
        ideal = weights / weights.sum() * (other == group).sum()
        assert (np.abs(got - ideal) < 1 - 1e-9).all()
        assert not got[weights == 0].any()
    assert same(dealt, deal_like(shards, groups, other, seed))


@given(labels_strategy, other_strategy, st.data())
def test_how_many_samples_a_client_gets_does_not_depend_on_their_order(groups, other, data):
    shards = Dirichlet(0.5)(groups, data.draw(st.integers(1, len(groups))), 0)
    shuffled = other[np.array(data.draw(st.permutations(range(len(other)))), np.int64)]
    one, two = (counts(deal_like(shards, groups, some, 3), some + 1, 8) for some in (other, shuffled))
    assert one.tolist() == two.tolist()


def test_groups_are_dealt_independently():
    shards, other = Dirichlet(0.5)(LABELS, 10, 0), LABELS[:300]
    changed = np.concatenate([other, np.full(50, 2)])
    one, two = deal_like(shards, LABELS, other, 0), deal_like(shards, LABELS, changed, 0)
    assert (one.owners[other != 2] == two.owners[:300][other != 2]).all()


def test_equal_training_data_gives_equal_counts_and_other_seeds_other_samples():
    shards, other = Dirichlet(0.5)(LABELS, 10, 0), np.tile(LABELS, 2)
    dealt = deal_like(shards, LABELS, other, 0)
    assert counts(dealt, other, 3).tolist() == (2 * counts(shards, LABELS, 3)).tolist()
    assert not same(dealt, deal_like(shards, LABELS, other, 1))


def test_fewer_samples_than_clients_go_to_random_ones():
    shards = IID()(np.zeros(100, int), 100, 0)
    owners = [set(deal_like(shards, np.zeros(100, int), np.zeros(10, int), seed).owners) for seed in range(20)]
    assert all(len(some) == 10 for some in owners)
    assert len(set.union(*owners)) > 60


def test_shards_of_another_split_are_refused():
    with pytest.raises(DataError, match=r"the shards hold 3,000 samples, but groups are given for 2"):
        deal_like(IID()(LABELS, 4, 0), LABELS[:2], LABELS[:2], 0)


@given(labels_strategy, st.data())
def test_owners_and_shards_are_two_ways_to_say_the_same(labels, data):
    clients = data.draw(st.integers(1, len(labels)))
    owners = Dirichlet(0.5).owners(labels, clients, 0)
    assert np.array_equal(Shards.of(owners, clients).owners, owners)


# --- quantiles ---

scores_strategy = st.lists(st.floats(-1e6, 1e6) | st.integers(0, 3).map(float), min_size=1, max_size=50).map(np.array)


@given(scores_strategy, st.integers(1, 8))
def test_quantile_bins_are_never_empty_and_keep_equal_values_together(scores, bins):
    edges = quantile_edges(scores, bins)
    groups = quantile_groups(scores, edges)
    assert len(edges) < bins
    assert set(groups) == set(range(len(edges) + 1))
    order = np.argsort(scores, kind="stable")
    assert (np.diff(groups[order]) >= 0).all()
    assert len({(score, group) for score, group in zip(scores, groups, strict=True)}) == len(set(scores))
    assert len(quantile_names(scores, edges)) == len(edges) + 1


@given(st.integers(1, 8), st.integers(0, 60), st.randoms(use_true_random=False))
def test_quantile_bins_of_distinct_values_differ_by_one_in_size(bins, extra, random):
    scores = np.arange(bins + extra, dtype=float)
    random.shuffle(scores)
    sizes = np.bincount(quantile_groups(scores, quantile_edges(scores, bins)))
    assert len(sizes) == bins
    assert np.ptp(sizes) <= 1


def test_values_outside_the_training_range_belong_to_the_outer_bins_and_nan_to_none():
    assert quantile_groups(np.array([-9.0, 2.0, 99.0, np.nan]), np.array([1.0, 2.0])).tolist() == [0, 2, 2, -1]
    assert quantile_groups(np.array([5.0, np.nan]), np.zeros(0)).tolist() == [0, -1]


@pytest.mark.parametrize(
    ("scores", "bins", "names"),
    [
        ([0.0, 1.75, 5.0], 2, ["0.00 to 1.75", "1.75 to 5.00"]),
        ([0.0, 0.001, 0.002, 0.003], 2, ["0.000 to 0.002", "0.002 to 0.003"]),
        ([3.0, 3.0], 5, ["3.00 to 3.00"]),
        ([0.0, 5.0, 5.0, 5.0], 2, ["0.00 to 5.00", "5.00 to 5.00"]),
    ],
)
def test_bins_are_named_by_their_bounds(scores, bins, names):
    scores = np.array(scores)
    assert quantile_names(scores, quantile_edges(scores, bins)) == names
