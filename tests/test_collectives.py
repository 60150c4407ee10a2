import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedgram.distributed.collectives import Ranks
from fedgram.errors import DataError, TrainingError, explain, located
from fedgram.ledger import Ledger, Traffic
from fedgram.state import ModelState
from thread_ranks import ThreadFabric, on_ranks

STATE = {"adapter|q|A": torch.zeros(2, 3), "adapter|q|B": torch.ones(2), "head|w|bias": torch.zeros(1)}
numbers = st.builds(
    lambda sign, m, e: sign * m * 10.0**e, st.sampled_from([-1, 1]), st.floats(1, 10), st.integers(-30, 29)
)
term_lists = st.lists(st.one_of(numbers, st.just(0.0)), min_size=1, max_size=40)


def exact_sum(ranks, values, count):
    return ranks.sum(lambda: (torch.tensor([v], dtype=torch.float64) for v in values), count, torch.zeros(1)).item()


def error(total, values):
    """How far a float is from the sum, exactly."""
    return abs(Fraction(total) - sum(map(Fraction, values)))


def bound(total, values):
    """Half a unit for each of N terms, which is below 2^-60 N max or 2^-1000, and the rounding of the result."""
    n = len(values)
    unit = max(Fraction(2) ** -60 * n * Fraction(max(map(abs, values))), Fraction(2) ** -1000)
    return n * unit / 2 + Fraction(2) ** -53 * abs(Fraction(total))


@settings(deadline=None)
@given(term_lists)
def test_a_sum_is_within_its_bound_of_the_exact_one(values):
    total = exact_sum(Ranks(), values, len(values))
    assert error(total, values) <= bound(total, values)


@settings(deadline=None)
@given(term_lists, st.randoms())
def test_a_sum_has_the_same_bits_in_any_order(values, random):
    shuffled = list(values)
    random.shuffle(shuffled)
    assert exact_sum(Ranks(), values, len(values)) == exact_sum(Ranks(), shuffled, len(values))


@settings(max_examples=25, deadline=None)
@given(term_lists, st.integers(2, 4), st.data())
def test_a_sum_has_the_same_bits_on_any_number_of_ranks(values, size, data):
    owners = data.draw(st.lists(st.integers(0, size - 1), min_size=len(values), max_size=len(values)))

    def work(ranks):
        own = [v for v, owner in zip(values, owners, strict=True) if owner == ranks.rank]
        return exact_sum(ranks, own, len(values))

    assert on_ranks(size, work) == [exact_sum(Ranks(), values, len(values))] * size


def test_a_plain_float_sum_would_differ():
    """The property above is not one that addition has by itself."""
    values = np.random.default_rng(0).standard_normal(20) * 10.0 ** np.arange(20)
    sums = {float(np.cumsum(np.random.default_rng(i).permutation(values))[-1]) for i in range(20)}
    assert len(sums) > 1
    assert len({exact_sum(Ranks(), np.random.default_rng(i).permutation(values), 20) for i in range(20)}) == 1


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 1023, 1024, 1025])
@pytest.mark.parametrize("value", [1.0, 2.0 - 2.0**-52, 1e300, 1e-300, -3.0])
def test_many_equal_terms_neither_overflow_nor_lose_a_bit_more_than_allowed(count, value):
    total = exact_sum(Ranks(), [value] * count, count)
    assert error(total, [value] * count) <= bound(total, [value] * count)


def test_zeros_denormals_and_one_term():
    assert exact_sum(Ranks(), [0.0, -0.0], 2) == 0.0
    tiny = 5e-324
    assert abs(exact_sum(Ranks(), [tiny, -3 * tiny], 2)) <= 3 * tiny
    assert exact_sum(Ranks(), [tiny, 1.0], 2) == 1.0
    assert exact_sum(Ranks(), [1 / 3], 1) == 1 / 3
    assert exact_sum(Ranks(), [2.0**-960, 2.0**-999, 2.0**-1002], 3) == 2.0**-960 + 2.0**-999  # the scale's end
    like = torch.zeros(0, 3)
    assert Ranks().sum(lambda: iter([like]), 1, like).shape == (0, 3)


def test_a_sum_of_matrices_is_float64_and_takes_terms_of_any_float_type():
    random = np.random.default_rng(0)
    terms = [random.standard_normal((3, 5)).astype(np.float32) for _ in range(4)]
    total = Ranks().sum(lambda: map(torch.from_numpy, terms), 4, torch.zeros(3, 5))
    assert total.dtype == torch.float64
    np.testing.assert_allclose(total.numpy(), np.sum(terms, axis=0, dtype=np.float64), rtol=0, atol=1e-15)
    half = Ranks().sum(lambda: iter([torch.full((2,), 1.5, dtype=torch.bfloat16)] * 3), 3, torch.zeros(2))
    assert half.tolist() == [4.5, 4.5]


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("position", [0, 1, 2])
@pytest.mark.parametrize("size", [1, 2, 3])
def test_a_term_that_is_not_finite_stops_every_rank(bad, position, size):
    values = [1.0, 2.0, 3.0]
    values[position] = bad

    def work(ranks):
        return exact_sum(ranks, values[ranks.rank :: ranks.size], 3)

    results = on_ranks(size, work)
    assert [type(result) for result in results] == [TrainingError] * size
    assert all("not finite" in str(result) for result in results)


