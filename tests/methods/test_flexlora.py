import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fedgram import FlexLoRA
from fedgram.distributed.collectives import Ranks
from fedgram.distributed.uploads import Uploads
from fedgram.methods import RoundContext
from fedgram.methods.client_memory import NOTHING, begin
from fedgram.seeding import torch_generator
from fedgram.state import ModelState, ServerState
from helpers import rng, unequal_weights
from test_trainer import fit  # noqa: F401 (a fixture)

D_OUT, D_IN, ALPHA = 13, 19, 6.0
RANKS = [4, 1, 2, 3, 1]


def make_server(ranks=RANKS, rank=4, **settings):
    """A method with one layer, its server's state and what a client that does not train starts from."""
    method = FlexLoRA(rank=rank, alpha=ALPHA, client_ranks=ranks, **settings)
    with torch.random.fork_rng(devices=[]):
        adapter = method.adapter(nn.Linear(D_IN, D_OUT, dtype=torch.float64), torch_generator(0, "q"))
    layer = {f: t.double() for f, t in adapter.initial().items()}
    return method, adapter, ServerState(ModelState({"q": layer}))


def begun(method, server, client, ctx):
    """What a client is sent, and what it starts with, in its own shapes."""
    return begin(method, server, method.model(server), NOTHING, method.context(server, client, ctx))


def update_of(adapter, layer):
    """ΔW as the adapter computes it."""
    adapter.load({f: t.unsqueeze(0) for f, t in layer.items()})
    down, up = adapter.factors()
    return (adapter.scale * up[0].mT @ down[0]).numpy()


def run_round(method, adapter, server, number, random):
    """Return the server's next state, and the weighted mean of the clients' ΔW, each as its own adapter computes it."""
    clients = range(len(RANKS))
    ctx = RoundContext(number, 0, dict.fromkeys(clients, number - 1), len(RANKS))
    weights, read, ideal = unequal_weights(len(RANKS), random), {}, 0
    for c, w in zip(clients, weights, strict=True):
        _, start = begun(method, server, c, ctx)
        end = {f: t + torch.from_numpy(random.normal(size=t.shape)) for f, t in start.adapter["q"].items()}
        own = {**start.adapter["q"], "A": end["A"], "B": end["B"]}
        ended, client = ModelState({"q": own}), method.context(server, c, ctx)
        ideal = ideal + w * update_of(adapter, method.pad(ended, server, ctx).adapter["q"])
        sent = method.upload(start, ended, client)
        assert sent.adapter["q"].keys() == {"A", "B"}
        assert sent.adapter["q"]["A"].shape == (RANKS[c], D_IN)
        read[c] = method.receive(server, sent, client).adapter
    uploads = Uploads(read, dict(zip(clients, weights.tolist(), strict=True)), Ranks())
    return server.with_adapter(method.aggregate(server.adapter, uploads, ctx)), ideal


def best(matrix, rank):
    U, values, Vh = np.linalg.svd(matrix)
    return U[:, :rank] * values[:rank] @ Vh[:rank]


@pytest.mark.parametrize("scaling", ["own", "global"])
def test_every_client_is_sent_the_best_of_the_mean_update_that_its_rank_holds(scaling):
    """Each computes with its own scale, and the update is formed with it: a common alpha / r would be off by it."""
    method, adapter, server = make_server(scaling=scaling)
    random = rng(3)
    for number in (1, 2, 3):
        server, ideal = run_round(method, adapter, server, number, random)
        np.testing.assert_allclose(update_of(adapter, server.adapter["q"]), best(ideal, 4), atol=1e-11)
        ctx = RoundContext(number + 1, 0, dict.fromkeys(range(len(RANKS)), number), len(RANKS))
        for client, rank in enumerate(RANKS):
            payload, start = begun(method, server, client, ctx)
            for state in (start, method.pad(start, server, ctx)):
                np.testing.assert_allclose(update_of(adapter, state.adapter["q"]), best(ideal, rank), atol=1e-11)
            A, B = (payload.adapter["q"][field] for field in ("A", "B"))
            assert (A.shape, B.shape) == ((rank, D_IN), (D_OUT, rank))
            own_scale = ALPHA / (rank if scaling == "own" else 4)
            np.testing.assert_allclose((own_scale * B @ A).numpy(), best(ideal, rank), atol=1e-11)


def test_a_client_of_low_rank_scales_by_its_own_rank():
    method, _, server = make_server()
    ctx = RoundContext(2, 0, dict.fromkeys(range(len(RANKS)), 1), len(RANKS))
    scales = [method.scale * float(begun(method, server, c, ctx)[1].adapter["q"]["g"]) for c in range(len(RANKS))]
    assert scales == pytest.approx([ALPHA / rank for rank in RANKS])
    with_common_scale, _, _ = make_server(scaling="global")
    assert {field.name for field in with_common_scale.fields} == {"A", "B"}


def test_one_factor_has_all_of_the_singular_values_and_the_other_orthonormal_rows():
    method, adapter, server = make_server()
    server, ideal = run_round(method, adapter, server, 1, rng(4))
    A, B = (server.adapter["q"][field] for field in ("A", "B"))
    torch.testing.assert_close(A @ A.mT, torch.eye(4).double(), rtol=0, atol=1e-12)
    values = np.linalg.svd(ideal, compute_uv=False)[:4] / method.scale
    np.testing.assert_allclose((B.mT @ B).numpy(), np.diag(values**2), atol=1e-10)


@given(st.integers(1, 4), st.integers(0, 1000))
def test_of_a_mean_of_lower_rank_nothing_is_lost_and_no_pair_of_rows_is_dead(found, seed):
    """A row of A and a column of B that are both zero would be a saddle that training never leaves."""
    method, _, server = make_server(ranks=None)
    random = rng(seed)
    B, A = (torch.from_numpy(random.normal(size=shape)) for shape in ((D_OUT, found), (found, D_IN)))
    sent = {"A": torch.zeros(4, D_IN).double(), "B": torch.zeros(D_OUT, 4).double()}
    sent["A"][:found], sent["B"][:, :found] = A, B
    ctx = RoundContext(2, 0, {0: 1, 1: 1}, 5)
    uploads = Uploads({0: {"q": sent}, 1: {"q": sent}}, {0: 0.25, 1: 0.75}, Ranks())
    after = method.aggregate(server.adapter, uploads, ctx)["q"]
    torch.testing.assert_close(after["B"] @ after["A"], B @ A, rtol=0, atol=1e-11)
    assert not after["B"][:, found:].any()
    assert torch.equal(after["A"][found:], server.adapter["q"]["A"][found:])
    assert after["A"].any(dim=1).all()


def test_a_scaling_that_there_is_not_is_an_error():
    with pytest.raises(Exception, match=r"method\.scaling .*own.*global.*mean"):
        FlexLoRA(scaling="mean")
