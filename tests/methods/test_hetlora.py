import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fedgram import AdamW, FedIT, HetLoRA
from fedgram.distributed.collectives import Ranks
from fedgram.distributed.uploads import Uploads
from fedgram.engine.block import train_block
from fedgram.errors import ConfigurationError
from fedgram.methods import RoundContext
from fedgram.methods.client_memory import NOTHING, begin, without_padding
from fedgram.runs.checkpoint import load
from fedgram.seeding import torch_generator
from fedgram.state import ModelState, ServerMemory, ServerState, bytes_of, parameters_of
from helpers import rng, unequal_weights
from test_block import make_network
from test_trainer import fit, rows  # noqa: F401 (a fixture)

SIZES = {"q": (11, 7), "v": (6, 9)}
CLIENTS = 5


def make_server(rank=8, **settings):
    """A method and its server's state: two layers whose B is not zero."""
    method, random = HetLoRA(rank=rank, **settings), rng(0)
    with torch.random.fork_rng(devices=[]):
        adapters = {n: method.adapter(nn.Linear(*size), torch_generator(0, n)) for n, size in SIZES.items()}
    layers = {
        name: {
            f: torch.from_numpy(random.normal(size=t.shape)) if f in ("A", "B") else t.double()
            for f, t in a.initial().items()
        }
        for name, a in adapters.items()
    }
    model = ModelState(layers)
    return method, ServerState(model, method.server_start(model, CLIENTS))


def round_of(number, cohort=range(CLIENTS)):
    return RoundContext(number, 0, dict.fromkeys(cohort, number - 1), CLIENTS)


def begun(method, server, client, ctx):
    """What a client is sent, and what it starts with, in its own shapes."""
    return begin(method, server, method.model(server), NOTHING, method.context(server, client, ctx))


def ended(start, factor):
    """What a client ends with that has changed A by a factor."""
    layers = {n: {**layer, "A": factor * layer["A"]} for n, layer in start.adapter.items()}
    return ModelState(layers)


def run_round(method, server, number, factors):
    """Let clients change A by a factor each; return their payloads and the server's next state."""
    ctx, sent = round_of(number, factors), {}
    contexts = {client: method.context(server, client, ctx) for client in factors}
    for client, factor in factors.items():
        start = begun(method, server, client, ctx)[1]
        sent[client] = method.upload(start, ended(start, factor), contexts[client])
    read = {c: method.receive(server, payload, contexts[c]).parts["adapter"] for c, payload in sent.items()}
    weights = dict.fromkeys(factors, 1 / len(factors))
    heads = Uploads({c: {} for c in factors}, weights, Ranks())
    return sent, method.next_state(server, Uploads(read, weights, Ranks()), heads, ctx)


def ranks_of(method, server):
    return [method.rank_of(server, c, round_of(9)) for c in range(CLIENTS)]


def test_who_has_a_smaller_tail_after_training_is_left_with_fewer_ranks_for_good():
    method, server = make_server(gamma=0.75)
    sent, server = run_round(method, server, 1, {0: 0.9, 1: 1.1, 3: 0.5})
    assert [sent[c].adapter["q"]["A"].shape[0] for c in (0, 1, 3)] == [6, 8, 6]
    assert [sent[c].adapter["v"]["B"].shape for c in (0, 1, 3)] == [(9, 6), (9, 8), (9, 6)]
    assert [int(sent[c].whole["rank"]) for c in (0, 1, 3)] == [6, 8, 6]
    assert ranks_of(method, server) == [6, 8, 8, 6, 8]
    payload, start = begun(method, server, 0, round_of(2))
    assert payload.adapter["q"]["A"].shape == start.adapter["q"]["A"].shape == (6, 11)
    assert start.adapter["q"]["tail"].tolist() == [0, 0, 0, 0, 1, 1]  # ⌊0.75 · 6⌋ = 4
    padded = method.pad(start, server, round_of(2)).adapter["q"]
    assert padded["A"].shape == (8, 11)
    assert not padded["A"][6:].any()
    assert padded["tail"].tolist() == [0, 0, 0, 0, 1, 1, 0, 0]
    assert padded["g"].tolist() == [1, 1, 1, 1, 1, 1, 0, 0]
    _, server = run_round(method, server, 2, {0: 0.9, 1: 1.1})
    assert ranks_of(method, server) == [4, 8, 8, 6, 8]


def test_a_rank_is_one_number_more_to_send_and_no_parameter():
    method, server = make_server(gamma=0.75)
    sent, _ = run_round(method, server, 1, {0: 0.9})
    numbers = 6 * (11 + 7) + 6 * (6 + 9)
    assert parameters_of(sent[0].parts["adapter"]) == numbers
    assert bytes_of(sent[0].parts["adapter"]) == 8 * numbers + 8


