import doctest
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedgram import cohort as module
from fedgram.cohort import (
    client_weights,
    cohort_size,
    cut_blocks,
    deal_blocks,
    imbalance,
    local_batches,
    local_step_count,
    mean_over_clients,
    sample,
)
from fedgram.errors import DataError

step_lists = st.lists(st.integers(1, 50), min_size=1, max_size=30)


def test_the_examples_of_the_docstrings_hold():
    result = doctest.testmod(module)
    assert result.attempted
    assert not result.failed


@pytest.mark.parametrize(
    ("participation", "clients", "size"),
    [(0.2, 20, 4), (1.0, 20, 20), (1, 20, 20), (5, 20, 5), (0.01, 20, 1), (0.5, 3, 2), (20, 20, 20), (2.0, 20, 2)],
)
def test_participation_is_a_share_up_to_one_and_a_number_above(participation, clients, size):
    assert cohort_size(participation, clients) == size
    assert isinstance(cohort_size(participation, clients), int)


def test_a_cohort_is_ascending_without_repeats_and_depends_on_seed_and_round_alone():
    cohorts = {(seed, number): sample(seed, number, 50, 7) for seed in range(3) for number in range(3)}
    for key, cohort in cohorts.items():
        assert cohort == sorted(set(cohort))
        assert len(cohort) == 7
        assert set(cohort) <= set(range(50))
        assert sample(*key, 50, 7) == cohort
    assert len({tuple(cohort) for cohort in cohorts.values()}) == len(cohorts)
    assert sample(0, 1, 5, 5) == [0, 1, 2, 3, 4]


def test_every_client_is_sampled_equally_often():
    rounds, clients, size = 2000, 10, 3
    counts = np.bincount(np.concatenate([sample(0, r, clients, size) for r in range(rounds)]), minlength=clients)
    share = size / clients
    deviation = math.sqrt(rounds * share * (1 - share))
    assert np.abs(counts - rounds * share).max() < 4 * deviation


def test_weights_are_uniform_or_shares_of_the_cohorts_samples():
    assert client_weights("uniform", [1, 4, 7, 9], [1, 2, 3, 4]) == dict.fromkeys([1, 4, 7, 9], 0.25)
    assert client_weights("samples", [1, 4, 7], [1, 2, 5]) == {1: 0.125, 4: 0.25, 7: 0.625}


@settings(deadline=None)
@given(step_lists, st.integers(1, 10))
def test_blocks_hold_every_client_once_the_longest_first(steps, size):
    cohort = [3 * i + 1 for i in range(len(steps))]
    blocks = cut_blocks(cohort, steps, size)
    pairs = [pair for block in blocks for pair in zip(block.clients, block.steps, strict=True)]
    assert sorted(pairs) == list(zip(cohort, steps, strict=True))
    assert pairs == sorted(pairs, key=lambda pair: (-pair[1], pair[0]))
    assert [len(block.clients) for block in blocks[:-1]] == [size] * (len(blocks) - 1)
    assert 1 <= len(blocks[-1].clients) <= size


@settings(deadline=None)
@given(step_lists, st.integers(1, 4), st.integers(1, 6), st.randoms())
def test_deal_gives_every_block_to_one_rank_and_balances_the_steps(steps, size, ranks, random):
    blocks = cut_blocks(range(len(steps)), steps, size)
    hands = deal_blocks(blocks, ranks)
    assert len(hands) == ranks
    assert sorted((b for hand in hands for b in hand), key=lambda b: b.clients) == sorted(
        blocks, key=lambda b: b.clients
    )
    loads = [sum(sum(block.steps) for block in hand) for hand in hands]
    longest = max(sum(block.steps) for block in blocks)
    assert max(loads) - min(loads) <= longest
    assert imbalance(hands) == pytest.approx(max(loads) / np.mean(loads))
    # Graham (1969): the rank that ends last got its last block when it had at most the mean load.
    assert max(loads) <= sum(loads) / ranks + longest * (1 - 1 / ranks) + 1e-9
    shuffled = list(blocks)
    random.shuffle(shuffled)
    assert deal_blocks(shuffled, ranks) == hands


def test_deal_takes_the_longest_block_first():
    blocks = cut_blocks([0, 1, 2, 3], [2, 3, 4, 5], 1)
    assert [[b.clients for b in hand] for hand in deal_blocks(blocks, 2)] == [[(3,), (0,)], [(2,), (1,)]]
    assert deal_blocks(blocks[:1], 3) == [blocks[:1], [], []]


def test_local_steps_are_given_or_cover_every_sample_in_each_epoch():
    assert local_step_count(10, 4, None, None) == 3
    assert local_step_count(10, 4, 2, None) == 6
    assert local_step_count(8, 4, 1, None) == 2
    assert local_step_count(10, 4, None, 7) == 7


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 20), st.integers(0, 12), st.integers(1, 6), st.integers(0, 5))
def test_every_pass_sees_every_sample_once(samples, steps, batch_size, seed):
    indices = np.arange(100, 100 + samples)
    batches = local_batches(indices, steps, batch_size, np.random.default_rng(seed))
    assert len(batches) == steps
    per_pass = math.ceil(samples / batch_size)
    for start in range(0, steps, per_pass):
        whole = batches[start : start + per_pass]
        seen = np.concatenate(whole)
        assert len(set(seen.tolist())) == len(seen)
        assert all(len(batch) == batch_size for batch in whole[: per_pass - 1])
        if len(whole) == per_pass:
            assert sorted(seen.tolist()) == indices.tolist()


def test_every_pass_has_an_order_of_its_own_from_the_generator():
    indices = np.arange(30)
    first, second = local_batches(indices, 2, 30, np.random.default_rng(0))
    assert not np.array_equal(first, second)
    assert not np.array_equal(first, indices)
    again, _ = local_batches(indices, 2, 30, np.random.default_rng(0))
    assert np.array_equal(first, again)
    assert np.array_equal(indices, np.arange(30))


def test_the_mean_over_clients_is_weighted_and_has_no_order():
    values, equal = {1: 1e16, 2: -1e16, 0: 3.0}, dict.fromkeys(range(3), 0.5)
    assert mean_over_clients(values, equal) == mean_over_clients(dict(sorted(values.items())), equal) == 1.5
    assert mean_over_clients({3: 1.0, 5: 4.0}, {5: 0.75, 3: 0.25}) == 3.25


def test_a_client_without_samples_is_an_error_and_no_endless_loop():
    with pytest.raises(DataError, match="no samples"):
        local_batches(np.array([], dtype=np.int64), 2, 3, np.random.default_rng(0))