def test_one_process_talks_to_nobody():
    ranks = Ranks()
    assert (ranks.rank, ranks.size, ranks.device) == (0, 1, torch.device("cpu"))
    ledger = Ledger()
    assert ranks.merge(ledger) is ledger
    assert ranks.broadcast("x") == "x"
    assert ranks.maximum(-3.5) == -3.5
    ranks.check_agreement(STATE, "state")
    ranks.stop_on(None)
    with pytest.raises(TrainingError, match=r"^client 3 diverged$"):
        ranks.stop_on("client 3 diverged")
    rows = torch.arange(6.0).reshape(3, 2)
    assert ranks.gather(rows, [4, 9, 7], [9, 7, 4]).tolist() == [[4, 5], [0, 1], [2, 3]]
    assert ranks.moved == 0


@pytest.mark.parametrize(("size", "owners"), [(2, [1, 1, 0, 1, 0]), (3, [2, 0, 0, 2, 2]), (3, [1, 1, 1, 1, 1])])
def test_rows_are_gathered_in_one_order_from_uneven_ranks(size, owners):
    """The last two have a rank without rows."""
    order = [8, 3, 5, 1, 9]
    rows = {i: torch.full((2, 3), float(i)) / 7 for i in order}

    def work(ranks):
        own = [i for i, owner in zip(sorted(order), owners, strict=True) if owner == ranks.rank]
        stacked = torch.stack([rows[i] for i in own]) if own else torch.zeros(0, 2, 3)
        return ranks.gather(stacked, order, own)

    expected = torch.stack([rows[i] for i in order])
    for result in on_ranks(size, work):
        assert torch.equal(result, expected)
        assert result.dtype == torch.float32


def test_traffic_of_all_ranks_is_merged_and_the_own_stays():
    def work(ranks):
        ledger = Ledger()
        for _ in range(ranks.rank):
            ledger.record("up", ModelState({"q": {"A": torch.zeros(3)}}))
        merged = ranks.merge(ledger)
        return ledger, merged

    results = on_ranks(3, work)
    for rank, (own, merged) in enumerate(results):
        assert merged.entries == {("up", "adapter"): Traffic(3, 9, 36)}
        assert own.entries == ({("up", "adapter"): Traffic(rank, 3 * rank, 12 * rank)} if rank else {})


@pytest.mark.parametrize("different", [[], [0], [1], [2], [1, 2]])
def test_ranks_that_disagree_stop_all_and_are_named(different):
    altered = STATE | {"adapter|q|B": torch.tensor([1.0, 1 + 2.0**-23]), "head|w|bias": torch.tensor([-0.0])}

    def work(ranks):
        ranks.check_agreement(altered if ranks.rank in different else STATE, "state after round 4")

    results = on_ranks(3, work)
    if not different:
        assert results == [None, None, None]
        return
    lowest = different[0] or 1  # where rank 0 is the one that is wrong, nobody can know it
    said = f"state after round 4: rank {lowest} differs from rank 0 in 2 of 3 tensors, the first is adapter|q|B; "
    for result in results:
        assert isinstance(result, TrainingError)
        assert str(result).startswith(said)


def test_a_tensor_that_another_rank_lacks_is_named():
    def work(ranks):
        ranks.check_agreement({} if ranks.rank else {"q": torch.ones(1)}, "start")

    assert all("rank 1 differs from rank 0 in 1 of 1 tensors, the first is q" in str(r) for r in on_ranks(2, work))


@pytest.mark.parametrize("troubled", [[0], [2], [1, 2], [0, 1, 2]])
def test_the_problem_of_one_rank_stops_all(troubled):
    def work(ranks):
        ranks.stop_on(f"trouble on {ranks.rank}" if ranks.rank in troubled else None)

    for result in on_ranks(3, work):
        assert isinstance(result, TrainingError)
        assert str(result) == f"trouble on {troubled[0]}"
    assert on_ranks(3, lambda ranks: ranks.stop_on(None)) == [None] * 3


def test_the_bytes_put_into_collectives_are_counted():
    def work(ranks):
        counts = [ranks.moved]
        ranks.maximum(1.0)
        counts.append(ranks.moved)
        ranks.sum(lambda: iter([torch.zeros(3, 5)]), 2, torch.zeros(3, 5))
        counts.append(ranks.moved)
        ranks.check_agreement(STATE, "state")
        counts.append(ranks.moved)
        return [b - a for a, b in itertools.pairwise(counts)]

    assert on_ranks(2, work) == [[8, 8 + 15 * 8, 32]] * 2


