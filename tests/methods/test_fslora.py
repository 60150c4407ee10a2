import itertools

import numpy as np
import pytest
import torch
from torch.nn import functional

from fedgram import SGD, FedIT, FSLoRA
from fedgram.engine.block import train_block
from fedgram.errors import ConfigurationError
from fedgram.methods import RoundContext
from fedgram.methods.client_memory import NOTHING, begin
from fedgram.runs.checkpoint import load
from fedgram.state import ModelState, Payload, ServerState, flatten
from helpers import rng
from tables import rows
from test_block import make_network
from test_trainer import fit  # noqa: F401 (a fixture)

R, D_IN, D_OUT = 6, 11, 7
CTX = RoundContext(2, 0, dict.fromkeys(range(20), 1), 20)


def drawn(seed=0, dtype=torch.float64):
    random = rng(seed)
    shapes = {"A": (R, D_IN), "B": (D_OUT, R)}
    layers = {n: {f: torch.from_numpy(random.normal(size=s)).to(dtype) for f, s in shapes.items()} for n in "qv"}
    return ServerState(ModelState(layers))


def begun(method, server, client, ctx=CTX, kept=NOTHING):
    """What a client is sent, and what it starts with, in its own shapes."""
    return begin(method, server, method.model(server), kept, method.context(server, client, ctx))


def test_a_and_b_of_a_layer_have_the_same_indices_and_layers_rounds_and_clients_their_own():
    method, server = FSLoRA(rank=R, sketch=0.5), drawn()
    seen = []
    for client, number, seed in itertools.product((0, 1), (1, 2, 3), (0, 1)):
        ctx = RoundContext(number, seed, dict.fromkeys(range(20), number - 1), 20)
        payload, start = begun(method, server, client, ctx)
        assert list(payload.adapter) == ([] if number == 1 else ["q", "v"])
        for name, pair in start.adapter.items():
            chosen = method.indices(name, method.context(server, client, ctx))
            for held in (pair, payload.adapter.get(name, pair)):
                assert torch.equal(held["A"], server.adapter[name]["A"][chosen])
                assert torch.equal(held["B"], server.adapter[name]["B"][:, chosen])
            seen.append(tuple(chosen))
    assert all(len(set(chosen)) == 3 and list(chosen) == sorted(chosen) for chosen in seen)
    assert len(set(seen)) > 8


def test_a_client_starts_from_the_head_that_it_holds_and_from_nothing_of_the_server():
    method = FSLoRA(rank=R, sketch=0.5, head="local")
    server = ServerState(ModelState(drawn().adapter, {"classifier": {"weight": torch.zeros(2, 3)}}))
    start = begun(method, server, 1, kept=ModelState(head={"classifier": {"weight": torch.ones(2, 3)}}))[1]
    assert torch.equal(start.head["classifier"]["weight"], torch.ones(2, 3))


def test_the_sketch_is_right_in_the_mean():
    """Over all draws, the mean of g B[:, I] A[I, :] is B A, which without g it would not be."""
    method, server = FSLoRA(rank=R, sketch=1 / 3), drawn()
    count, B, A = 3000, *(server.adapter["q"][f] for f in "BA")
    total = torch.zeros(D_OUT, D_IN, dtype=torch.float64)
    for number in range(count):
        ctx = RoundContext(number, 0, dict.fromkeys(range(20), 1), 20)
        pair = begun(method, server, 3, ctx)[1].adapter["q"]
        total += pair["g"] * pair["B"] @ pair["A"]
    assert float((total / count - B @ A).norm() / (B @ A).norm()) < 0.1
    assert float((total / 3 / count - B @ A).norm() / (B @ A).norm()) > 0.5


@pytest.mark.parametrize("kappa", [1, 2, 5, R])
def test_training_the_small_pair_is_training_the_sketched_one(kappa):
    """Under gradient descent, of W + B S A with S in full."""
    method, server, random = FSLoRA(rank=R, client_ranks=[kappa] * 20), drawn(), rng(1)
    x, y = (torch.from_numpy(random.normal(size=(30, d))) for d in (D_IN, D_OUT))
    client = method.context(server, 3, CTX)
    pair, chosen = begun(method, server, 3)[1].adapter["q"], method.indices("q", client)
    S = torch.zeros(R, R, dtype=torch.float64)
    S[chosen, chosen] = R / kappa
    small = [pair[f].clone().requires_grad_() for f in "BA"]
    full = [server.adapter["q"][f].clone().requires_grad_() for f in "BA"]
    for _ in range(5):
        for params, middle in ((small, pair["g"] * torch.eye(kappa, dtype=torch.float64)), (full, S)):
            loss = functional.mse_loss(x @ (params[0] @ middle @ params[1]).mT, y)
            for p, gradient in zip(params, torch.autograd.grad(loss, params), strict=True):
                p.data -= 0.01 * gradient
    ended = {"q": {"B": small[0].detach(), "A": small[1].detach()}}
    received = method.receive(server, Payload(ended), client).adapter["q"]
    others = np.setdiff1d(np.arange(R), chosen)
    for field, p in zip("BA", full, strict=True):
        torch.testing.assert_close(received[field], p.detach(), rtol=0, atol=1e-13)
    assert torch.equal(received["A"][others], server.adapter["q"]["A"][others])
    assert torch.equal(received["B"][:, others], server.adapter["q"]["B"][:, others])


