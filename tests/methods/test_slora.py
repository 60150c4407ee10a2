from dataclasses import replace

import numpy as np
import pytest
import torch

from fedgram import AdamW, SLoRA
from fedgram.adapters import draw_positions
from fedgram.distributed.collectives import Ranks
from fedgram.distributed.uploads import Uploads
from fedgram.engine.block import train_block
from fedgram.errors import ConfigurationError
from fedgram.methods import RoundContext
from fedgram.methods.base import generator_of
from fedgram.methods.client_memory import NOTHING, begin
from fedgram.runs.checkpoint import load
from fedgram.state import ModelState, ServerState, flatten, merge
from helpers import rng
from tables import rows
from test_block import make_network
from test_trainer import fit  # noqa: F401 (a fixture)
from thread_ranks import on_ranks

D_IN, D_OUT, R = 11, 7, 2
CLIENTS = [2, 5, 9]


def context_of(number):
    return RoundContext(number, 0, dict.fromkeys(CLIENTS, number - 1), 20)


def drawn(method, seed=0, size=1.0):
    """A server in stage 1, and what three clients sent."""
    random, nnz = rng(seed), max(1, round(method.density * D_IN * D_OUT))
    layer = {"delta": random.normal(size=nnz), "A": random.normal(size=(R, D_IN)), "B": np.zeros((D_OUT, R))}
    server = {"q": {f: torch.from_numpy(t) for f, t in layer.items()}}
    sent = {c: {"q": {"delta": torch.from_numpy(size * random.normal(size=nnz))}} for c in CLIENTS}
    return server, sent, {2: 0.2, 5: 0.5, 9: 0.3}


def dense(method, delta):
    """M ⊙ Δ by NumPy."""
    whole = np.zeros(D_IN * D_OUT)
    whole[draw_positions(D_IN * D_OUT, method.density, generator_of("q", 0)).numpy()] = delta
    return whole.reshape(D_OUT, D_IN)


@pytest.mark.parametrize("density", [0.3, 1.0])
def test_at_the_switch_s_b_a_is_the_best_rank_r_part_of_the_mean_change(density):
    method = SLoRA(rank=R, alpha=6.0, sparse_rounds=3, density=density)
    server, sent, weights = drawn(method)
    after = method.aggregate(server, Uploads(sent, weights, Ranks()), context_of(3))["q"]
    change = dense(method, sum(w * sent[c]["q"]["delta"].numpy() for c, w in weights.items()))
    U, values, Vh = np.linalg.svd(change)
    best = (U[:, :R] * values[:R]) @ Vh[:R]
    np.testing.assert_allclose(3.0 * after["B"].numpy() @ after["A"].numpy(), best, atol=1e-12)
    for factor in (after["A"].numpy(), after["B"].numpy().T):  # each has its half
        np.testing.assert_allclose(factor @ factor.T, np.diag(values[:R] / 3.0), atol=1e-12)
    assert not after["delta"].any()  # the base goes back to W⁰


def test_what_the_switch_captures_is_logged():
    method = SLoRA(rank=R, sparse_rounds=3, density=0.3)
    server, sent, weights = drawn(method)
    uploads = Uploads(sent, weights, Ranks())
    (figures,) = method.diagnose(server, method.aggregate(server, uploads, context_of(3)), uploads).values()
    values = np.linalg.svd(dense(method, sum(w * sent[c]["q"]["delta"].numpy() for c, w in weights.items())))[1]
    assert figures["captured_energy"] == pytest.approx((values[:R] ** 2).sum() / (values**2).sum(), rel=1e-10)
    assert figures["aggregation_error"] == pytest.approx((1 - figures["captured_energy"]) ** 0.5, rel=1e-10)
    assert 0.1 < figures["captured_energy"] < 0.9
    (before,) = method.diagnose(server, method.aggregate(server, uploads, context_of(2)), uploads).values()
    assert before == {"aggregation_error": pytest.approx(0, abs=1e-15)}


