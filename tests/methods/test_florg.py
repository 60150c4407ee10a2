import numpy as np
import pytest
import torch
from torch import nn

from fedgram.distributed.collectives import Ranks
from fedgram.distributed.uploads import Uploads
from fedgram.errors import ConfigurationError
from fedgram.methods import FLoRG
from fedgram.numerics import linalg
from fedgram.seeding import torch_generator
from helpers import INFO, conditioned, drifted, orthogonal, rng, unequal_weights
from methods import oracles

R, K = 3, 17
PROJECTIONS = ["procrustes", "top_r", "top_r_aligned", "none"]


def make_round(clients=4, drift=0.3, seed=0, condition=3.0):
    random = rng(seed)
    A = conditioned(R, K, condition, random)
    return A, drifted(A, clients, drift, random), unequal_weights(clients, random)


def uploads_of(factors, weights, ranks=None, dtype=torch.float64):
    payloads = {n: {"q": {"A": torch.from_numpy(factor).to(dtype)}} for n, factor in enumerate(factors)}
    return Uploads(payloads, dict(enumerate(weights.tolist())), ranks or Ranks())


def aggregate(A, factors, weights, dtype=torch.float64, **settings):
    method = FLoRG(rank=len(A), **settings)
    server = {"q": {"A": torch.from_numpy(A).to(dtype)}}
    return method.aggregate(server, uploads_of(factors, weights, dtype=dtype), INFO)["q"]["A"].double().numpy()


def mean_gram(factors, weights):
    return sum(w * F.T @ F for w, F in zip(weights, factors, strict=True))


def error(actual, expected):
    return np.linalg.norm(actual - expected) / np.linalg.norm(expected)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
@pytest.mark.parametrize("clients", [1, 2, 4, 9])
@pytest.mark.parametrize("projection", ["procrustes", "top_r", "top_r_aligned"])
def test_both_solvers_give_the_same_matrix(projection, clients, dtype, tolerance):
    """Nine clients of rank 3 hold more numbers than Q, of 17 x 17: there the polar path goes by Q as well."""
    case = make_round(clients)
    polar, eigh = (aggregate(*case, dtype=dtype, projection=projection, solver=s) for s in ("polar", "eigh"))
    assert error(polar, eigh) < tolerance


@pytest.mark.parametrize("projection", PROJECTIONS)
@pytest.mark.parametrize("solver", ["polar", "eigh"])
def test_rotating_what_a_client_sends_changes_nothing(solver, projection):
    """The client's Gram matrix is the same, so is Q (only the signs of "none" are the solver's)."""
    A, factors, weights = make_round()
    random = rng(1)
    rotated = np.stack([orthogonal(R, random) @ F for F in factors])
    assert error(rotated, factors) > 0.5
    before, after = (aggregate(A, sent, weights, projection=projection, solver=solver) for sent in (factors, rotated))
    assert error(after.T @ after, before.T @ before) < 1e-10
    if projection != "none":
        assert error(after, before) < 1e-10


def test_the_plain_mean_does_depend_on_the_rotations():
    A, factors, weights = make_round()
    rotated = np.stack([orthogonal(R, rng(n)) @ F for n, F in enumerate(factors)])
    before, after = (aggregate(A, sent, weights, projection="average") for sent in (factors, rotated))
    np.testing.assert_allclose(before, np.einsum("n,nrk->rk", weights, factors), rtol=0, atol=1e-14)
    assert error(after, before) > 0.1


@pytest.mark.parametrize("solver", ["polar", "eigh"])
def test_a_single_client_is_rotated_towards_the_last_matrix(solver):
    A, factors, weights = make_round(clients=1, drift=1.0)
    own = orthogonal(R, rng(5)) @ factors[0]
    for projection in ("procrustes", "top_r_aligned"):
        after = aggregate(A, own[None], weights, projection=projection, solver=solver)
        assert error(after.T @ after, own.T @ own) < 1e-12
        U, _, Vh = np.linalg.svd(A @ own.T)
        assert error(after, U @ Vh @ own) < 1e-10
        symmetric = after @ A.T  # the nearest rotation: Aᵗ⁺¹ Aᵗᵀ is symmetric and positive
        assert error(symmetric, symmetric.T) < 1e-10
        assert np.linalg.eigvalsh(symmetric).min() > 0


