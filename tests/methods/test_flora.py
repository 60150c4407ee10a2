import pytest
import torch

from fedgram import FLoRA
from fedgram.distributed.collectives import Ranks
from fedgram.distributed.uploads import Uploads
from methods.rounds import make_adapter, numbers, play, weight_of

D_OUT, D_IN = 31, 47
RANKS = [3, 1, 2, 1, 3]
N = len(RANKS)
EVERYONE = [set(range(N))] * 4


def rounds(cohorts, **settings):
    """A method of clients of all kinds of ranks, the adapter of a layer that is not square, and rounds of them."""
    method = FLoRA(**({"rank": 3, "client_ranks": RANKS} | settings))
    adapter = make_adapter(method, D_IN, D_OUT)
    return method, adapter, play(method, cohorts, adapter)


def layer_of(state):
    return state.adapter["q"]


def mean_weight(done, method, adapter):
    """The mean of the clients' weights, each multiplied out without what lower ranks are filled up with."""

    def weight(c):
        r, own = RANKS[c] if method.client_ranks else method.rank, done.trained[c]
        return weight_of(adapter, layer_of(done.before) | {"A": own["A"][:r], "B": own["B"][:, :r]})

    return sum(share * weight(c) for c, share in done.weights.items())


def test_the_servers_weight_is_the_mean_of_the_clients_over_many_rounds():
    """For ranks of all kinds, on a layer that is not square."""
    method, adapter, played = rounds(EVERYONE)
    for done in played:
        layer = layer_of(done.after)
        assert not layer["B"].any()
        torch.testing.assert_close(weight_of(adapter, layer), mean_weight(done, method, adapter), rtol=0, atol=1e-12)
        uploads = Uploads(done.read, done.weights, Ranks())
        figures = method.diagnose(done.before.adapter, done.after.adapter, uploads)["q"]
        assert figures["aggregation_error"] < 1e-13


def test_every_client_begins_every_round_with_factors_of_its_own_and_no_product():
    seen, again = [], rounds(EVERYONE[:2])[2]
    for done, repeated in zip(rounds(EVERYONE[:2])[2], again, strict=True):
        for c, start in done.start.items():
            A, B = start["A"], start["B"]
            assert not B.any()
            assert (A != 0).any(dim=1).tolist() == [row < RANKS[c] for row in range(3)]
            assert A.abs().max() <= D_IN**-0.5
            assert torch.equal(A, repeated.start[c]["A"])
            seen.append(A)
    assert len({tuple(A.flatten().tolist()) for A in seen}) == 2 * N


def test_clients_that_add_up_what_they_are_sent_have_the_servers_sum():
    """Clients 0 and 4 are in every round, client 1 in every second; client 3 comes in the second and client 2 late."""
    cohorts = [
        {c for c in range(N) if c in (0, 4) or (c == 1 and n % 2) or (c == 2 and n > 3) or (c == 3 and n > 1)}
        for n in range(1, 7)
    ]
    method, _, played = rounds(cohorts)
    held = {c: torch.zeros(D_OUT, D_IN, dtype=torch.float64) for c in range(N)}
    for done in played:
        number = done.ctx.number
        for c, sent in done.down.items():
            missed = number - max(1, done.ctx.last_rounds[c])
            assert set(sent) == (set() if missed == 0 else {"U", "V"} if missed == 1 else {"residual"})
            if "U" in sent:
                held[c] = held[c] + method.scale * (sent["U"][0].mT @ sent["V"][0])
            held[c] = sent.get("residual", held[c])
            assert torch.equal(held[c], layer_of(done.before)["residual"])


def test_what_travels_by_hand():
    _, _, played = rounds(EVERYONE[:2])
    first, second = played
    assert [numbers(first.down[c]) for c in range(N)] == [0] * N
    for done in (first, second):
        assert [numbers(done.up[c]) for c in range(N)] == [r * (D_OUT + D_IN) for r in RANKS]
    assert [numbers(second.down[c]) for c in range(N)] == [sum(RANKS) * (D_OUT + D_IN)] * N


def test_the_sum_is_sent_where_the_stack_is_more_numbers():
    """Of five clients of rank 8 it has 40 rows, more than the layer has."""
    _, _, played = rounds(EVERYONE[:3], rank=8, client_ranks=None)
    *_, done = played
    assert all(set(sent) == {"residual"} for sent in done.down.values())


def test_each_weight_counts_once():
    """A weight on both sides of the stack would count with its square."""
    method, adapter, played = rounds([{0, 1}], client_ranks=None)
    (done,) = played
    assert sorted(done.weights.values()) == pytest.approx([1 / 3, 2 / 3])
    torch.testing.assert_close(
        weight_of(adapter, layer_of(done.after)), mean_weight(done, method, adapter), rtol=0, atol=1e-12
    )


def test_nothing_stays_with_a_client():
    method = FLoRA(rank=2)
    assert not method.personal
    assert not any(field.kept for field in method.fields)
