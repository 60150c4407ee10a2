import numpy as np
import pytest
import torch
from torch import nn

from fedgram.distributed.collectives import Ranks
from fedgram.distributed.uploads import Uploads
from fedgram.methods import FedExLoRA, FedIT, RoundContext
from fedgram.seeding import torch_generator
from helpers import rng, unequal_weights
from methods.rounds import make_adapter, numbers, play

D_OUT, D_IN, R, N = 31, 47, 2, 5


def make_method(residual, dtype=torch.float64):
    """A method with the adapter of one layer, and the server's start."""
    method = FedExLoRA(rank=R, residual=residual)
    with torch.random.fork_rng(devices=[]):
        adapter = method.adapter(nn.Linear(D_IN, D_OUT, dtype=dtype), torch_generator(0, "q"))
    return method, adapter, {"q": {f: t.to(dtype) for f, t in adapter.initial().items()}}


def drift(layer, random, clients=N):
    return {
        c: {"q": {f: layer[f] + torch.from_numpy(random.normal(size=layer[f].shape)).to(layer[f]) for f in ("A", "B")}}
        for c in range(clients)
    }


def weight_of(adapter, server, own):
    """W of one client, multiplied out: what it starts from beside what it trained."""
    return adapter.base.weight + server["residual"] + adapter.scale * own["B"] @ own["A"]


@pytest.mark.parametrize("residual", ["dense", "factored"])
def test_the_effective_weight_is_the_mean_of_the_clients_over_many_rounds(residual):
    """On a layer of (d_out, d_in) = (31, 47): a transposed residual would not even fit."""
    method, adapter, server = make_method(residual)
    random = rng(1)
    for number in range(1, 5):
        sent, weights = drift(server["q"], random), unequal_weights(N, random)
        uploads = Uploads(sent, dict(enumerate(weights.tolist())), Ranks())
        after = method.aggregate(server, uploads, RoundContext(number, 0, dict.fromkeys(range(N), number - 1)))
        ideal = sum(w * weight_of(adapter, server["q"], sent[c]["q"]) for c, w in enumerate(weights))
        torch.testing.assert_close(weight_of(adapter, after["q"], after["q"]), ideal, rtol=0, atol=1e-12)
        figures = method.diagnose(server, after, uploads)["q"]
        assert figures["aggregation_error"] < 1e-13
        plain = FedIT(rank=R).aggregate({"q": {f: server["q"][f] for f in ("A", "B")}}, uploads, None)
        assert torch.equal(plain["q"]["A"], after["q"]["A"])
        server = after


def rounds(residual, cohorts):
    """A method, and rounds of it on the same layer."""
    method = FedExLoRA(rank=R, residual=residual)
    return method, play(method, cohorts, make_adapter(method, D_IN, D_OUT))


@pytest.mark.parametrize("residual", ["dense", "factored"])
def test_clients_that_add_up_what_they_are_sent_have_the_servers_sum(residual):
    """Client 0 is in every round, client 1 in every second; client 3 comes in the second and client 2 late."""
    cohorts = [
        {c for c in range(4) if c == 0 or (c == 1 and n % 2) or (c == 2 and n > 3) or (c == 3 and n > 1)}
        for n in range(1, 7)
    ]
    method, played = rounds(residual, cohorts)
    held = {c: torch.zeros(D_OUT, D_IN, dtype=torch.float64) for c in range(4)}
    for done in played:
        number, server = done.ctx.number, done.before.adapter["q"]
        for c, payload in done.down.items():
            missed = number - max(1, done.ctx.last_rounds[c])
            newest = {"U", "V"} if residual == "factored" and missed == 1 else {"residual"}
            assert set(payload) == ({"A", "B"} | newest if missed else set())
            if "U" in payload:
                held[c] = held[c] + method.scale * (payload["U"][0].mT @ payload["V"][0])
            held[c] = payload.get("residual", held[c])
            assert torch.equal(held[c], server["residual"])
    assert done.after.adapter["q"]["residual"].norm() > 1