def test_where_there_was_no_tail_it_can_not_become_smaller():
    method, server = make_server(gamma=0.5)
    for layer in server.adapter.values():
        layer["B"].zero_()  # as at the start
    _, after = run_round(method, server, 1, {0: 0.1, 1: 2.0})
    assert ranks_of(method, after) == [8] * CLIENTS


def test_tails_are_judged_by_their_sum_over_layers():
    """One layer's becomes smaller, the other's so much larger that nothing is pruned."""
    method, server = make_server(gamma=0.5)
    ctx = round_of(1, [0])
    start = begun(method, server, 0, ctx)[1]
    for factor, left in ((100.0, 8), (1.0, 4)):
        end = ended(start, 0.5)
        end.adapter["v"]["A"] = factor * start.adapter["v"]["A"]
        sent = method.upload(start, end, method.context(server, 0, ctx))
        assert int(sent.whole["rank"]) == left


@given(st.integers(1, 60), st.floats(0.01, 1), st.integers(1, 60))
def test_no_rank_is_pruned_below_the_least_or_grows(rank, gamma, least):
    method = HetLoRA(rank=60, gamma=gamma, min_rank=least)
    pruned = method._pruned(rank)
    assert min(rank, least) <= pruned <= rank
    assert pruned >= int(gamma * rank)


def test_the_paper_s_gamma_prunes_one_rank_at_a_time():
    method = HetLoRA(rank=8)
    assert [method._pruned(rank) for rank in (8, 2, 1)] == [7, 1, 1]
    assert HetLoRA(rank=60, gamma=0.29)._pruned(50) == 14
    assert HetLoRA(rank=100, gamma=0.29)._pruned(100) == 29  # and not 28, as floats have it


def test_ranks_only_shrink_in_a_run_and_none_below_the_least(fit):  # noqa: F811
    """With strong penalties clients prune, some of them more than once."""
    method, ranks = HetLoRA(rank=4, gamma=0.6, lam=5.0, min_rank=2, client_ranks=[4, 4, 3, 2, 1]), []
    for rounds in (1, 2, 3, 5):
        keys = {"ckpt_path": "last"} if ranks else {}
        _, trainer = fit(method, rounds=rounds, name="run", **keys)
        pruned = load(trainer.folder.checkpoint("last")).state.memory.globals["pruned"]
        assert pruned.dtype == torch.int64
        ranks.append((np.array([4, 4, 3, 2, 1]) - pruned.numpy()).tolist())
    assert (np.diff(ranks, axis=0) <= 0).all()
    assert ranks[0] == [4, 4, 3, 2, 1]  # B was zero
    assert ranks[-1][:3] == [2, 2, 2]
    assert ranks[-1][3:] == [2, 1]
    table = [r for r in rows(trainer.folder.path, "communication.csv") if r["part"] == "adapter"]
    sent = {d: [int(r["parameters"]) for r in table if r["direction"] == d] for d in ("up", "down")}
    assert sent["down"][0] == 4 * 32 * (4 + 4 + 3 + 2 + 1)  # four layers of 16 x 16
    assert sent["down"] == sent["up"][:-1]  # what a client is left with is what it is sent next
    assert sent["up"][-1] == 4 * 32 * (2 + 2 + 2 + 2 + 1)


def block_of(method, server):
    """The adapters of all clients with a leading client axis, with their ranks."""
    ctx = round_of(2)
    starts = [method.pad(begun(method, server, c, ctx)[1], server, ctx).adapter for c in range(CLIENTS)]
    return {n: {f: torch.stack([start[n][f] for start in starts]) for f in layer} for n, layer in starts[0].items()}


def test_the_penalty_is_of_each_client_s_own_tail():
    ranks = [8, 5, 2, 1, 7]
    method, server = make_server(gamma=0.6, lam=0.3, client_ranks=ranks)
    adapters = block_of(method, server)
    expected = []
    for client, rank in enumerate(ranks):
        tail = slice(max(1, int(0.6 * rank)), rank)
        own = {n: {f: t[client].numpy() for f, t in layer.items()} for n, layer in adapters.items()}
        norms = [np.linalg.norm(own[n]["B"][:, tail]) * np.linalg.norm(own[n]["A"][tail]) for n in SIZES]
        expected.append(0.3 * sum(norms))
    np.testing.assert_allclose(method.penalty(adapters).numpy(), expected, rtol=1e-12)
    assert expected[3] == 0  # the tail of a rank of 1 is empty
    assert min(expected[:3]) > 0


def test_the_penalty_has_a_gradient_where_tails_are_zero():
    method, server = make_server(gamma=0.5)
    server.adapter["q"]["B"].zero_()
    adapters = block_of(method, server)
    leaves = [layer[f].requires_grad_() for layer in adapters.values() for f in ("A", "B")]
    gradients = torch.autograd.grad(method.penalty(adapters).sum(), leaves)
    assert all(torch.isfinite(gradient).all() for gradient in gradients)


@pytest.mark.parametrize("settings", [{"gamma": 1.0}, {"gamma": 0.5, "lam": 0.0}])
def test_without_pruning_or_weight_there_is_no_penalty(settings):
    method, server = make_server(**settings)
    assert method.penalty(block_of(method, server)) is None