def test_a_change_of_lower_rank_leaves_no_saddle():
    """Rows of A that the change does not reach stay random, beside zeros in B."""
    method = SLoRA(rank=R, sparse_rounds=1, density=0.001)  # one entry
    server, sent, weights = drawn(method)
    after = method.aggregate(server, Uploads(sent, weights, Ranks()), context_of(1))["q"]
    assert after["A"].any(dim=1).all()
    assert torch.equal(after["A"][1], server["q"]["A"][1])
    assert after["B"][:, 0].any()
    assert not after["B"][:, 1].any()
    nothing, none, _ = drawn(method, size=0.0)
    after = method.aggregate(nothing, Uploads(none, weights, Ranks()), context_of(1))["q"]
    assert torch.equal(after["A"], nothing["q"]["A"])
    assert not after["B"].any()


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("number", [2, 3, 4])
def test_any_number_of_ranks_gives_the_same_bits_and_figures_in_every_stage(size, number):
    method = SLoRA(rank=R, sparse_rounds=3, density=0.3)
    server, sent, weights = drawn(method)
    if number == 4:
        sent = {c: {"q": {f: server["q"][f] + c for f in "AB"}} for c in CLIENTS}

    def aggregate(ranks, own=CLIENTS):
        uploads = Uploads({c: sent[c] for c in own}, weights, ranks)
        after = method.aggregate(server, uploads, context_of(number))
        return after["q"], method.diagnose(server, after, uploads)

    expected, figures = aggregate(Ranks())
    hands = {2: [[5], [2, 9]], 3: [[9, 2], [5], []]}[size]
    for after, seen in on_ranks(size, lambda ranks: aggregate(ranks, hands[ranks.rank])):
        assert all(torch.equal(after[f], expected[f]) for f in expected)
        assert seen == figures


@pytest.mark.parametrize("number", [1, 3, 4, 9])
def test_the_values_of_one_stage_travel_and_nothing_else(number):
    method = SLoRA(rank=R, sparse_rounds=3, density=0.3)
    model, initial = (ModelState(drawn(method, seed)[0]) for seed in (0, 1))
    server = ServerState(model)
    stage = {"delta"} if number <= 3 else {"A", "B"}
    for last in {0, number - 1}:  # also to a client that comes new
        ctx = method.context(server, 5, RoundContext(number, 0, {5: last}, 20))
        payload, start = begin(method, server, initial, NOTHING, ctx)
        sent = payload.adapter.get("q", {})
        assert set(sent) == (stage if number > 1 else set())
        assert start.adapter["q"].keys() == method.upload(start, start, ctx).adapter["q"].keys() == stage
        assert sent.get("delta", torch.zeros(23)).shape == (23,)  # 0.3 of 77
        assert all(tensor is server.adapter["q"][f] for f, tensor in sent.items())
    (phase,) = method.phases(number)
    assert phase.trained == stage


def test_a_round_changes_what_its_stage_trains_and_the_switch_lora_s_factors():
    """All clients know that the sparse change is zero from then on."""
    method = SLoRA(rank=R, sparse_rounds=3, density=0.3)
    assert [set(method.changes(number)) for number in (1, 2, 3, 4, 9)] == [{"delta"}] * 2 + [{"A", "B"}] * 3
    assert [set(method.redrawn(number)) for number in (2, 3, 4)] == [set(), {"delta"}, set()]
    server, sent, weights = drawn(method)
    after = method.aggregate(server, Uploads(sent, weights, Ranks()), context_of(3))["q"]
    assert torch.equal(method.redraw("q", server["q"], 3, 0)["delta"], after["delta"])


def state(trainer):
    return load(trainer.folder.checkpoint("last")).state.adapter


