"""FLoRG with clients of lower ranks, against Q = AᵀA + Σ wₙ (AₙᵀAₙ - A₍ᵣₙ₎ᵀA₍ᵣₙ₎) in NumPy."""

import numpy as np
import pytest
import torch

from fedgram import AdamW
from fedgram.distributed.collectives import Ranks
from fedgram.distributed.uploads import Uploads
from fedgram.methods import FLoRG, RoundContext
from fedgram.methods.client_memory import NOTHING, begin, without_padding
from fedgram.state import ModelState, ServerState
from helpers import conditioned, deficient, rng, unequal_weights
from test_trainer import fit  # noqa: F401 (a fixture)
from thread_ranks import on_ranks

K, R = 17, 4
RANKS = [4, 1, 3, 2, 1, 3]
PROJECTIONS = ["procrustes", "top_r", "top_r_aligned", "none"]


def the_server_and_what_clients_make_of_it(kind, seed=0):
    """A, and for each client of RANKS the first rows of A after training."""
    random = rng(seed)
    A = {
        "well-conditioned": lambda: conditioned(R, K, 3.0, random),
        "ill-conditioned": lambda: conditioned(R, K, 1e4, random),
        "of lower rank": lambda: deficient(R, K, 2, random),
    }[kind]()
    return A, [A[:rank] + 0.2 * random.standard_normal((rank, K)) / K**0.5 for rank in RANKS]


def gram(X):
    return X.T @ X


def mean_gram(A, sent, weights):
    """Q as differences, which the code under test never forms."""
    return gram(A) + sum(w * (gram(own) - gram(A[: len(own)])) for w, own in zip(weights, sent, strict=True))


def square_root(Q):
    """A factor of Q, the largest eigenvalue first."""
    values, vectors = np.linalg.eigh(Q)
    keep = values > 1e-14 * values[-1]
    return (np.sqrt(values[keep])[:, None] * vectors[:, keep].T)[::-1]


def expected(A, sent, weights, projection):
    factor = square_root(mean_gram(A, sent, weights))
    if projection != "procrustes":
        factor = factor[:R]
    if projection in ("top_r", "none"):
        return factor
    U, values, Vh = np.linalg.svd(A @ factor.T, full_matrices=False)
    keep = values > 1e-12 * values[0]
    return U[:, keep] @ Vh[keep] @ factor


def step(A, sent, weights, processes=1, dtype=torch.float64, **settings):
    """What the server makes of what is really sent, on any number of processes."""
    method = FLoRG(rank=R, client_ranks=RANKS, **settings)
    server = ServerState(ModelState({"q": {"A": torch.from_numpy(A).to(dtype)}}))
    ctx = RoundContext(2, 0, dict.fromkeys(range(len(RANKS)), 1), len(RANKS))

    def on(ranks):
        read, clients = {}, range(len(RANKS))[ranks.rank :: ranks.size]
        for client in clients:
            own = method.context(server, client, ctx)
            down, start = begin(method, server, method.model(server), NOTHING, own)
            assert down.adapter["q"]["A"].shape == start.adapter["q"]["A"].shape == (RANKS[client], K)
            padded = method.pad(start, server, ctx).adapter["q"]["A"].clone()
            assert padded.shape == (R, K)
            padded[: RANKS[client]] = torch.from_numpy(sent[client])
            ended = without_padding(ModelState({"q": {"A": padded}}), start)
            up = method.upload(start, ended, own)
            assert up.adapter["q"]["A"].shape == (RANKS[client], K)
            read[client] = method.receive(server, up, own).adapter
        shares = dict(enumerate(weights.tolist()))
        after = method.next_state(
            server, Uploads(read, shares, ranks), Uploads({c: {} for c in clients}, shares, ranks), ctx
        )
        return after.adapter["q"]["A"]

    if processes == 1:
        return on(Ranks())
    found = on_ranks(processes, on)
    assert all(torch.equal(found[0], other) for other in found)
    return found[0]


def error(actual, wanted):
    return np.linalg.norm(actual - wanted) / np.linalg.norm(wanted)


@pytest.mark.parametrize("kind", ["well-conditioned", "ill-conditioned", "of lower rank"])
@pytest.mark.parametrize("solver", ["polar", "eigh"])
@pytest.mark.parametrize("projection", PROJECTIONS)
def test_the_step_is_that_of_the_formula(projection, solver, kind):
    A, sent = the_server_and_what_clients_make_of_it(kind)
    weights = unequal_weights(len(RANKS), rng(1))
    after, wanted = (
        step(A, sent, weights, projection=projection, solver=solver).numpy(),
        expected(A, sent, weights, projection),
    )
    assert error(gram(after), gram(wanted)) < 1e-9
    if projection not in ("top_r", "none"):
        assert error(after, wanted) < 1e-7


def test_the_plain_mean_counts_the_servers_rows_for_those_that_lack_them():
    A, sent = the_server_and_what_clients_make_of_it("well-conditioned")
    weights = unequal_weights(len(RANKS), rng(1))
    wanted = A + sum(
        w * np.concatenate([own - A[: len(own)], np.zeros((R - len(own), K))])
        for w, own in zip(weights, sent, strict=True)
    )
    assert error(step(A, sent, weights, projection="average").numpy(), wanted) < 1e-14


@pytest.mark.parametrize("projection", [*PROJECTIONS, "average"])
@pytest.mark.parametrize("solver", ["polar", "eigh"])
def test_any_number_of_processes_gives_the_same_bits(solver, projection):
    A, sent = the_server_and_what_clients_make_of_it("well-conditioned")
    weights = unequal_weights(len(RANKS), rng(1))
    one, *more = (step(A, sent, weights, n, torch.float32, solver=solver, projection=projection) for n in (1, 2, 4))
    assert all(torch.equal(one, other) for other in more)


def test_a_run_whose_clients_do_not_move_stays_at_the_pretrained_function(fit):  # noqa: F811
    """With zeros in the place of missing rows the product lost more than half of AᵀA in a round."""
    method = FLoRG(rank=4, init_std=0.5, client_ranks=[4, 1, 2, 1, 1], head="frozen")
    summary, _ = fit(method=method, optimizer=AdamW(lr=1e-30), rounds=2, precision="64-true")
    assert summary["final"]["loss"] == pytest.approx(summary["initial"]["loss"], rel=1e-12)
