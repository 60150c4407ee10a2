from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedgram.engine.block import train_block
from fedgram.errors import ConfigurationError
from fedgram.methods import FedIT, FedLoRU, MFedLoRU, PFedLoRU, RoundContext
from fedgram.methods.client_memory import NOTHING, begin
from fedgram.optim import AdamW
from fedgram.state import ServerState
from methods.rounds import make_adapter, mean, numbers, play, weight_of
from test_block import make_network

R, D_IN, D_OUT = 2, 11, 7
Q, DENSE = R * (D_IN + D_OUT), D_IN * D_OUT
EVERYONE = [{0, 1, 2}] * 6
KINDS = {"FedLoRU": FedLoRU, "pFedLoRU": partial(PFedLoRU, personal_rank=3), "mFedLoRU": MFedLoRU}


@pytest.fixture(params=KINDS)
def make(request):
    return partial(KINDS[request.param], rank=R)


def layer_of(state):
    return state.adapter["q"]


def means_of(played):
    """The mean factors of a round, as the server reads them."""
    read = {c: own["q"] for c, own in played.read.items()}
    return {f: sum(played.weights[c] * own[f] for c, own in read.items()) for f in ("A", "B")}


def test_adding_and_starting_anew_preserves_the_function(make):
    method = make(merge_every=2)
    adapter = make_adapter(method)
    for done in play(method, EVERYONE, adapter):
        means, before, after = means_of(done), layer_of(done.before), layer_of(done.after)
        expected = weight_of(adapter, before | means)
        torch.testing.assert_close(weight_of(adapter, after), expected, rtol=0, atol=1e-12)
        merged = done.ctx.number % 2 == 0
        assert after["B"].any() == (not merged)
        assert after["A"].any()
        assert torch.equal(after["residual"], before["residual"]) == (not merged)
    fresh = [layer_of(d.after)["A"] for d in play(method, EVERYONE) if d.ctx.number % 2 == 0]
    assert not torch.equal(fresh[0], fresh[1])


def test_adding_and_keeping_counts_the_product_once_more(make):
    method = make(merge_every=2, mode="keep")
    adapter = make_adapter(method)
    for done in play(method, EVERYONE, adapter):
        means, after = means_of(done), layer_of(done.after)
        jump = weight_of(adapter, after) - weight_of(adapter, layer_of(done.before) | means)
        expected = method.scale * means["B"] @ means["A"] * (done.ctx.number % 2 == 0)
        torch.testing.assert_close(jump, expected, rtol=0, atol=1e-11)
        for field, value in means.items():
            torch.testing.assert_close(after[field], value, rtol=0, atol=1e-13)


def test_the_rank_of_what_is_added_grows():
    added = [layer_of(done.after)["residual"] for done in play(FedLoRU(rank=R, merge_every=1), EVERYONE)]
    assert [int(torch.linalg.matrix_rank(total)) for total in added] == [2, 4, 6, 7, 7, 7]


def test_until_something_is_added_it_is_fedit():
    other = list(play(FedIT(rank=R), EVERYONE))
    for done, plain in zip(play(FedLoRU(rank=R, merge_every=7), EVERYONE), other, strict=True):
        assert all(torch.equal(layer_of(done.after)[f], layer_of(plain.after)[f]) for f in ("A", "B"))
        assert {c: numbers(sent) for c, sent in done.down.items()} == {
            c: numbers(sent) for c, sent in plain.down.items()
        }


class Client:
    """One that makes its weights of what it is sent, of the seed, and of what it remembers."""

    def __init__(self, adapter):
        self.added, self.last = torch.zeros(D_OUT, D_IN, dtype=torch.float64), 1

    def receive(self, payload, method, number):
        """Read a payload, and return A and B; None where the seed gives them."""
        every = method.merge_every
        missed = sum(t % every == 0 for t in range(self.last, number))
        just = number > 1 and (number - 1) % every == 0
        pairs = list(zip(payload.get("merged_A", ()), payload.get("merged_B", ()), strict=True))
        assert len(pairs) == (0 if "residual" in payload else missed)
        if "residual" in payload:
            self.added = payload["residual"]
        for A, B in pairs:
            self.added = self.added + method.scale * (B @ A)
        self.last = number
        if number == 1 or (just and method.mode == "reset"):
            assert "A" not in payload
            return None
        if just and pairs:  # the factors of the newest product are the present ones
            assert "A" not in payload
            return pairs[-1]
        return payload["A"], payload["B"]


COHORTS = st.lists(st.sets(st.integers(0, 3), min_size=1), min_size=1, max_size=9)


