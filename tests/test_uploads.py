import math

import numpy as np
import pytest
import torch

from fedgram.distributed.collectives import Ranks
from fedgram.distributed.uploads import Uploads, average
from fedgram.errors import TrainingError
from helpers import rng, unequal_weights
from thread_ranks import on_ranks

CLIENTS = [2, 3, 7, 11]


def make_payloads(seed=0):
    random = rng(seed)
    return {c: {"q": {"A": torch.from_numpy(random.standard_normal((2, 5)))}, "v": {"A": torch.ones(3) * c}}
            for c in CLIENTS}  # fmt: skip


def make_weights(seed=1):
    return dict(zip(CLIENTS, unequal_weights(len(CLIENTS), rng(seed)).tolist(), strict=True))


def test_mean_is_the_weighted_mean_of_a_function_of_the_payloads():
    payloads, weights = make_payloads(), make_weights()
    mean = Uploads(payloads, weights, Ranks()).mean("q", lambda sent: sent["A"].mT @ sent["A"], torch.zeros(5, 5))
    arrays = {c: payloads[c]["q"]["A"].numpy() for c in CLIENTS}
    expected = sum(weights[c] * arrays[c].T @ arrays[c] for c in CLIENTS)
    np.testing.assert_allclose(mean.numpy(), expected, rtol=0, atol=1e-14)
    assert mean.dtype == torch.float64


def test_stack_is_in_client_order_as_are_the_weights_whatever_the_order_of_the_dicts():
    payloads, weights = make_payloads(), make_weights()
    for order in (CLIENTS, CLIENTS[::-1], [7, 2, 11, 3]):
        uploads = Uploads({c: payloads[c] for c in order}, {c: weights[c] for c in order[::-1]}, Ranks())
        assert uploads.clients == CLIENTS
        assert uploads.weights.tolist() == [weights[c] for c in CLIENTS]
        assert uploads.weights.dtype == torch.float64
        stack = uploads.stack("q", "A", torch.zeros(2, 5))
        assert torch.equal(stack, torch.stack([payloads[c]["q"]["A"] for c in CLIENTS]))


@pytest.mark.parametrize("owners", [[0, 0, 1, 1], [1, 0, 1, 1], [0, 0, 0, 0], [1, 1, 1, 1]])
def test_every_rank_gets_the_bits_of_one_process(owners):
    payloads, weights = make_payloads(), make_weights()

    def work(ranks):
        own = {c: payloads[c] for c, owner in zip(CLIENTS, owners, strict=True) if owner == ranks.rank}
        uploads = Uploads(own, weights, ranks)
        mean = uploads.mean("q", lambda sent: sent["A"].exp(), torch.zeros(2, 5))
        stack = uploads.stack("v", "A", torch.zeros(3))
        moved = ranks.moved
        assert torch.equal(uploads.stack("v", "A", torch.zeros(3)), stack)
        assert ranks.moved == moved  # what was gathered once is kept
        return mean, stack

    alone = Uploads(payloads, weights, Ranks())
    for mean, stack in on_ranks(2, work):
        assert torch.equal(mean, alone.mean("q", lambda sent: sent["A"].exp(), torch.zeros(2, 5)))
        assert torch.equal(stack, alone.stack("v", "A", torch.zeros(3)))


def test_average_is_the_weighted_mean_of_every_field_in_the_type_of_the_server():
    payloads, weights = make_payloads(), make_weights()
    old = {"q": {"A": torch.zeros(2, 5, dtype=torch.float64)}, "v": {"A": torch.zeros(3)}}
    new = average(old, Uploads(payloads, weights, Ranks()))
    assert {name: list(layer) for name, layer in new.items()} == {"q": ["A"], "v": ["A"]}
    expected = sum(weights[c] * payloads[c]["q"]["A"].numpy() for c in CLIENTS)
    np.testing.assert_allclose(new["q"]["A"].numpy(), expected, rtol=0, atol=1e-15)
    assert new["v"]["A"].dtype == torch.float32
    np.testing.assert_allclose(new["v"]["A"], sum(weights[c] * c for c in CLIENTS), rtol=1e-7)
    assert average({}, Uploads({}, weights, Ranks())) == {}


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("size", [1, 2, 3])
def test_a_client_that_diverged_is_named_on_every_rank(bad, size):
    payloads = make_payloads()
    payloads[7]["v"]["A"][1] = bad

    def work(ranks):
        return Uploads({c: payloads[c] for c in CLIENTS[ranks.rank :: ranks.size]}, make_weights(), ranks)

    for result in on_ranks(size, work):
        assert isinstance(result, TrainingError)
        assert "client 7 diverged: A of v holds nan or inf" in str(result)


def test_infinities_that_cancel_are_found_and_large_numbers_are_none():
    payloads = make_payloads()
    payloads[7]["v"]["A"][:] = 3e38  # their sum is infinite, they are not
    assert Uploads(payloads, make_weights(), Ranks()).clients == CLIENTS
    payloads[7]["v"]["A"][:2] = torch.tensor([math.inf, -math.inf])
    with pytest.raises(TrainingError, match="client 7 diverged: A of v"):
        Uploads(payloads, make_weights(), Ranks())
