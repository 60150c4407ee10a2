import numpy as np
import torch

from fedgram.distributed.collectives import Ranks
from fedgram.distributed.uploads import Uploads
from fedgram.methods import FedIT
from helpers import INFO, rng, unequal_weights

D_OUT, D_IN, R, N = 7, 11, 2, 5


def make_round(seed=0, drift=0.3):
    """A server, its clients and their weights, as arrays and as what the method sees."""
    random = rng(seed)
    A, B = random.standard_normal((R, D_IN)), random.standard_normal((D_OUT, R))
    clients = [{"A": A + drift * random.standard_normal(A.shape), "B": B + drift * random.standard_normal(B.shape)}
               for _ in range(N)]  # fmt: skip
    weights = unequal_weights(N, random)
    payloads = {n: {"q": {f: torch.from_numpy(v) for f, v in client.items()}} for n, client in enumerate(clients)}
    uploads = Uploads(payloads, dict(enumerate(weights.tolist())), Ranks())
    return {"q": {"A": torch.from_numpy(A), "B": torch.from_numpy(B)}}, clients, weights, uploads


def test_the_mean_of_products_is_missed_by_the_covariance_of_the_factors():
    """Σ wₙ Bₙ Aₙ - B̄ Ā = Σ wₙ (Bₙ - B̄)(Aₙ - Ā)."""
    server, clients, weights, uploads = make_round()
    after = FedIT(rank=R).aggregate(server, uploads, INFO)["q"]
    A, B = after["A"].numpy(), after["B"].numpy()
    missed = sum(w * c["B"] @ c["A"] for w, c in zip(weights, clients, strict=True)) - B @ A
    covariance = sum(w * (c["B"] - B) @ (c["A"] - A) for w, c in zip(weights, clients, strict=True))
    assert np.linalg.norm(covariance) > 0.1
    np.testing.assert_allclose(missed, covariance, rtol=0, atol=1e-12)


def test_diagnostics_equal_brute_force():
    server, clients, weights, uploads = make_round()
    method = FedIT(rank=R)
    after = method.aggregate(server, uploads, INFO)
    figures = method.diagnose(server, after, uploads)["q"]
    A, B = after["q"]["A"].numpy(), after["q"]["B"].numpy()
    product = sum(w * c["B"] @ c["A"] for w, c in zip(weights, clients, strict=True))
    first = server["q"]["A"].numpy()
    expected = {
        "aggregation_error": np.linalg.norm(B @ A - product) / np.linalg.norm(product),
        "update_error": np.linalg.norm(B @ A - product) / np.linalg.norm(product - server["q"]["B"].numpy() @ first),
        "drift": np.linalg.norm(A - first) / np.linalg.norm(first),
    }
    assert figures.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(figures[name], value, rtol=1e-10)


def test_aggregation_is_exact_where_one_factor_is_common():
    server, _, weights, uploads = make_round()
    payloads = {n: {"q": {"A": server["q"]["A"], "B": uploads.stack("q", "B", server["q"]["B"])[n]}} for n in range(N)}
    uploads = Uploads(payloads, dict(enumerate(weights.tolist())), Ranks())
    method = FedIT(rank=R)
    assert method.diagnose(server, method.aggregate(server, uploads, INFO), uploads)["q"]["aggregation_error"] < 1e-14
