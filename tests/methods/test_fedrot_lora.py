import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode

from fedgram.errors import ConfigurationError
from fedgram.methods import ClientContext, FedIT, FedRotLoRA, RoundContext
from fedgram.state import ModelState
from helpers import orthogonal, rng
from methods.cohorts import Cohort, drifted_cohort


def in_round(method, number):
    return ClientContext(RoundContext(number, 0, {0: 0}, 1), 0, method.rank)


def state_of(layer):
    return ModelState({"q": layer})


def sent(method, start, trained, number=2):
    """What a client uploads, of arrays."""
    start, trained = (state_of({f: torch.from_numpy(a) for f, a in own.items()}) for own in (start, trained))
    payload = method.upload(start, trained, in_round(method, number))
    return {f: tensor.numpy() for f, tensor in payload.adapter["q"].items()}


def turned(layer, R):
    return {"A": R.T @ layer["A"], "B": layer["B"] @ R}


def rotation(random, r=3):
    R = orthogonal(r, random)
    R[:, 0] *= np.linalg.det(R)
    return R


def kabsch(M):
    U, _, Vh = np.linalg.svd(M)
    return U @ np.diag([1.0] * (len(M) - 1) + [np.linalg.det(U @ Vh)]) @ Vh


@settings(max_examples=40, deadline=None)
@given(
    strength=st.floats(0, 1),
    align=st.sampled_from(["alternate", "A", "B"]),
    number=st.integers(1, 5),
    seed=st.integers(0, 99),
)
def test_what_a_client_sends_has_the_product_that_it_trained(strength, align, number, seed):
    start, trained = drifted_cohort(2, drift=2.0, seed=seed).clients
    rotated = sent(FedRotLoRA(rank=3, strength=strength, align=align), start, trained, number)
    np.testing.assert_allclose(rotated["B"] @ rotated["A"], trained["B"] @ trained["A"], rtol=0, atol=1e-12)
    lengths = [np.linalg.norm(layer["A"]) for layer in (rotated, trained)]  # a rotation, and no other matrix
    assert lengths[0] == pytest.approx(lengths[1], rel=1e-12)


@pytest.mark.parametrize(("number", "field"), [(2, "A"), (3, "B"), (4, "A"), (5, "B")])
def test_a_and_b_are_matched_in_turn(number, field):
    start, trained = drifted_cohort(2, drift=1.0).clients
    M = trained["A"] @ start["A"].T if field == "A" else trained["B"].T @ start["B"]
    expected = turned(trained, kabsch(M))
    for method in (FedRotLoRA(rank=3, strength=1.0), FedRotLoRA(rank=3, strength=1.0, align=field)):
        rotated = sent(method, start, trained, number)
        for name in ("A", "B"):
            np.testing.assert_allclose(rotated[name], expected[name], rtol=0, atol=1e-9)
    other = FedRotLoRA(rank=3, strength=1.0, align="B" if field == "A" else "A")
    assert not np.allclose(sent(other, start, trained, number)["A"], expected["A"], atol=1e-3)


def test_in_the_first_round_nothing_is_turned():
    start, trained = drifted_cohort(2, drift=1.0).clients
    for align in ("alternate", "A", "B"):
        rotated = sent(FedRotLoRA(rank=3, align=align), start, trained, 1)
        assert all(np.array_equal(rotated[field], trained[field]) for field in ("A", "B"))


@pytest.mark.parametrize("align", ["A", "B"])
def test_clients_that_differ_by_rotations_alone_are_averaged_exactly(align):
    random, start = rng(1), drifted_cohort(1).clients[0]
    clients = [turned(start, rotation(random)) for _ in range(4)]
    weights = np.array([0.1, 0.2, 0.3, 0.4])
    apart = Cohort(clients, weights)
    assert apart.error(apart.aggregated(FedIT(rank=3))) > 0.2
    method = FedRotLoRA(rank=3, strength=1.0, align=align)
    together = Cohort([sent(method, start, own) for own in clients], weights)
    after = together.aggregated(method)
    for field in ("A", "B"):
        np.testing.assert_allclose(after[field], start[field], rtol=0, atol=1e-9)