@pytest.mark.parametrize("size", [1, 2, 3])
def test_whole_numbers_are_added_exactly(size):
    counts = [[2**61, rank, 3] for rank in range(size)]
    assert (
        on_ranks(size, lambda ranks: ranks.add_up(counts[ranks.rank]))
        == [[sum(c) for c in zip(*counts, strict=True)]] * size
    )


class OfAnotherKindError(Exception):
    pass


@pytest.mark.parametrize("size", [1, 3])
def test_ranks_that_work_apart_without_trouble_go_on(size):
    def work(ranks):
        with ranks.apart("round 1"):
            for _ in range(ranks.rank):
                ranks.heed()
        return ranks.maximum(float(ranks.rank))

    assert on_ranks(size, work) == [size - 1] * size


def caught_apart(ranks, work, where="round 2"):
    """What a rank raises, in the end, whose work apart is a function."""
    try:
        with ranks.apart(where):
            work()
    except Exception as error:  # noqa: BLE001
        return error


def raiser(error):
    def work():
        raise error

    return work


@pytest.mark.parametrize("kind", [DataError, TrainingError])
@pytest.mark.parametrize("where", ["round 3", None])
def test_an_error_of_one_rank_apart_is_raised_by_all(kind, where):
    def work(ranks):
        return caught_apart(ranks, raiser(kind("no such thing")) if ranks.rank == 1 else ranks.heed, where)

    errors = on_ranks(3, work)
    said = "no such thing" if where is None else "rank 1, round 3: no such thing"
    assert [(type(error), str(error)) for error in errors] == [(kind, said)] * 3
    assert [error.reported_elsewhere for error in errors] == [False, True, True]


def test_an_error_that_is_not_fedgrams_goes_on_where_it_was_raised():
    def bug():
        with located("client 7"):
            raise OfAnotherKindError("a bug")

    errors = on_ranks(3, lambda ranks: caught_apart(ranks, bug if ranks.rank == 2 else ranks.heed, "round 3"))
    assert [type(error) for error in errors] == [TrainingError, TrainingError, OfAnotherKindError]
    told = "rank 2, round 3, client 7: OfAnotherKindError: a bug"
    assert [explain(error) for error in errors] == [told, told, told.removeprefix("rank 2, ")]


def test_of_several_errors_the_lowest_rank_is_heard():
    def work(ranks):
        return caught_apart(ranks, raiser(TrainingError(f"of {ranks.rank}")) if ranks.rank else ranks.heed)

    assert list(map(str, on_ranks(3, work))) == ["rank 1, round 2: of 1"] * 3


@pytest.mark.parametrize("asked", [[0], [2], [0, 1, 2]])
def test_a_signal_to_one_rank_stops_all(asked):
    def work(ranks):
        ranks._asked_to_stop = lambda: "SIGUSR1" if ranks.rank in asked else None
        steps = []

        def walk():
            for step in range(5):
                ranks.heed()
                steps.append(step)

        error = caught_apart(ranks, walk)
        return str(error), error.signal, error.exit_code, len(steps)

    # Who was asked leaves at once; threads have no network to hear by.
    stopped = [("SIGUSR1 came in round 2", "SIGUSR1", 75, 0 if rank in asked else 5) for rank in range(3)]
    assert on_ranks(3, work) == stopped


def test_what_stops_a_rank_is_called_out_to_the_others_at_once():
    ranks = Ranks()
    ranks._asked_to_stop = lambda: "SIGUSR1"
    assert caught_apart(ranks, ranks.heed).signal == "SIGUSR1"
    assert ranks._alarm.heard() == "a signal came"
    ranks = Ranks()
    assert isinstance(caught_apart(ranks, raiser(DataError("empty"))), DataError)
    assert ranks._alarm.heard() == "rank 0, round 2: empty"


def test_an_error_counts_more_than_a_signal():
    def work(ranks):
        ranks._asked_to_stop = lambda: "SIGTERM"
        return caught_apart(ranks, raiser(DataError("empty")) if ranks.rank == 1 else ranks.heed, None)

    assert [(type(error), str(error)) for error in on_ranks(2, work)] == [(DataError, "empty")] * 2


def test_one_process_raises_what_was_raised():
    error = DataError("empty")
    with pytest.raises(DataError) as caught, Ranks().apart("round 1"):
        raise error
    assert caught.value is error
    assert explain(error) == "round 1: empty"


def test_a_collective_that_breaks_says_that_another_rank_is_gone():
    class Broken(ThreadFabric):
        def all_reduce(self, tensor, reduce_op):
            raise RuntimeError("Connection closed\nmore")

    ranks = Ranks(Broken(1, [None] * 2, None))
    with pytest.raises(TrainingError, match="rank 1 lost the others: another rank is gone;"):
        ranks.maximum(1.0)
    ranks.warn_others(DataError("empty"))
    with pytest.raises(TrainingError, match="rank 1 lost the others: rank 1, empty; --ckpt_path last"):
        ranks.maximum(1.0)