@settings(max_examples=60, deadline=None)
@given(COHORTS, st.integers(1, 3), st.sampled_from(["reset", "keep"]), st.sampled_from(sorted(KINDS)))
def test_clients_that_come_and_go_rebuild_the_servers_weights(cohorts, every, mode, kind):
    method = KINDS[kind](rank=R, merge_every=every, mode=mode)
    adapter, clients = make_adapter(method), {}
    for done in play(method, cohorts, adapter):
        server, number = layer_of(done.before), done.ctx.number
        for c, payload in done.down.items():
            client = clients.setdefault(c, Client(adapter))
            present = client.receive(payload, method, number)
            assert torch.equal(client.added, server["residual"])
            if present is None:  # the seed gives them
                assert not server["B"].any()
            else:
                assert torch.equal(present[0], server["A"])
                assert torch.equal(present[1], server["B"])


def test_what_travels_by_hand():
    """τ = 1: one product a round. Who missed two is sent the factors of both, and who missed three the sum."""
    cohorts = [{0, 1, 2}, {0, 1}, {0, 2}, {0, 1, 3}, {0, 3, 4}]
    assert 2 * Q < DENSE < 3 * Q

    def sizes(**settings):
        played = play(FedLoRU(rank=R, **settings), cohorts)
        return [{c: numbers(sent) for c, sent in done.down.items()} for done in played]

    down, first = sizes(merge_every=1), [{0: 0, 1: 0, 2: 0}, {0: Q, 1: Q}]
    assert down == [*first, {0: Q, 2: 2 * Q}, {0: Q, 1: 2 * Q, 3: DENSE}, {0: Q, 3: Q, 4: DENSE}]
    # The newest product is of the present factors: who missed three is sent it with them, or else the sum beside them.
    assert sizes(merge_every=1, mode="keep") == [*down[:3], {0: Q, 1: 2 * Q, 3: 3 * Q}, {0: Q, 3: Q, 4: DENSE + Q}]
    # τ = 2: in rounds 3 and 5 the product of the round before is new; in round 4 the factors alone.
    assert sizes(merge_every=2) == [*first, {0: Q, 2: Q}, {0: Q, 1: 2 * Q, 3: 2 * Q}, {0: Q, 3: Q, 4: 2 * Q}]


def test_the_shared_pair_alone_is_sent_and_the_own_pair_stays_with_its_client():
    method = PFedLoRU(rank=R, personal_rank=3, merge_every=2)
    assert method.personal
    own = {}
    for done in play(method, [{0, 1}, {0}, {0, 1}, {1}]):
        assert all(set(sent) == {"A", "B"} for sent in done.up.values())
        assert {numbers(sent) for sent in done.up.values()} == {Q}
        for c, start in done.start.items():
            for field in ("L", "U"):
                assert c not in own or torch.equal(start[field], own[c][field])
        own |= done.trained
        assert torch.equal(layer_of(done.after)["L"], layer_of(done.before)["L"])
        assert not layer_of(done.after)["U"].any()
    assert not torch.equal(own[0]["U"], own[1]["U"])


@pytest.mark.parametrize("share", [0.25, 0.5])
def test_in_each_phase_the_other_pair_keeps_its_bits(tiny_backbone, tiny_data, share):
    method = PFedLoRU(rank=2, personal_share=share)
    network, data = make_network(tiny_backbone, tiny_data, method)
    server = ServerState(network.initial_state())
    ctx = method.context(server, 0, RoundContext(1, 0, {0: 0}, 1))
    _, start = begin(method, server, network.initial_state(), NOTHING, ctx)
    network.share(server)
    phases = method.phases(1)
    assert [phase.share for phase in phases] == [share, 1 - share]
    assert len({phase.name for phase in phases}) == 2
    for phase, moves, stays in zip(phases, ("U", "B"), (("A", "B"), ("L", "U")), strict=True):
        batches = [[data.tables["train"].lengths.argsort()[:3]] * 2]
        found = train_block(network, AdamW(0.02), [start], data.split("train"), batches, trained=phase.trained)
        ended = found.states[0]
        for name, layer in ended.adapter.items():
            assert all(torch.equal(layer[field], start.adapter[name][field]) for field in stays)
            assert not torch.equal(layer[moves], start.adapter[name][moves])
        start = ended


def test_the_own_pair_has_a_rank_and_a_scale_of_its_own():
    adapter = make_adapter(PFedLoRU(rank=R, alpha=6.0, personal_rank=3, personal_scale=0.5))
    layer = {f: torch.randn(t.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(i))
             for i, (f, t) in enumerate(adapter.initial().items())}  # fmt: skip
    assert layer["L"].shape == (3, D_IN)
    expected = adapter.base.weight + layer["residual"] + 3.0 * layer["B"] @ layer["A"] + 0.5 * layer["U"] @ layer["L"]
    torch.testing.assert_close(weight_of(adapter, layer), expected, rtol=0, atol=1e-12)


