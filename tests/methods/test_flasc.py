import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedgram import FLASC, FederatedTrainer, FedIT, TextClassification, TextClassificationData
from fedgram.distributed.collectives import Ranks
from fedgram.distributed.uploads import Uploads
from fedgram.errors import ConfigurationError
from fedgram.methods import RoundContext
from fedgram.methods.client_memory import NOTHING, begin
from fedgram.methods.sparse import join
from fedgram.runs.checkpoint import load
from fedgram.state import PARTS, ModelState, ServerMemory, ServerState, bytes_of, flatten, parameters_of, unflatten
from helpers import rng
from tables import rows
from test_trainer import fit  # noqa: F401 (a fixture)

N = 2 * (11 + 7) + 2 * (6 + 6)
"""Numbers of A and B of both layers."""
HEAD = 5
CTX = RoundContext(2, 0, {4: 1, 9: 1}, 20)


def drawn(seed=0):
    random = rng(seed)
    sizes = {"q": (11, 7), "v": (6, 6)}
    adapters = {n: {"A": random.normal(size=(2, i)), "B": random.normal(size=(o, 2))} for n, (i, o) in sizes.items()}
    head = {"out": {"weight": random.normal(size=HEAD)}}
    return ModelState(adapters, head).map(torch.from_numpy)


def server_of(method, seed=0):
    state = drawn(seed)
    return ServerState(state, method.server_start(state, 20))


def largest(vector, density):
    """The vector with the ⌊n d⌋ numbers of largest magnitude, by NumPy."""
    values = vector.numpy()
    kept = np.argsort(-np.abs(values), kind="stable")[: math.floor(len(values) * density)]
    masked = np.zeros_like(values)
    masked[kept] = values[kept]
    return masked


def both(state):
    return ModelState(state.adapter, state.head)


def adapters(state):
    return ModelState(state.adapter)


def begun(method, server, client=4, ctx=CTX):
    """What a client is sent, and what it starts with; the seed had given it other numbers."""
    return begin(method, server, both(drawn(1)), NOTHING, method.context(server, client, ctx))


def trained(start, seed):
    changes = flatten(drawn(seed))
    return unflatten({key: tensor + changes[key] for key, tensor in flatten(start).items()})


@pytest.mark.parametrize("mask_head", [False, True])
def test_a_client_starts_with_the_largest_of_all_layers_together(mask_head):
    method = FLASC(density_down=0.3, mask_head=mask_head)
    server, seen = server_of(method), both if mask_head else adapters
    payload, start = begun(method, server)
    np.testing.assert_array_equal(join(seen(start)).numpy(), largest(join(seen(server)), 0.3))
    shares = {float((tensor != 0).double().mean()) for tensor in flatten(adapters(start)).values()}
    assert len(shares) > 1  # of each tensor another share
    if not mask_head:
        assert torch.equal(start.head["out"]["weight"], server.head["out"]["weight"])
        assert parameters_of(payload.head) == HEAD


@pytest.mark.parametrize("mask_head", [False, True])
@pytest.mark.parametrize("density", [0.02, 0.1, 0.5, 1.0])
def test_as_many_numbers_are_sent_as_the_densities_say_with_their_places(density, mask_head):
    method = FLASC(density_down=density, density_up=density, mask_head=mask_head)
    server, size = server_of(method), N + HEAD * mask_head
    down, start = begun(method, server)
    up = method.upload(start, trained(start, 2), method.context(server, 4, CTX))
    count = max(1, math.floor(size * density))
    places = 0 if density == 1 else min(4 * count, math.ceil(size / 8))
    for payload in (down, up):
        assert parameters_of(payload.parts["adapter"]) == count
        assert bytes_of(payload.parts["adapter"]) == 8 * count + places  # in float64
        assert parameters_of(payload.head) == HEAD * (not mask_head)


@pytest.mark.parametrize("mask_head", [False, True])
def test_the_change_from_the_masked_start_is_added_to_the_weights_without_a_mask(mask_head):
    method = FLASC(density_down=0.3, density_up=0.4, mask_head=mask_head)
    server, seen = server_of(method), both if mask_head else adapters
    weights, changes, received, heads = {4: 0.25, 9: 0.75}, {}, {}, {}
    for client in weights:
        start, own = begun(method, server, client)[1], method.context(server, client, CTX)
        ended = trained(start, client)
        changes[client] = largest(join(seen(ended)) - join(seen(start)), 0.4)
        received[client] = method.receive(server, method.upload(start, ended, own), own)
        heads[client] = ended.head["out"]["weight"]
    uploads = [Uploads({c: got.parts[part] for c, got in received.items()}, weights, Ranks()) for part in PARTS]
    after = method.next_state(server, *uploads, CTX)
    P = join(seen(server)).numpy()
    expected = P + sum(w * changes[c] for c, w in weights.items())
    np.testing.assert_allclose(join(seen(after)).numpy(), expected, atol=1e-14)
    started_at_zero = (largest(join(seen(server)), 0.3) == 0) & (changes[4] != 0)
    assert started_at_zero.any()  # where the trap is: the server goes on from its own weight there
    if not mask_head:
        mean = sum(w * heads[c] for c, w in weights.items())
        torch.testing.assert_close(after.head["out"]["weight"], mean, rtol=0, atol=1e-14)