def test_without_pruning_nothing_is_remembered_told_or_masked():
    method, server = make_server(gamma=1.0)
    sent, after = run_round(method, server, 1, {0: 0.1, 1: 1.0})
    assert after.memory == ServerMemory()
    assert set(sent[0].parts["adapter"]) == set(SIZES)
    assert {field.name for field in method.fields} == {"A", "B"}


@pytest.mark.parametrize("scope", ["layer", "client"])
def test_shares_are_norms_of_products_of_a_layer_or_of_all(scope):
    method, server = make_server(gamma=1.0, scope=scope)
    random = rng(7)
    weights = unequal_weights(CLIENTS, random)
    sent = {
        c: {n: {f: t * random.uniform(0.2, 3) for f, t in layer.items()} for n, layer in server.adapter.items()}
        for c in range(CLIENTS)
    }
    after = method.aggregate(server.adapter, Uploads(sent, dict(enumerate(weights.tolist())), Ranks()), round_of(2))
    norms = {n: np.array([np.linalg.norm(sent[c][n]["B"] @ sent[c][n]["A"]) for c in sent]) for n in SIZES}
    for name in SIZES:
        own = norms[name] if scope == "layer" else np.sqrt(sum(n**2 for n in norms.values()))
        shares = weights * own / (weights * own).sum()
        for field in ("A", "B"):
            expected = sum(p * sent[c][name][field].numpy() for c, p in enumerate(shares))
            np.testing.assert_allclose(after[name][field].numpy(), expected, rtol=1e-11)


@pytest.mark.parametrize("scope", ["layer", "client"])
def test_of_equal_ranks_and_norms_it_is_federated_averaging(scope):
    method, server = make_server(gamma=1.0, scope=scope)
    random, layers = rng(8), server.adapter
    sent = {
        c: {n: {f: t * random.choice([-1, 1]) for f, t in layer.items()} for n, layer in layers.items()}
        for c in range(CLIENTS)
    }
    uploads = Uploads(sent, dict(enumerate(unequal_weights(CLIENTS, random).tolist())), Ranks())
    ours, plain = (m.aggregate(server.adapter, uploads, round_of(2)) for m in (method, FedIT(rank=8)))
    for name in SIZES:
        for field in ("A", "B"):
            torch.testing.assert_close(ours[name][field], plain[name][field], rtol=0, atol=1e-12)


def test_moments_kept_from_ranks_that_are_gone_have_no_effect(tiny_backbone, tiny_data):
    """A client that keeps its optimizer's memory and has pruned steps on where it must not compute."""
    method = HetLoRA(rank=4, gamma=0.5)
    network, data = make_network(tiny_backbone, tiny_data, method)
    state = network.initial_state()
    server = ServerState(state, ServerMemory(globals={"pruned": torch.tensor([2])}))
    ctx = RoundContext(3, 0, {0: 2}, 1)
    own = begun(method, server, 0, ctx)[1]
    start = method.pad(own, server, ctx)
    table, optimizer = data.split("train"), AdamW(lr=0.01, keep_state=True)
    batches = [np.arange(3 * i, 3 * i + 3) for i in range(4)]
    whole = train_block(network, optimizer, [start], table, [batches], trained=method.trained_fields)
    kept = {key: torch.ones_like(t) if key == "exp_avg" else t for key, t in whole.memories[0].items()}
    (end,) = train_block(
        network, optimizer, [start], table, [batches], trained=method.trained_fields, memories=[kept]
    ).states
    for name, layer in end.adapter.items():
        assert layer["A"][2:].any()
        adapter = network.layers[name]
        adapter.load({f: t.unsqueeze(0) for f, t in layer.items()})
        down, up = adapter.factors()
        torch.testing.assert_close(up[0].mT @ down[0], layer["B"][:, :2] @ layer["A"][:2], rtol=0, atol=1e-12)
    sent = method.upload(own, without_padding(end, own), method.context(server, 0, ctx)).adapter
    assert all(sent[name]["A"].shape[0] <= 2 for name in end.adapter)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"gamma": 0.0}, r"method\.gamma must be more than 0 and at most 1, got 0\.0"),
        ({"gamma": 1.5}, r"method\.gamma must be more than 0 and at most 1, got 1\.5"),
        ({"lam": -1.0}, r"method\.lam must be a number >= 0, got -1\.0"),
        ({"min_rank": 0}, r"method\.min_rank must lie between 1 and method\.rank = 4, got 0"),
        ({"min_rank": 5}, r"method\.min_rank must lie between 1 and method\.rank = 4, got 5"),
        ({"scope": "model"}, r"method\.scope .*layer.*client.*model"),
    ],
)
def test_settings_out_of_range_are_errors(settings, message):
    with pytest.raises(ConfigurationError, match=message):
        HetLoRA(rank=4, **settings)