def test_the_server_sums_the_factors_as_they_are_sent():
    """Rounded to the type of the run: a client that computes the sum of what it is sent has the server's bits."""
    method, _, server = make_method("factored", torch.float32)
    uploads = Uploads(drift(server["q"], rng(3)), dict.fromkeys(range(N), 1 / N), Ranks())
    after = method.aggregate(server, uploads, RoundContext(1, 0, dict.fromkeys(range(N), 0)))["q"]
    assert {after[field].dtype for field in ("U", "V", "residual")} == {torch.float32}
    assert after["U"].shape == (1, (N - 1) * R, D_OUT)
    added = method.scale * (after["U"][0].double().mT @ after["V"][0].double())
    assert torch.equal(after["residual"], (server["q"]["residual"] + added).float())
    assert after["residual"].norm() > 1


@pytest.mark.parametrize(("residual", "extra"), [("dense", D_OUT * D_IN), ("factored", (N - 1) * R * (D_OUT + D_IN))])
def test_a_residual_costs_the_numbers_of_its_form(residual, extra):
    _, played = rounds(residual, [set(range(N))] * 2)
    for done, expected in zip(played, (0, R * (D_OUT + D_IN) + extra), strict=True):
        assert [numbers(payload) for payload in done.down.values()] == [expected] * N
        assert all(set(payload) == {"A", "B"} for payload in done.up.values())


def test_factors_are_not_sent_where_the_residual_itself_is_smaller():
    """Of 40 clients it has rank 78, more than the layer."""
    *_, done = rounds("factored", [set(range(40))] * 2)[1]
    assert all(set(payload) == {"A", "B", "residual"} for payload in done.down.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("autocast", [False, True])
def test_forward_adds_the_residual_in_its_own_precision(dtype, autocast):
    """A residual below the resolution of bfloat16 weights is still felt."""
    _, adapter, server = make_method("dense", torch.float32)
    adapter.base.to(dtype)
    x = torch.from_numpy(rng(4).normal(size=(3, D_IN))).float()
    tiny = 1e-4 * torch.from_numpy(rng(5).normal(size=(D_OUT, D_IN))).float()
    outputs = []
    for residual in (torch.zeros(D_OUT, D_IN), tiny, tiny.clone()):
        adapter.share({"residual": residual})
        adapter.load({f: server["q"][f].unsqueeze(0) for f in ("A", "B")})
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            outputs.append(adapter(x.to(dtype)).float())
    assert torch.equal(outputs[1], outputs[2])
    exact = dtype == torch.float32 and not autocast
    if exact:
        np.testing.assert_allclose((outputs[1] - outputs[0]).numpy(), (x @ tiny.mT).numpy(), atol=1e-6)
    seen = adapter.shared["residual"]
    assert seen.dtype == torch.float32


@pytest.mark.parametrize("bias", [True, False])
def test_a_residual_in_bfloat16_layers_is_not_swallowed_by_the_weights(bias):
    _, adapter, server = make_method("dense", torch.float32)
    adapter.base = nn.Linear(D_IN, D_OUT, bias=bias, dtype=torch.bfloat16).requires_grad_(False)
    nn.init.constant_(adapter.base.weight, 0.0)
    if bias:
        nn.init.constant_(adapter.base.bias, 0.0)
    adapter.base.weight[:, 0] = 1.0
    tiny = torch.full((D_OUT, D_IN), 1e-4)
    adapter.share({"residual": tiny})
    adapter.load({f: server["q"][f].unsqueeze(0) for f in ("A", "B")})
    x = torch.zeros(1, D_IN, dtype=torch.bfloat16)
    x[0, 0], x[0, 1:] = 0.0, 1.0
    torch.testing.assert_close(adapter(x).float(), torch.full((1, D_OUT), 1e-4 * (D_IN - 1)), rtol=0.01, atol=0)


def test_an_unknown_form_is_an_error():
    with pytest.raises(Exception, match=r"method\.residual .*dense.*factored.*sparse"):
        FedExLoRA(residual="sparse")