@settings(deadline=None, max_examples=30)
@given(st.floats(0.05, 1.0), st.floats(0.05, 1.0), st.booleans(), st.integers(0, 9))
def test_what_is_left_out_is_nothing_but_small(down, up, mask_head, seed):
    method = FLASC(density_down=down, density_up=up, mask_head=mask_head)
    server = server_of(method, seed)
    start, own = begun(method, server)[1], method.context(server, 4, CTX)
    P, M = (join(method._masked(state)) for state in (server, start))
    assert P[M == 0].abs().max() <= M[M != 0].abs().min() if (M == 0).any() else torch.equal(P, M)
    payload = method.upload(start, trained(start, 3), own)
    moved = join(method._masked(method.receive(server, payload, own))) - P
    assert int((moved != 0).sum()) == max(1, int(len(P) * up))


def test_in_the_first_round_clients_start_with_a_part_of_a_that_the_seed_gives_them():
    method, server = FLASC(density_down=0.25), server_of(FLASC())
    ctx = RoundContext(1, 0, {4: 0, 9: 0}, 20)
    for layer in server.adapter.values():
        layer["B"].zero_()
    payload, start = begin(method, server, both(server), NOTHING, method.context(server, 4, ctx))
    assert payload == NOTHING
    np.testing.assert_array_equal(join(adapters(start)).numpy(), largest(join(adapters(server)), 0.25))
    assert not any(layer["B"].any() for layer in start.adapter.values())
    assert all(layer["A"].any() for layer in start.adapter.values())


def test_the_density_down_decays_from_round_to_round_and_that_of_what_is_judged_with_it():
    method, state = FLASC(density_down=0.8, decay=0.5), drawn()
    counts = []
    for number in (1, 2, 3):
        server = ServerState(state, ServerMemory(globals={"round": torch.tensor(number - 1)}))
        own = method.context(server, 4, RoundContext(number, 0, {4: 0}, 20))
        initial = both(state if number == 1 else drawn(1))
        payload, start = begin(method, server, initial, NOTHING, own)
        counts.append(int((join(adapters(start)) != 0).sum()))
        assert parameters_of(payload.parts["adapter"]) == (counts[-1] if number > 1 else 0)
        model = method.model(server)
        assert all(torch.equal(t, flatten(start)[key]) for key, t in flatten(adapters(model)).items())
        assert torch.equal(model.head["out"]["weight"], state.head["out"]["weight"])
    assert counts == [int(N * 0.8), int(N * 0.4), int(N * 0.2)]


def test_the_whole_model_may_be_judged():
    method, server = FLASC(evaluate_masked=False), server_of(FLASC())
    assert all(torch.equal(t, flatten(both(server))[key]) for key, t in flatten(method.model(server)).items())
    masked = FLASC().model(server)
    assert not torch.equal(join(adapters(masked)), join(adapters(server)))


def test_what_is_validated_before_training_is_what_round_0_judges(fit, tiny_backbone, tiny_data, tmp_path):  # noqa: F811
    method = FLASC(rank=2, mask_head=True)
    summary, _ = fit(method=method, rounds=1)
    trainer = FederatedTrainer(accelerator="cpu", progress_bar=False, clients=5, loggers=False)
    data = TextClassificationData(str(tiny_data), batch_size=3, cache_dir=str(tmp_path / "cache"))
    found = trainer.validate(TextClassification(tiny_backbone), data, method, "none")
    assert found == pytest.approx(summary["initial"])


def test_with_all_numbers_it_is_plain_averaging(fit):  # noqa: F811
    keys = {"precision": "64-true", "participation": 3, "client_weights": "samples"}
    whole = fit(method=FLASC(rank=2, density_down=1.0, density_up=1.0), **keys)[1]
    plain = fit(method=FedIT(rank=2), name="plain", **keys)[1]
    one, other = (load(trainer.folder.checkpoint("last")).state for trainer in (whole, plain))
    for key, tensor in flatten(both(one)).items():
        torch.testing.assert_close(tensor, flatten(both(other))[key], rtol=0, atol=1e-9)
    tables = [rows(trainer.folder.path, "communication.csv") for trainer in (whole, plain)]
    assert tables[0] == tables[1]


def test_the_ledger_counts_values_and_bitmap(fit):  # noqa: F811
    """Four layers of 2 x 16 and 16 x 2: 256 numbers, of which 64 go with a bitmap of 32 bytes."""
    _, trainer = fit(method=FLASC(rank=2, head="frozen"), rounds=2)
    found = [(int(row["parameters"]), int(row["bytes"])) for row in rows(trainer.folder.path, "communication.csv")]
    assert found == [(5 * 64, 5 * (4 * 64 + 32))] * 3  # in round 1 up alone


@pytest.mark.parametrize("setting", ["density_down", "density_up", "decay"])
@pytest.mark.parametrize("share", [0.0, 1.5, math.nan])
def test_shares_are_shares(setting, share):
    with pytest.raises(ConfigurationError, match=rf"method\.{setting} must be a share in \(0, 1\], got {share}"):
        FLASC(**{setting: share})


def test_a_head_that_does_not_travel_is_not_masked():
    for head in ("local", "frozen"):
        with pytest.raises(ConfigurationError, match=rf"method\.mask_head .* got method\.head: {head}"):
            FLASC(mask_head=True, head=head)
    server = server_of(FLASC(head="local"))
    assert begun(FLASC(head="local"), server)[0].head == {}


def test_names_tell_variants_apart():
    assert FLASC(density_up=0.1).name == "FLASC"
    assert FLASC(mask_head=True, server_optimizer="adam").name == "FLASC-head-adam"
