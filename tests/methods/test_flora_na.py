import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters.plain import NewShapes
from fedgram.distributed.collectives import Ranks
from fedgram.distributed.uploads import Uploads
from fedgram.errors import ConfigurationError
from fedgram.methods import FedIT, FLoRANA
from fedgram.methods.flora_na import _grams, _in_gauge, _mixtures
from helpers import INFO, rng
from methods.cohorts import Cohort, drifted_cohort
from methods.oracles import flora_na_of, nearest_mixtures


def stacks(cohort):
    return [torch.from_numpy(np.array([c[field] for c in cohort.clients])) for field in ("B", "A")]


@settings(max_examples=40, deadline=None)
@given(
    clients=st.integers(1, 7),
    rank=st.integers(1, 4),
    drift=st.floats(0, 4),
    common=st.sampled_from([0.0, 1.0]),
    seed=st.integers(0, 99),
    sweeps=st.sampled_from([1, 3, 20]),
)
def test_it_is_never_worse_than_averaging_nor_better_than_singular_values(clients, rank, drift, common, seed, sweeps):
    cohort = drifted_cohort(clients, 9, 7, rank, drift, seed, common=common)
    if not np.linalg.norm(cohort.target):
        return
    error = cohort.error(cohort.aggregated(FLoRANA(rank=rank, sweeps=sweeps)))
    assert cohort.best_error(rank) - 1e-9 <= error <= cohort.error(cohort.aggregated(FedIT(rank=rank))) + 1e-9


def test_unrelated_clients_gain_and_near_ones_have_little_to_gain():
    far, near = (drifted_cohort(6, 192, 192, 8, drift, common=common) for drift, common in ((1.0, 0.0), (0.1, 1.0)))
    gains = [1 - c.error(c.aggregated(FLoRANA(rank=8))) / c.error(c.aggregated(FedIT(rank=8))) for c in (far, near)]
    assert gains[0] > 0.05
    assert 0 < gains[1] < 0.01


@pytest.mark.parametrize(("common", "within"), [(0.0, 1e-3), (1.0, 1e-9)])
def test_the_sweeps_converge(common, within):
    cohort = drifted_cohort(6, 192, 160, 8, 1.0, common=common)
    errors = [cohort.error(cohort.aggregated(FLoRANA(rank=8, sweeps=sweeps))) for sweeps in (1, 20, 200)]
    assert errors[0] > errors[1] + 1e-6
    assert 0 <= errors[1] - errors[2] + 1e-12 < within


def test_inner_products_of_products_come_from_gram_blocks():
    cohort = drifted_cohort(4)
    Bs, As = stacks(cohort)
    grams = _grams(Bs, As)
    products = np.einsum("aor,bri->aboi", Bs.numpy(), As.numpy())
    dense = np.einsum("aboi,cdoi->abcd", products, products)
    np.testing.assert_allclose(np.einsum("acxy,bdxy->abcd", grams.B, grams.A), dense, rtol=0, atol=1e-12)


def test_the_objective_from_gram_blocks_is_the_dense_one():
    cohort = drifted_cohort(4, drift=1.0)
    Bs, As = stacks(cohort)
    P, Q = _mixtures([_grams(Bs, As)], torch.from_numpy(cohort.weights), 20)
    B, A = (np.tensordot(mixture.numpy(), own.numpy(), 1) for mixture, own in ((Q, Bs), (P, As)))
    expected = nearest_mixtures([cohort.clients], cohort.weights, 20)
    np.testing.assert_allclose(np.outer(Q, P), np.outer(*expected[::-1]), rtol=0, atol=1e-9)
    aggregated = cohort.aggregated(FLoRANA(rank=3))
    np.testing.assert_allclose(aggregated["B"] @ aggregated["A"], B @ A, rtol=0, atol=1e-12)


def test_the_gauge_keeps_the_product_and_gives_the_lengths_of_the_means():
    cohort = drifted_cohort(drift=2.0)
    after, means = cohort.aggregated(FLoRANA(rank=3)), cohort.means
    P, Q = nearest_mixtures([cohort.clients], cohort.weights, 20)
    B, A = (sum(m * c[f] for m, c in zip(mix, cohort.clients, strict=True)) for mix, f in ((Q, "B"), (P, "A")))
    np.testing.assert_allclose(after["B"] @ after["A"], B @ A, rtol=0, atol=1e-9)
    ratios = [np.linalg.norm(layer["B"]) / np.linalg.norm(layer["A"]) for layer in (after, means)]
    assert ratios[0] == pytest.approx(ratios[1], rel=1e-12)
    assert np.linalg.norm(B) / np.linalg.norm(A) != pytest.approx(ratios[1], rel=1e-3)  # it had something to do