def test_the_server_averages_the_factors_that_nested_ones_make():
    method = MFedLoRU(rank=R, inner_rank=1, inner_scale=0.7, merge_every=9)
    for done in play(method, [{0, 1, 2}, {1, 2}, {0, 1, 2}]):
        before, after = layer_of(done.before), layer_of(done.after)
        A = before["A"] + 0.7 * mean(done, lambda own: own["Ad"] @ own["Au"])
        B = before["B"] + 0.7 * mean(done, lambda own: own["Bd"] @ own["Bu"])
        torch.testing.assert_close(after["A"], A, rtol=0, atol=1e-13)
        torch.testing.assert_close(after["B"], B, rtol=0, atol=1e-13)
        assert {numbers(sent) for sent in done.up.values()} == {1 * (D_IN + D_OUT + 2 * R)}
        assert {numbers(sent) for sent in done.down.values()} == {Q if done.ctx.number > 1 else 0}
        for start in done.start.values():
            assert not (start["Ad"] @ start["Au"]).any()
            assert not (start["Bd"] @ start["Bu"]).any()
            assert torch.equal(start["Au"], done.start[1]["Au"])
        assert set(layer_of(done.after)) == set(before)
    assert method.personal is False


def test_nested_factors_start_anew_in_every_round():
    starts = [done.start[0] for done in play(MFedLoRU(rank=R), EVERYONE)]
    assert not torch.equal(starts[0]["Au"], starts[1]["Au"])
    assert not torch.equal(starts[0]["Bu"], starts[1]["Bu"])


def test_clients_ranks_are_those_of_nested_factors():
    method = MFedLoRU(rank=R, client_ranks=[1, 2, 1])
    (done,) = play(method, [{0, 1, 2}])
    assert {c: sent["Au"].shape[0] for c, sent in done.up.items()} == {0: 1, 1: 2, 2: 1}
    one = D_IN + D_OUT + 2 * R
    assert {c: numbers(sent) for c, sent in done.up.items()} == {0: one, 1: 2 * one, 2: one}
    start = done.start[0]
    assert {f: tuple(start[f].shape) for f in ("Ad", "Au", "Bd", "Bu")} == {
        "Ad": (R, R), "Au": (R, D_IN), "Bd": (D_OUT, R), "Bu": (R, R)}  # fmt: skip
    filled = [start["Ad"][:, 1:], start["Au"][1:], start["Bd"][:, 1:], start["Bu"][1:]]
    assert not any(tensor.any() for tensor in filled)  # zeros on both sides, which stay
    assert start["Au"][0].any()


def test_by_default_nested_factors_have_half_the_rank():
    assert [MFedLoRU(rank=r).widest for r in (1, 2, 3, 8)] == [1, 1, 1, 4]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FedLoRU(merge_every=0), r"method\.merge_every must be at least 1, got 0"),
        (lambda: FedLoRU(mode="forget"), r"method\.mode .*reset.*keep.*forget"),
        (lambda: PFedLoRU(personal_rank=0), r"method\.personal_rank must be at least 1, got 0"),
        (lambda: PFedLoRU(personal_share=1.0), r"method\.personal_share must lie between 0 and 1.*got 1\.0"),
        (lambda: MFedLoRU(rank=4, inner_rank=5), r"method\.inner_rank must lie between 1 and method\.rank = 4, got 5"),
        (lambda: MFedLoRU(rank=4, inner_rank=2, client_ranks=[1]), r"leave method\.inner_rank out"),
        (lambda: FedLoRU(rank=4, client_ranks=[1]), r"FedLoRU is not defined for ranks that differ"),
    ],
)
def test_settings_that_make_no_sense_are_errors(make, message):
    with pytest.raises(ConfigurationError, match=message):
        make()


def test_names_are_the_papers():
    names = [kind(**keys).name for kind in KINDS.values() for keys in ({}, {"mode": "keep"})]
    assert names == ["FedLoRU", "FedLoRU-keep", "pFedLoRU", "pFedLoRU-keep", "mFedLoRU", "mFedLoRU-keep"]


def test_both_pairs_are_trained_in_one_of_the_phases():
    trained = [phase.trained for phase in PFedLoRU().phases(1)]
    assert frozenset.union(*trained) == PFedLoRU().trained_fields
    assert not frozenset.intersection(*trained)
