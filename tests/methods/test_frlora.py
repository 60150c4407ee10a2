import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters.plain import make_linear
from fedgram.methods import FeDeRA, FRLoRA
from fedgram.seeding import torch_generator
from helpers import rng
from methods.rounds import make_adapter, mean, numbers, play, weight_of

R, D_IN, D_OUT = 2, 11, 7
Q = R * (D_IN + D_OUT)
EVERYONE = [{0, 1, 2}] * 4


def layer_of(state):
    return state.adapter["q"]


@pytest.mark.parametrize("freeze", [False, True])
@pytest.mark.parametrize("kind", ["linear", "conv1d"])
def test_it_starts_where_federa_does_at_the_pretrained_function(kind, freeze):
    linear, _ = make_linear(D_IN, D_OUT, kind, torch.float32)
    adapter = FRLoRA(rank=R, alpha=6.0, freeze_A=freeze).adapter(linear, torch_generator(0, "q"))
    start, other = adapter.initial(), FeDeRA(rank=R, alpha=6.0).adapter(linear, torch_generator(1, "q")).initial()
    assert all(torch.equal(start[field], other[field]) for field in ("A", "B", "A0", "B0"))
    assert start["B"].abs().max() > 0.1
    assert start.keys() - {"A", "B", "A0", "B0"} == {"residual", *(["steps"] if freeze else ["merged_A", "merged_B"])}
    assert not any(start[field].any() for field in start.keys() - {"A", "B", "A0", "B0"})
    adapter.share({field: start[field] for field in ("residual", "A0", "B0")})
    adapter.load({field: start[field].unsqueeze(0) for field in ("A", "B")})
    x = torch.from_numpy(rng().normal(size=(4, 5, D_IN))).float()
    torch.testing.assert_close(adapter(x), linear(x), rtol=0, atol=1e-5)


@pytest.mark.parametrize("freeze", [False, True])
def test_what_a_round_adds_preserves_the_function_of_the_mean_factors(freeze):
    """W' + s B₀A₀ = W + s B̄Ā, and with one A for all that is the mean of the clients' weights."""
    method = FRLoRA(rank=R, freeze_A=freeze)
    adapter = make_adapter(method)
    for done in play(method, EVERYONE, adapter):
        means = {field: mean(done, lambda own, field=field: own[field]) for field in ("A", "B")}
        expected = weight_of(adapter, layer_of(done.before) | means)
        found = weight_of(adapter, layer_of(done.after))
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
        assert (found - weight_of(adapter, layer_of(done.before))).norm() > 1
        ideal = mean(done, lambda own, done=done: weight_of(adapter, layer_of(done.before) | own))
        assert torch.allclose(found, ideal, rtol=0, atol=1e-12) == freeze


@pytest.mark.parametrize("freeze", [False, True])
def test_every_round_starts_from_the_same_factors(freeze):
    method = FRLoRA(rank=R, freeze_A=freeze)
    first = None
    for done in play(method, EVERYONE):
        first = first or done.start[0]
        for own in (*done.start.values(), layer_of(done.after)):
            assert torch.equal(own["A"], first["A"])
            assert torch.equal(own["B"], first["B"])
        assert not torch.equal(done.trained[1]["B"], first["B"])
        assert torch.equal(done.trained[1]["A"], first["A"]) == freeze


def test_the_rank_of_the_sum_grows_with_the_rounds_where_a_is_trained_and_does_not_where_it_is_held():
    def ranks(method):
        sums = [layer_of(done.after)["residual"] for done in play(method, EVERYONE)]
        return [int(torch.linalg.matrix_rank(total, rtol=1e-9)) for total in sums]

    assert ranks(FRLoRA(rank=R)) == [2 * R, 3 * R, D_OUT, D_OUT]  # all rounds have B₀A₀ in common
    assert ranks(FRLoRA(rank=R, freeze_A=True)) == [R] * 4


def test_what_travels_by_hand():
    """Nothing at first; then the last means, those of two missed rounds, and the sum where it is fewer numbers."""
    cohorts = [{0, 1, 2}, {0, 1}, {0, 1}, {0, 2, 3}, {0, 1, 3}, {0, 3, 4}]
    sizes = [{c: numbers(sent) for c, sent in done.down.items()} for done in play(FRLoRA(rank=R), cohorts)]
    dense = D_IN * D_OUT
    assert 2 * Q < dense < 3 * Q
    assert sizes[0] == {0: 0, 1: 0, 2: 0}
    assert sizes[1] == {0: Q, 1: Q}
    assert sizes[3] == {0: Q, 2: dense, 3: dense}  # after three rounds
    assert sizes[4] == {0: Q, 1: 2 * Q, 3: Q}  # which missed the fourth
    assert sizes[5] == {0: Q, 3: Q, 4: dense}
    assert [{numbers(sent) for sent in done.up.values()} for done in play(FRLoRA(rank=R), cohorts)] == [{Q}] * 6
    frozen = list(play(FRLoRA(rank=R, freeze_A=True), cohorts))
    only_b = R * D_OUT
    assert {c: numbers(sent) for c, sent in frozen[3].down.items()} == {0: only_b, 2: only_b, 3: only_b}
    assert [{numbers(sent) for sent in done.up.values()} for done in frozen] == [{only_b}] * 6


class Client:
    """One that makes its weights of what it is sent, and of the start that it knows."""

    def __init__(self, method, start):
        self.method, self.added, self.start = method, torch.zeros(D_OUT, D_IN, dtype=torch.float64), start

    def receive(self, payload):
        A0, B0 = self.start["A0"], self.start["B0"]
        if "residual" in payload:
            self.added = payload["residual"]
        elif "steps" in payload:
            self.added = self.method.scale * (payload["steps"] @ A0)
        elif "merged_A" in payload:
            for A, B in zip(payload["merged_A"], payload["merged_B"], strict=True):
                self.added = self.added + self.method.scale * (B @ A - B0 @ A0)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.sets(st.integers(0, 3), min_size=1), min_size=1, max_size=8), st.booleans())
def test_clients_that_come_and_go_have_the_servers_weights(cohorts, freeze):
    method = FRLoRA(rank=R, freeze_A=freeze)
    clients, start = {}, None
    for done in play(method, cohorts):
        server = layer_of(done.before)
        start = start or server
        for c, payload in done.down.items():
            client = clients.setdefault(c, Client(method, start))
            client.receive(payload)
            assert torch.equal(client.added, server["residual"])
            assert torch.equal(client.start["A0"], done.start[c]["A"])
            assert torch.equal(client.start["B0"], done.start[c]["B"])
        products = {f: server[f] for f in ("merged_A", "merged_B") if f in server}
        assert numbers(products) <= (0 if freeze else Q + server["residual"].numel())


def test_steps_below_the_resolution_of_weights_in_half_precision_add_up():
    method = FRLoRA(rank=R)
    linear, _ = make_linear(D_IN, D_OUT, dtype=torch.bfloat16)
    layer = method.adapter(linear, torch_generator(0, "q")).initial()
    A0, B0 = layer["A0"], layer["B0"]
    for _ in range(50):
        layer = layer | method.add(layer, A0, 1.0001 * B0)
    assert layer["residual"].dtype == torch.float32
    torch.testing.assert_close(layer["residual"], method.scale * 50 * 1e-4 * B0 @ A0, rtol=0.01, atol=1e-6)


def test_the_held_a_is_in_the_name():
    assert [FRLoRA().name, FRLoRA(freeze_A=True).name] == ["FRLoRA", "FRLoRA-freeze_A"]