def test_a_run_switches_once_and_goes_on(fit):  # noqa: F811
    method = SLoRA(rank=R, sparse_rounds=2, density=0.1, head="frozen")
    states = [state(fit(method=method, rounds=n, name=str(n))[1]) for n in (1, 2, 3)]
    _, trainer = fit(method=method, rounds=3)
    for sparse, switched, low_rank in zip(*(own.values() for own in states), strict=True):
        assert sparse["delta"].any()
        assert not sparse["B"].any()
        for after in (switched, low_rank):
            assert not after["delta"].any()
            assert after["B"].any()
        assert not torch.equal(switched["A"], low_rank["A"])
    figures = rows(trainer.folder.path, "diagnostics.csv")
    assert [row["round"] for row in figures if row["captured_energy"]] == ["2"] * 4
    sent = [int(row["parameters"]) for row in rows(trainer.folder.path, "communication.csv")]
    sparse, low_rank = 5 * 4 * round(0.1 * 16 * 16), 5 * 4 * R * (16 + 16)
    assert sent == [sparse] * 3 + [low_rank] * 2  # in round 1 up alone


def test_what_is_trained_is_the_weight_itself_where_the_mask_is(tiny_backbone, tiny_data):
    """Two clients of a block train as each would alone, and what comes of it can be added to W⁰."""
    method = SLoRA(rank=R, sparse_rounds=2, density=0.2)
    network, data = make_network(tiny_backbone, tiny_data, method)
    table, random = data.split("train"), np.random.default_rng(0)
    whole = ServerState(network.initial_state())
    ctx = method.context(whole, 0, RoundContext(1, 0, {0: 0, 1: 0}, 2))
    _, start = begin(method, whole, network.initial_state(), NOTHING, ctx)
    batches = [[random.choice(60, 3, replace=False) for _ in range(3)] for _ in range(2)]
    trained = {"trained": {"delta"}}
    together = train_block(network, AdamW(lr=0.02), [start, start], table, batches, **trained).states
    for client, ended in enumerate(together):
        (alone,) = train_block(network, AdamW(lr=0.02), [start], table, [batches[client]], **trained).states
        for key, tensor in flatten(alone).items():
            torch.testing.assert_close(flatten(ended)[key], tensor, rtol=0, atol=1e-11)
    model = merge(whole.model, together[0])
    network.load_one(model)
    asked = np.arange(6)
    outputs = network.run(table, asked)[0]["logits"]
    with network.merged(model, 10**6), torch.no_grad():
        torch.testing.assert_close(network.run(table, asked)[0]["logits"], outputs, rtol=0, atol=1e-12)
    for name, layer in network.layers.items():
        if layer.part == "adapter":
            delta = together[0].adapter[name]["delta"]
            layer.base.weight.data.view(-1)[layer.positions] += delta
    network.load_one(replace(whole.model, head=together[0].head))
    torch.testing.assert_close(network.run(table, asked)[0]["logits"], outputs, rtol=0, atol=1e-12)


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize(("cut", "keep"), [(1, True), (2, False), (3, True)])
def test_a_resumed_run_ends_with_the_bits_of_one_in_one_go(fit, cut, keep):  # noqa: F811
    """Before the switch, at it and after it."""
    method = SLoRA(rank=R, sparse_rounds=2, density=0.1)
    keys = {"method": method, "optimizer": AdamW(lr=0.02, keep_state=keep), "participation": 3}
    whole, _ = fit(rounds=4, name="whole", **keys)
    fit(rounds=cut, name="parts", **keys)
    parts, _ = fit(rounds=4, name="parts", ckpt_path="last", **keys)
    assert parts["state_hash"] == whole["state_hash"]
    assert parts["final"] == whole["final"]


@pytest.mark.parametrize("packing", [True, False])
def test_block_size_and_packing_are_a_matter_of_speed(fit, packing):  # noqa: F811
    keys = {"precision": "64-true", "rounds": 3, "packing": packing}
    method = SLoRA(rank=R, sparse_rounds=2, density=0.1)
    one, many = (state(fit(method=method, clients_per_block=size, **keys)[1]) for size in (1, 5))
    for name, layer in one.items():
        for field, tensor in layer.items():
            torch.testing.assert_close(many[name][field], tensor, rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sparse_rounds": 0}, "sparse_rounds must be at least 1, got 0"),
        ({"density": 0.0}, r"density must be a share"),
        ({"density": 1.01}, r"density must be a share"),
    ],
)
def test_settings_must_make_sense(settings, message):
    with pytest.raises(ConfigurationError, match=rf"method\.{message}"):
        SLoRA(**settings)
