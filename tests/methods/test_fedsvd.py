import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedgram.distributed.collectives import Ranks
from fedgram.distributed.uploads import Uploads
from fedgram.errors import ConfigurationError
from fedgram.methods import FedSVD, RoundContext
from fedgram.methods.client_memory import NOTHING, begin
from fedgram.runs.checkpoint import load
from fedgram.state import ModelState, ServerState
from helpers import deficient, orthogonal, rng
from test_trainer import fit, rows  # noqa: F401 (a fixture)

D_OUT, D_IN, R = 7, 11, 3


def tensors(layer):
    return {field: torch.from_numpy(np.ascontiguousarray(array)) for field, array in layer.items()}


def aggregated(method, A, Bs, weights, number=1):
    uploads = Uploads({n: {"q": tensors({"B": B})} for n, B in enumerate(Bs)}, dict(enumerate(weights)), Ranks())
    server = {"q": tensors({"A": A, "B": Bs[0]})}
    after = method.aggregate(server, uploads, RoundContext(number, 0, dict.fromkeys(range(len(Bs)), 0), 9))["q"]
    return after["A"].numpy(), after["B"].numpy()


def drawn(rank=R, clients=3):
    random = rng(5)
    return random.normal(size=(R, D_IN)), [deficient(D_OUT, R, rank, random) for _ in range(clients)]


def rows_of(A):
    """The projection on the span of A's rows."""
    return np.linalg.pinv(A) @ A


@pytest.mark.parametrize("rank", [0, 1, R])
def test_the_factors_change_and_the_update_does_not(rank):
    A, Bs = drawn(rank, clients=1)
    after, B = aggregated(FedSVD(rank=R), A, Bs, [1.0])
    np.testing.assert_allclose(B @ after, Bs[0] @ A, rtol=0, atol=1e-12)
    np.testing.assert_allclose(after @ after.T, np.eye(R), rtol=0, atol=1e-12)
    singular = np.linalg.svd(Bs[0] @ A, compute_uv=False)[:R]
    np.testing.assert_allclose(B.T @ B, np.diag(singular**2), rtol=0, atol=1e-11)
    assert not np.allclose(after, A, atol=1e-2)


@pytest.mark.parametrize("rank", [0, 1, R])
def test_the_rows_of_a_span_what_they_spanned_at_the_start(rank):
    A, Bs = drawn(rank)
    span = rows_of(A)
    for number in range(1, 6):
        A, _ = aggregated(FedSVD(rank=R), A, [B + number - 1 for B in Bs], [0.2, 0.3, 0.5], number)
        np.testing.assert_allclose(A.T @ A, span, rtol=0, atol=1e-12)


def descend(A, B, X, Y, steps=4, lr=0.05):
    for _ in range(steps):
        B = B - lr * (B @ A @ X - Y) @ (A @ X).T
    return B


def test_with_plain_gradient_descent_it_is_ffa_lora_with_orthonormal_rows():
    random = rng(2)
    data = [(random.normal(size=(D_IN, 5)), random.normal(size=(D_OUT, 5))) for _ in range(3)]
    fixed = A = orthogonal(D_IN, random)[:R]
    B = other = np.zeros((D_OUT, R))
    for number in range(1, 5):
        A, B = aggregated(FedSVD(rank=R), A, [descend(A, B, *own) for own in data], [0.2, 0.3, 0.5], number)
        other = sum(w * descend(fixed, other, *own) for w, own in zip([0.2, 0.3, 0.5], data, strict=True))
        np.testing.assert_allclose(B @ A, other @ fixed, rtol=0, atol=1e-12)
    assert not np.allclose(A, fixed, atol=1e-2)


def test_signs_are_fixed_by_a_rule():
    A, _ = aggregated(FedSVD(rank=R), *drawn(), [0.2, 0.3, 0.5])
    assert (np.take_along_axis(A, np.abs(A).argmax(axis=1, keepdims=True), 1) > 0).all()


def test_in_other_rounds_b_is_averaged_and_a_stays():
    A, Bs = drawn()
    for number in range(1, 7):
        after, B = aggregated(FedSVD(rank=R, every=3), A, Bs, [0.2, 0.3, 0.5], number)
        assert np.array_equal(after, A) == (number not in (3, 6))
        np.testing.assert_allclose(B @ after, sum(w * b for w, b in zip([0.2, 0.3, 0.5], Bs, strict=True)) @ A,
                                   rtol=0, atol=1e-12)  # fmt: skip


@settings(max_examples=40, deadline=None)
@given(every=st.integers(1, 4), cohorts=st.lists(st.sets(st.integers(0, 3), min_size=1), min_size=1, max_size=9))
def test_a_client_is_sent_a_if_and_only_if_it_has_an_older_one(every, cohorts):
    method, server = FedSVD(rank=R, every=every), ServerState(ModelState({"q": {"A": 0, "B": 0}}))
    newest, held, last = 0, dict.fromkeys(range(4), 0), dict.fromkeys(range(4), 0)
    for number, cohort in enumerate(cohorts, start=1):
        ctx = RoundContext(number, 0, {client: last[client] for client in cohort}, 4)
        for client in cohort:
            if number > 1:
                fields = set(method.download(server, method.context(server, client, ctx)).adapter["q"])
                assert fields == ({"A", "B"} if held[client] != newest else {"B"})
            held[client], last[client] = newest, number
        if number % every == 0:
            newest = number


def test_a_client_that_is_not_sent_a_trains_with_what_it_was_sent_before():
    method = FedSVD(rank=R, every=3)
    (A, Bs), seeds = drawn(), np.zeros((R, D_IN))
    server = ServerState(ModelState({"q": tensors({"A": A, "B": Bs[0]})}))
    initial = ModelState({"q": tensors({"A": seeds, "B": Bs[1]})})
    ctx = method.context(server, 0, RoundContext(5, 0, {0: 4}, 1))
    payload, start = begin(method, server, initial, NOTHING, ctx)
    assert set(payload.adapter["q"]) == {"B"}
    assert np.array_equal(start.adapter["q"]["A"], A)
    assert np.array_equal(start.adapter["q"]["B"], Bs[0])


def traffic(trainer):
    table = rows(trainer.folder.path, "communication.csv")
    return {(int(row["round"]), row["direction"]): int(row["parameters"]) for row in table}


def test_what_travels_by_hand(fit):  # noqa: F811
    _, trainer = fit(method=FedSVD(rank=2, every=2), rounds=4)
    layers = load(trainer.folder.checkpoint("last")).state.adapter.values()
    A, B = (5 * sum(layer[field].numel() for layer in layers) for field in ("A", "B"))
    down = {(2, "down"): B, (3, "down"): A + B, (4, "down"): B}
    assert traffic(trainer) == down | {(number, "up"): B for number in range(1, 5)}


def test_its_name_shows_what_is_unusual():
    assert [FedSVD().name, FedSVD(every=5).name] == ["FedSVD", "FedSVD-5"]


def test_settings_that_make_no_sense_are_errors():
    with pytest.raises(ConfigurationError, match=r"method\.every must be at least 1, got 0"):
        FedSVD(every=0)
    with pytest.raises(ConfigurationError, match="not defined for ranks that differ"):
        FedSVD(client_ranks=[1, 2])