def test_the_gauge_turns_a_negative_mixture_round():
    cohort = drifted_cohort()
    weights = torch.from_numpy(cohort.weights)
    P, Q = _in_gauge(-3 * weights, -weights, [_grams(*stacks(cohort))], weights)
    assert (P > 0).all()
    np.testing.assert_allclose(np.outer(Q, P), 3 * np.outer(weights, weights), rtol=1e-12)


def test_clients_that_sent_the_same_give_it_back():
    one = drifted_cohort(1).clients[0]
    cohort = Cohort([one, one, one], np.array([0.2, 0.3, 0.5]))
    after = cohort.aggregated(FLoRANA(rank=3))
    for field in ("A", "B"):
        np.testing.assert_allclose(after[field], one[field], rtol=0, atol=1e-12)


@pytest.mark.parametrize("field", ["A", "B"])
def test_where_all_products_are_zero_the_means_stay(field):
    cohort = drifted_cohort()
    for own in cohort.clients:
        own[field] = np.zeros_like(own[field])
    after = cohort.aggregated(FLoRANA(rank=3))
    for name, mean in cohort.means.items():
        np.testing.assert_allclose(after[name], mean, rtol=0, atol=1e-15)


def test_one_pair_for_all_layers():
    random = rng(3)
    layers = {"q": (11, 7, 1.0), "k": (7, 11, 0.3)}
    clients = {
        name: [{"A": random.normal(size=(2, i)), "B": size * random.normal(size=(o, 2))} for _ in range(5)]
        for name, (i, o, size) in layers.items()
    }
    weights = random.dirichlet(np.full(5, 5.0))
    payloads = {
        n: {name: {f: torch.from_numpy(a) for f, a in own[n].items()} for name, own in clients.items()}
        for n in range(5)
    }
    uploads = Uploads(payloads, dict(enumerate(weights.tolist())), Ranks())
    shared, own, mean = (
        method.aggregate(payloads[0], uploads, INFO)
        for method in (FLoRANA(rank=2, scope="model", sweeps=7), FLoRANA(rank=2, sweeps=7), FedIT(rank=2))
    )
    for name, expected in zip(layers, flora_na_of(list(clients.values()), weights, 7), strict=True):
        for field in ("A", "B"):
            np.testing.assert_allclose(shared[name][field], expected[field], rtol=0, atol=1e-9)
    cohorts = {name: Cohort(each, weights) for name, each in clients.items()}

    def missed(after):
        return sum(
            np.linalg.norm(c.target - (after[name]["B"] @ after[name]["A"]).numpy()) ** 2 for name, c in cohorts.items()
        )

    assert missed(own) < missed(shared) < missed(mean)


def test_the_cost_is_that_of_gram_matrices():
    """With N clients there is nothing of N⁴ numbers, and no matrix of the size of the weight."""
    cohort, method = drifted_cohort(20, 37, 41, 2), FLoRANA(rank=2, sweeps=2)
    layers, uploads = cohort.layers, cohort.uploads
    with NewShapes(*layers["q"].values()) as made:
        method.aggregate(layers, uploads, INFO)
    assert made.shapes
    assert max(np.prod(shape) for shape in made.shapes) <= max((20 * 2) ** 2, 20 * 2 * 41)
    assert not [shape for shape in made.shapes if {37, 41} <= set(shape)]


def test_a_client_of_a_lower_rank_has_no_part_in_the_rest():
    cohort = drifted_cohort(drift=1.0)
    for own in cohort.clients[:3]:
        own["A"][1:], own["B"][:, 1:] = 0, 0
    after = cohort.aggregated(FLoRANA(rank=3))
    (expected,) = flora_na_of([cohort.clients], cohort.weights, 20)
    for field in ("A", "B"):
        np.testing.assert_allclose(after[field], expected[field], rtol=0, atol=1e-9)
    assert cohort.error(after) < cohort.error(cohort.means)


def test_its_name_says_what_is_unusual():
    assert [FLoRANA().name, FLoRANA(scope="model").name] == ["FLoRANA", "FLoRANA-model"]


def test_settings_that_make_no_sense_are_errors():
    with pytest.raises(ConfigurationError, match=r"method\.scope must be one of layer, model"):
        FLoRANA(scope="head")
    with pytest.raises(ConfigurationError, match=r"method\.sweeps must be at least 1, got 0"):
        FLoRANA(sweeps=0)
