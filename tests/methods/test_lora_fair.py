import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters.plain import NewShapes
from fedgram.errors import ConfigurationError
from fedgram.methods import FedIT, LoRAFAIR, RoundContext
from fedgram.seeding import torch_generator
from helpers import INFO, rng
from methods.cohorts import drifted_cohort
from methods.oracles import lora_fair


def cosine(cohort, layer):
    product = layer["B"] @ layer["A"]
    return np.sum(cohort.target * product) / np.linalg.norm(cohort.target) / np.linalg.norm(product)


def test_without_a_penalty_nothing_is_missed_in_the_rows_of_a():
    cohort = drifted_cohort()
    after = cohort.aggregated(LoRAFAIR(rank=3, mode="l2", lam=0.0))
    missed = cohort.target - after["B"] @ after["A"]
    assert np.linalg.norm(missed @ after["A"].T) < 1e-13
    assert np.linalg.norm(missed) > 1e-2
    np.testing.assert_allclose(after["A"], cohort.means["A"], rtol=0, atol=1e-15)


def test_without_a_penalty_rows_that_are_missing_are_left_out():
    """As where all clients of the cohort have a lower rank than the server."""
    cohort = drifted_cohort(rank=4)
    for own in cohort.clients:
        own["A"][2:], own["B"][:, 2:] = 0, 0
    after = cohort.aggregated(LoRAFAIR(rank=4, mode="l2", lam=0.0))
    assert not after["B"][:, 2:].any()
    assert np.linalg.norm((cohort.target - after["B"] @ after["A"]) @ after["A"].T) < 1e-13


@settings(max_examples=30, deadline=None)
@given(drift=st.floats(0.01, 3), lam=st.floats(0, 10), seed=st.integers(0, 99))
def test_the_closed_form_is_the_minimum(drift, lam, seed):
    cohort = drifted_cohort(drift=drift, seed=seed)
    after, means = cohort.aggregated(LoRAFAIR(rank=3, mode="l2", lam=lam)), cohort.means

    def loss(B):
        return np.linalg.norm(cohort.target - B @ means["A"]) ** 2 + lam * np.linalg.norm(B - means["B"]) ** 2

    least = loss(after["B"])
    assert least <= loss(means["B"]) * (1 + 1e-12)
    for _ in range(5):
        step = rng(seed).standard_normal(after["B"].shape)
        assert least <= loss(after["B"] + 1e-3 * step)
    assert cohort.error(after) <= cohort.error(means) + 1e-12
    assert cohort.error(after) >= cohort.best_error(3) - 1e-12


@pytest.mark.parametrize("mode", ["l2", "cosine"])
def test_a_large_penalty_leaves_the_mean(mode):
    cohort = drifted_cohort(drift=1.0)
    moved = [
        np.linalg.norm(cohort.aggregated(LoRAFAIR(rank=3, mode=mode, lam=lam, lr=1e-4))["B"] - cohort.means["B"])
        for lam in (0.0, 1e2, 1e4 if mode == "cosine" else 1e9)
    ]
    assert moved[0] > 10 * moved[1] > 100 * moved[2] / 10
    assert moved[2] < 1e-3 * moved[0]


def test_small_steps_from_zero_lower_the_loss_one_by_one():
    cohort = drifted_cohort(drift=1.0)
    steps = [cohort.aggregated(LoRAFAIR(rank=3, lam=0.0, steps=steps, lr=1e-3)) for steps in range(1, 25)]
    losses = [1 - cosine(cohort, after) for after in (cohort.means, *steps)]
    assert (np.diff(losses) < 0).all()


def test_a_long_descent_without_a_penalty_finds_the_direction_of_the_closed_form():
    """The best cosine has the direction of the least squares: that is the projection on the rows of A."""
    cohort = drifted_cohort(drift=1.0)
    found = cohort.aggregated(LoRAFAIR(rank=3, lam=0.0, lr=0.1, steps=3000))
    best = cohort.aggregated(LoRAFAIR(rank=3, mode="l2", lam=0.0))
    assert cosine(cohort, found) == pytest.approx(cosine(cohort, best), abs=1e-9)