def test_procrustes_is_the_nystrom_approximation_and_top_r_the_best():
    A, factors, weights = make_round(drift=1.0)
    Q = mean_gram(factors, weights)
    nystrom = Q @ A.T @ np.linalg.inv(A @ Q @ A.T) @ A @ Q
    after = aggregate(A, factors, weights)
    assert error(after.T @ after, nystrom) < 1e-10
    assert np.linalg.eigvalsh(Q - after.T @ after).min() > -1e-12
    values, vectors = np.linalg.eigh(Q)
    best = vectors[:, -R:] * values[-R:] @ vectors[:, -R:].T
    assert error(after.T @ after, best) > 0.01
    for projection in ("top_r", "top_r_aligned", "none"):
        top = aggregate(A, factors, weights, projection=projection)
        assert error(top.T @ top, best) < 1e-10


def test_top_r_has_signs_of_its_own_and_top_r_aligned_those_nearest_to_the_last():
    A, factors, weights = make_round(drift=0.1)
    top = aggregate(A, factors, weights, projection="top_r")
    assert (np.take_along_axis(top, np.abs(top).argmax(axis=1)[:, None], axis=1) > 0).all()
    assert np.all(np.diff(np.linalg.norm(top, axis=1)) < 0)
    np.testing.assert_allclose(top @ top.T, np.diag(np.diag(top @ top.T)), rtol=0, atol=1e-12)
    aligned = aggregate(A, factors, weights, projection="top_r_aligned")
    assert error(aligned, A) < 0.2 < error(top, A)


def test_with_fewer_directions_than_rows_the_rest_are_zero():
    A, factors, weights = make_round()
    factors = factors * np.array([1.0, 0, 0])[:, None] * np.array([1.0, 0, 0, 0])[:, None, None]  # Q of rank 1
    for solver in ("polar", "eigh"):
        for projection in ("top_r", "none"):
            after = aggregate(A, factors, weights, projection=projection, solver=solver)
            assert np.count_nonzero(after.any(axis=1)) == 1
        for projection in PROJECTIONS:
            after = aggregate(A, factors, weights, projection=projection, solver=solver)
            assert error(after.T @ after, mean_gram(factors, weights)) < 1e-10


class CountingRanks(Ranks):
    """One process that notes what would be exchanged."""

    def __init__(self):
        super().__init__()
        self.exchanged = []

    def sum(self, terms, count, like):
        self.exchanged.append(("sum", tuple(like.shape)))
        return super().sum(terms, count, like)

    def gather(self, rows, order, ids):
        self.exchanged.append(("gather", tuple(rows.shape)))
        return super().gather(rows, order, ids)


@pytest.mark.parametrize(
    ("clients", "dtype", "solver", "exchanged"),
    [
        (2, torch.float64, "polar", ("gather", (2, R, K))),
        (30, torch.float64, "polar", ("gather", (30, R, K))),  # more numbers than Q has
        (30, torch.float32, "polar", ("gather", (30, R, K))),
        (2, torch.float64, "eigh", ("sum", (K, K))),
        (30, torch.float32, "eigh", ("sum", (K, K))),
    ],
)
def test_polar_exchanges_factors_and_eigh_gram_matrices(clients, dtype, solver, exchanged):
    A, factors, weights = make_round(clients)
    ranks = CountingRanks()
    uploads = uploads_of(factors, weights, ranks, dtype)
    after = FLoRG(rank=R, solver=solver).aggregate({"q": {"A": torch.from_numpy(A).to(dtype)}}, uploads, INFO)
    assert ranks.exchanged == [exchanged]
    expected = oracles.florg({"A": A}, [{"A": F} for F in factors], weights)["A"]
    assert error(after["q"]["A"].double().numpy(), expected) < (1e-10 if dtype == torch.float64 else 1e-5)