def test_half_the_strength_is_half_the_angle():
    angle = 1.2

    def plane(angle):
        return np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])

    start = {"A": np.eye(2, 5), "B": np.zeros((4, 2))}
    trained = turned(start, plane(angle))
    for strength, left in ((0.0, angle), (0.5, angle / 2), (1.0, 0.0)):
        rotated = sent(FedRotLoRA(rank=2, strength=strength), start, trained)
        np.testing.assert_allclose(rotated["A"], turned(start, plane(left))["A"], rtol=0, atol=1e-10)
    rotated = sent(FedRotLoRA(rank=2, strength=0.3), start, trained)
    made = np.arctan2(0.3 * np.sin(angle), 0.7 + 0.3 * np.cos(angle))  # of (1 - λ) I + λ R
    np.testing.assert_allclose(rotated["A"], turned(start, plane(angle - made))["A"], rtol=0, atol=1e-10)


def test_half_of_a_half_turn_keeps_the_product():
    """(I + R)/2 has no inverse there: a partial isometry in its place would lose what the client trained."""
    start = drifted_cohort(1, rank=2).clients[0]
    trained = turned(start, -np.eye(2))
    rotated = sent(FedRotLoRA(rank=2), start, trained)
    np.testing.assert_allclose(rotated["B"] @ rotated["A"], start["B"] @ start["A"], rtol=0, atol=1e-12)


def test_a_reflection_is_not_undone():
    start = drifted_cohort(1, rank=2).clients[0]
    trained = turned(start, np.diag([1.0, -1.0]))
    rotated = sent(FedRotLoRA(rank=2, strength=1.0), start, trained)
    assert not np.allclose(rotated["A"], start["A"], atol=1e-2)
    R = np.linalg.lstsq(trained["A"].T, rotated["A"].T, rcond=None)[0]
    assert np.linalg.det(R) == pytest.approx(1)


def test_where_b_says_nothing_nothing_is_turned():
    start, trained = drifted_cohort(2).clients
    start["B"] = np.zeros_like(start["B"])
    rotated = sent(FedRotLoRA(rank=3, align="B"), start, trained, 3)
    np.testing.assert_allclose(rotated["A"], trained["A"], rtol=0, atol=1e-15)


def test_no_strength_is_fedit():
    start, trained = drifted_cohort(2, drift=1.0).clients
    rotated = sent(FedRotLoRA(rank=3, strength=0.0), start, trained)
    for field in ("A", "B"):
        np.testing.assert_allclose(rotated[field], trained[field], rtol=0, atol=1e-14)


def test_what_is_sent_is_known_without_numbers():
    method = FedRotLoRA(rank=3)
    with FakeTensorMode():
        state = state_of({"A": torch.randn(3, 11), "B": torch.randn(7, 3)})
        payload = method.upload(state, state, in_round(method, 2)).adapter
    assert {f: (t.shape, t.dtype) for f, t in payload["q"].items()} == {
        "A": ((3, 11), torch.float32),
        "B": ((7, 3), torch.float32),
    }


def test_its_name_says_what_is_unusual():
    kinds = [{}, {"align": "A"}, {"strength": 1.0, "align": "B"}]
    assert [FedRotLoRA(**kind).name for kind in kinds] == ["FedRotLoRA", "FedRotLoRA-A", "FedRotLoRA-1.0-B"]


def test_settings_that_make_no_sense_are_errors():
    with pytest.raises(ConfigurationError, match=r"method\.strength must be from 0 .* to 1 .*, got 1\.5"):
        FedRotLoRA(strength=1.5)
    with pytest.raises(ConfigurationError, match=r"method\.align must be one of alternate, A, B"):
        FedRotLoRA(align="C")
    with pytest.raises(ConfigurationError, match="not defined for ranks that differ"):
        FedRotLoRA(client_ranks=[1, 2])