def test_a_start_of_zero_works_with_the_papers_penalty_and_a_random_one_does_not():
    """One early round of six clients from a common start, B a tenth of A: what its docstring tells."""
    cohort = drifted_cohort(6, 192, 192, 8, 0.1, size_of_B=0.1)

    def outcome(**given):
        after = cohort.aggregated(LoRAFAIR(rank=8, relative=False, **given))
        return cohort.error(after), cosine(cohort, after)

    average, averages_cosine = cohort.error(cohort.aggregated(FedIT(rank=8))), cosine(cohort, cohort.means)
    error, found = outcome()
    assert error < 0.99 * average
    assert found > averages_cosine
    error, found = outcome(init="xavier")
    assert error > 5
    assert found < 0.85
    error, found = outcome(init="xavier", lam=1.0)
    assert error == pytest.approx(average, rel=0.03)


def test_small_updates_are_lengthened_many_times_unless_the_correction_is_counted_in_their_units():
    large, small = (drifted_cohort(6, 48, 40, 4, 0.3, size_of_B=size) for size in (1.0, 0.001))
    corrected = [cohort.aggregated(LoRAFAIR(rank=4)) for cohort in (large, small)]
    np.testing.assert_allclose(1000 * corrected[1]["B"], corrected[0]["B"], rtol=0, atol=1e-12)
    assert large.error(corrected[0]) < large.error(large.means)
    literal = small.aggregated(LoRAFAIR(rank=4, relative=False))
    assert np.linalg.norm(literal["B"]) > 20 * np.linalg.norm(small.means["B"])


@pytest.mark.parametrize("relative", [True, False])
def test_a_random_start_is_of_the_run_the_round_and_the_layer(relative):
    cohort, given = drifted_cohort(), {"lam": 0.1, "lr": 0.05, "steps": 30}
    method = LoRAFAIR(rank=3, init="xavier", relative=relative, **given)
    rounds = [INFO, RoundContext(4, 0, INFO.last_rounds), RoundContext(3, 1, INFO.last_rounds)]
    found = [cohort.aggregated(method, ctx)["B"] for ctx in rounds]
    assert not np.allclose(found[0], found[1])
    assert not np.allclose(found[0], found[2])
    bound = (6 / (13 + 3)) ** 0.5
    start = torch.empty(13, 3, dtype=torch.float64)
    start.uniform_(-bound, bound, generator=torch_generator(0, "correction of q", 3))
    expected = lora_fair(cohort.means, cohort.clients, cohort.weights, relative=relative, start=start.numpy(), **given)
    np.testing.assert_allclose(found[0], expected["B"], rtol=0, atol=1e-10)


@pytest.mark.parametrize("mode", ["cosine", "l2"])
def test_no_matrix_has_the_size_of_the_weight(mode):
    cohort, method = drifted_cohort(d_out=37, d_in=41), LoRAFAIR(rank=3, mode=mode, steps=2)
    layers, uploads = cohort.layers, cohort.uploads
    with NewShapes(*layers["q"].values()) as made:
        method.aggregate(layers, uploads, INFO)
    assert made.shapes
    assert not [shape for shape in made.shapes if {37, 41} <= set(shape)]


def test_a_step_touches_nothing_of_the_size_of_a_layer():
    cohort = drifted_cohort(d_out=37, d_in=41)
    made = []
    for steps in (1, 9):
        layers, uploads = cohort.layers, cohort.uploads
        with NewShapes(*layers["q"].values()) as seen:
            LoRAFAIR(rank=3, steps=steps).aggregate(layers, uploads, INFO)
        made.append([shape for shape in seen.shapes if {37, 41} & set(shape)])
    assert len(made[0]) == len(made[1]) > 0


def test_its_name_says_what_is_unusual():
    kinds = [{}, {"mode": "l2"}, {"init": "xavier"}, {"relative": False}]
    names = ["LoRAFAIR", "LoRAFAIR-l2", "LoRAFAIR-xavier", "LoRAFAIR-absolute"]
    assert [LoRAFAIR(**kind).name for kind in kinds] == names


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"mode": "l1"}, r"method\.mode must be one of cosine, l2"),
        ({"init": "ones"}, r"method\.init must be one of zero, xavier"),
        ({"lam": -1.0}, r"method\.lam must not be negative, got -1"),
        ({"steps": 0}, r"method\.steps and method\.lr must be positive, got 0"),
        ({"lr": 0.0}, r"method\.steps and method\.lr must be positive, got 1000 and 0"),
    ],
)
def test_settings_that_make_no_sense_are_errors(given, message):
    with pytest.raises(ConfigurationError, match=message):
        LoRAFAIR(**given)