@pytest.mark.parametrize("projection", [*PROJECTIONS, "average"])
def test_diagnostics_equal_brute_force(projection):
    A, factors, weights = make_round(drift=1.0)
    method = FLoRG(rank=R, projection=projection)
    server, uploads = {"q": {"A": torch.from_numpy(A)}}, uploads_of(factors, weights)
    after = method.aggregate(server, uploads, INFO)
    figures = method.diagnose(server, after, uploads)["q"]
    new, Q = after["q"]["A"].numpy(), mean_gram(factors, weights)
    values = np.linalg.eigvalsh(Q)[::-1]
    expected = {
        "aggregation_error": error(new.T @ new, Q),
        "update_error": np.linalg.norm(new.T @ new - Q) / np.linalg.norm(Q - A.T @ A),
        "best_rank_error": np.linalg.norm(values[R:]) / np.linalg.norm(values),
        "condition_number": np.linalg.cond(new),
        "drift": error(new, A),
        "rank_of_q": 4 * R,
    }
    assert figures.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(figures[name], value, rtol=1e-9, err_msg=name)


@pytest.mark.parametrize("init_std", [0.0, -0.1])
def test_a_start_at_the_saddle_is_an_error(init_std):
    with pytest.raises(ConfigurationError, match=rf"method\.init_std must be positive .*saddle.* got {init_std}"):
        FLoRG(init_std=init_std)


def test_the_first_matrix_is_normal_of_the_asked_deviation():
    with torch.random.fork_rng(devices=[]):
        adapter = FLoRG(rank=40, init_std=0.3).adapter(nn.Linear(90, 60), torch_generator(0, "q"))
    A = adapter.initial()["A"]
    assert A.shape == (40, 60)
    assert A.std() == pytest.approx(0.3, rel=0.05)
    assert abs(A.mean()) < 0.02
    assert (A / 0.3).pow(4).mean() == pytest.approx(3, rel=0.15)


def test_layers_of_one_shape_start_differently():
    with torch.random.fork_rng(devices=[]):
        linear = nn.Linear(9, 6)
    one, same, other = (FLoRG(rank=2).adapter(linear, torch_generator(0, name)) for name in ("q", "q", "v"))
    for drawn in ([a.start["A"] for a in (one, same, other)], [a.R for a in (one, same, other)]):
        assert torch.equal(drawn[0], drawn[1])
        assert not torch.equal(drawn[0], drawn[2])


@pytest.mark.parametrize("preserve_start", [True, False])
def test_settings_reach_the_adapter(preserve_start):
    with torch.random.fork_rng(devices=[]):
        linear = nn.Linear(9, 6)
    adapter = FLoRG(rank=2, alpha=3.0, basis="svd", preserve_start=preserve_start).adapter(
        linear, torch_generator(0, "q")
    )
    assert (adapter.rank, adapter.scale, adapter.preserve_start) == (2, 1.5, preserve_start)
    sigma = adapter.L.mT @ linear.weight @ adapter.R.mT
    assert torch.allclose(sigma, sigma.diagonal().diag(), atol=1e-5)
    assert adapter.base is linear


def test_an_ill_conditioned_server_matrix_costs_no_accuracy():
    """(A Q Aᵀ)^{-1/2} A Q, the same by formula, is good to 1e-5 at this condition (docs of linalg.align)."""
    A, factors, weights = make_round(drift=1e-2, condition=1e4)
    after = aggregate(A, factors, weights)
    assert error(after, oracles.florg({"A": A}, [{"A": F} for F in factors], weights)["A"]) < 1e-8
    Z = linalg.weighted_stack(torch.from_numpy(factors), torch.from_numpy(weights))
    assert float(linalg.gram_error(torch.from_numpy(after), Z)) < 1e-3


@pytest.mark.parametrize("setting", ["solver", "projection", "basis", "head"])
def test_a_misspelt_choice_is_refused(setting):
    with pytest.raises(ConfigurationError, match=rf"method\.{setting} must be one of .*; got 'nope'"):
        FLoRG(**{setting: "nope"})