def test_clients_of_different_ranks_train_in_one_block_as_alone(tiny_backbone, tiny_data):
    ranks = [4, 1, 2, 3, 4]
    method = FSLoRA(rank=4, client_ranks=ranks)
    network, data = make_network(tiny_backbone, tiny_data, method)
    state, random = network.initial_state(), rng(0)
    for layer in state.adapter.values():
        layer["B"] += torch.from_numpy(random.normal(size=layer["B"].shape))
    server, ctx = ServerState(state), RoundContext(2, 0, dict.fromkeys(range(5), 1), 5)
    own = [begun(method, server, client, ctx)[1] for client in range(5)]
    assert [{len(layer["A"]) for layer in start.adapter.values()} for start in own] == [{rank} for rank in ranks]
    starts = [method.pad(start, server, ctx) for start in own]
    assert {tuple(t.shape for t in flatten(own).values()) for own in starts} == {
        tuple(t.shape for t in flatten(starts[0]).values())
    }
    batches = [[random.choice(60, 3, replace=False) for _ in range(3)] for _ in range(5)]
    table, trained = data.split("train"), method.trained_fields
    together = train_block(network, SGD(0.1), starts, table, batches, trained=trained).states
    for client, kappa in enumerate(ranks):
        (alone,) = train_block(network, SGD(0.1), [starts[client]], table, [batches[client]], trained=trained).states
        for name, pair in together[client].adapter.items():
            torch.testing.assert_close(pair["A"], alone.adapter[name]["A"], rtol=0, atol=1e-12)
            assert not pair["A"][kappa:].any()
            assert not pair["B"][:, kappa:].any()
            assert not torch.equal(pair["A"][:kappa], starts[client].adapter[name]["A"][:kappa])
            assert float(pair["g"]) == 4 / kappa


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_columns_that_nobody_trained_stay_bit_by_bit(fit, dtype):  # noqa: F811
    """One client a round of four: its small pair is all that moves."""
    keys = {"participation": 1 / 5, "precision": "32-true" if dtype == torch.float32 else "64-true"}
    method = FSLoRA(rank=4, sketch=0.25)
    states = [load(fit(method=method, rounds=n, name=str(n), **keys)[1].folder.checkpoint("last")).state.adapter
              for n in (3, 4)]  # fmt: skip
    for name, before in states[0].items():
        moved = [(before["A"] != states[1][name]["A"]).any(dim=1), (before["B"] != states[1][name]["B"]).any(dim=0)]
        assert int(moved[1].sum()) == 1
        assert not (moved[0] & ~moved[1]).any()


def test_only_the_small_pairs_travel(fit):  # noqa: F811
    ranks = [1, 4, 2, 2, 3]
    _, trainer = fit(method=FSLoRA(rank=4, client_ranks=ranks, head="frozen"), rounds=2)
    found = [(int(row["parameters"]), int(row["bytes"])) for row in rows(trainer.folder.path, "communication.csv")]
    numbers = 4 * sum(ranks) * (16 + 16)
    assert found == [(numbers, 4 * numbers)] * 3  # in round 1 up alone


def test_the_whole_rank_is_plain_averaging(fit):  # noqa: F811
    whole = fit(method=FSLoRA(rank=2, sketch=1.0), precision="64-true")[1]
    plain = fit(method=FedIT(rank=2), precision="64-true", name="plain")[1]
    one, other = (flatten(load(trainer.folder.checkpoint("last")).state) for trainer in (whole, plain))
    for key, tensor in one.items():
        torch.testing.assert_close(tensor, other[key], rtol=0, atol=1e-9)


@pytest.mark.parametrize("sketch", [0.0, -0.5, 1.5])
def test_the_sketch_is_a_share(sketch):
    with pytest.raises(ConfigurationError, match=r"method\.sketch must be a share of the rank in \(0, 1\], got"):
        FSLoRA(sketch=sketch)


def test_at_least_one_column_is_trained_and_names_tell_variants_apart():
    assert FSLoRA(rank=4, sketch=0.01).rank_of(drawn(), 0, CTX) == 1
    assert FSLoRA(rank=4, sketch=0.75).rank_of(drawn(), 0, CTX) == 3
    assert FSLoRA().name == "FSLoRA"
    assert FSLoRA(server_optimizer="adam").name == "FSLoRA-adam"
