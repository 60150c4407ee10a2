import numpy as np
import pytest
import torch
from torch import nn

from fedgram import AdamW
from fedgram.distributed.collectives import Ranks
from fedgram.distributed.uploads import Uploads
from fedgram.errors import ConfigurationError
from fedgram.methods import FedIT, FedLEASE, RoundContext
from fedgram.methods.client_memory import begin, without_padding
from fedgram.runs.checkpoint import load
from fedgram.seeding import torch_generator
from fedgram.state import ModelState, ServerState, split, state_hash
from helpers import rng, unequal_weights
from test_trainer import fit, rows  # noqa: F401 (a fixture)

SIZES = {"q": (11, 7), "v": (6, 6)}
N, R = 9, 2


class Simulation:
    """A server and clients of three kinds, without a network: training adds noise around the centre of a kind."""

    def __init__(self, **settings):
        self.method = FedLEASE(rank=R, head="frozen", **settings)
        with torch.random.fork_rng(devices=[]):
            layers = {n: self.method.adapter(nn.Linear(*s), torch_generator(0, n)) for n, s in SIZES.items()}
        start = {n: {f: t.double() for f, t in layer.initial().items()} for n, layer in layers.items()}
        model = ModelState(start)
        self.start, self.random = model, rng(3)
        self.server = ServerState(model, self.method.server_start(model, N))
        self.kinds = np.arange(N) % 3
        centres = [{n: self.random.standard_normal(layer["B"].shape) for n, layer in start.items()} for _ in range(3)]
        self.centres, self.kept, self.last = centres, {}, dict.fromkeys(range(N), 0)
        self.down, self.up, self.answers, self.starts, self.trained = {}, {}, {}, {}, {}

    def train(self, client, layers):
        centre = self.centres[self.kinds[client]]

        def noisy(tensor):
            return tensor + 0.05 * torch.from_numpy(self.random.standard_normal(tensor.shape))

        own = {n: {f: noisy(t) for f, t in layer.items()} for n, layer in layers.items()}
        return {n: {**layer, "B": layer["B"] + torch.from_numpy(centre[n])} for n, layer in own.items()}

    def round(self, number, cohort=range(N)):
        ctx = RoundContext(number, 0, {c: self.last[c] for c in cohort}, N)
        weights = dict(zip(cohort, unequal_weights(len(cohort), rng(number)).tolist(), strict=True))
        received, method = {}, self.method
        for c in cohort:
            kept, client = ModelState(self.kept.get(c, {})), method.context(self.server, c, ctx)
            payload, begun = begin(method, self.server, self.start, kept, client)
            start = method.pad(begun, self.server, ctx)
            (phase,) = method.phases(number)
            own = self.train(c, split(start, phase.trained)[0].adapter)
            ended = ModelState({n: {**start.adapter[n], **layer} for n, layer in own.items()})
            sent = method.upload(begun, without_padding(ended, begun), client)
            self.down[c], self.up[c] = payload.adapter, sent.adapter
            self.starts[c], self.trained[c] = start.adapter, ended.adapter
            received[c] = method.receive(self.server, sent, client)
            self.kept[c] = method.kept(ended).adapter
        uploads = Uploads({c: p.adapter for c, p in received.items()}, weights, Ranks())
        heads = Uploads({c: {} for c in cohort}, weights, Ranks())
        before = self.server
        self.server = method.next_state(self.server, uploads, heads, ctx)
        for c in cohort:
            self.answers[c] = method.answer(self.server, method.context(self.server, c, ctx))
            for n, layer in (self.answers[c] or ModelState()).adapter.items():
                self.kept[c][n] = {**self.kept[c][n], **layer}
            self.last[c] = number
        return before, weights

    @property
    def memory(self):
        return self.server.memory.layers

    @property
    def clusters(self):
        return self.server.memory.globals["cluster"].tolist()


def numbers(layers):
    return sum(t.numel() for layer in layers.values() for t in layer.values())


Q = sum(R * (d_in + d_out) for d_in, d_out in SIZES.values())
D_IN = sum(d_in for d_in, _ in SIZES.values())


def expected_mean(trained, members, weights, kind):
    own = np.array([weights[c] if kind == "weighted" else 1 for c in members])
    return sum(w * trained[c] for w, c in zip(own / own.sum(), members, strict=True))


@pytest.mark.parametrize("mean", ["plain", "weighted"])
def test_experts_and_routers_are_means_over_their_clusters(mean):
    simulation = Simulation(mean=mean)
    _, weights = simulation.round(1)
    assert simulation.clusters == [0, 1, 2] * 3
    for cohort, number in ((range(N), 1), (range(N), 2), ([0, 1, 3, 6], 3)):
        if number > 1:
            before, weights = simulation.round(number, cohort)
        for name in SIZES:
            for j in range(3):
                members = [c for c in cohort if c % 3 == j]
                for field in ("A", "B", "R") if number > 1 else ("A", "B"):
                    found = simulation.memory[name][field][j].numpy()
                    if not members:
                        np.testing.assert_array_equal(found, before.memory.layers[name][field][j].numpy())
                        continue
                    own = {c: simulation.trained[c][name][field].numpy() for c in members}
                    np.testing.assert_allclose(found, expected_mean(own, members, weights, mean), rtol=0, atol=1e-12)


def test_the_server_s_own_model_is_the_mean_of_the_experts_by_their_clients():
    simulation = Simulation(experts=2)
    simulation.round(1)
    clusters = simulation.clusters
    assert sorted(map(clusters.count, (0, 1))) == [3, 6]
    for name in SIZES:
        for field in ("A", "B"):
            expert = simulation.memory[name][field]
            mean = sum(expert[j] for j in clusters) / N
            torch.testing.assert_close(simulation.server.adapter[name][field], mean, rtol=0, atol=1e-12)


def test_nothing_travels_in_the_warm_up_but_the_last_pairs_and_each_client_goes_on_with_its_own():
    simulation = Simulation(warmup_rounds=3)
    for number in (1, 2):
        simulation.round(number)
        assert not any(map(numbers, [*simulation.up.values(), *simulation.down.values()]))
        assert set(simulation.answers.values()) == {None}
        assert simulation.clusters == [-1] * N
        assert torch.equal(simulation.server.adapter["q"]["A"], simulation.start.adapter["q"]["A"])
    kept = {c: layers["q"]["B"] for c, layers in simulation.kept.items()}
    simulation.round(3)
    assert all(torch.equal(simulation.starts[c]["q"]["B"], kept[c]) for c in range(N))
    assert {numbers(sent) for sent in simulation.up.values()} == {Q}
    assert not any(map(numbers, simulation.down.values()))
    assert simulation.clusters == [0, 1, 2] * 3


def test_what_travels_afterwards_is_an_expert_and_a_router_up_and_all_experts_down():
    simulation, M = Simulation(), 3
    simulation.round(1)
    everything = M * Q + (2 * M - 1) * D_IN
    assert {numbers(answer.adapter) for answer in simulation.answers.values()} == {everything}
    simulation.round(2, [0, 1, 2, 3])
    assert not any(map(numbers, simulation.down.values()))  # the answer of the last round is still true
    assert {numbers(simulation.up[c]) for c in range(4)} == {Q + (2 * M - 1) * D_IN}
    simulation.round(3, [0, 4, 5])
    assert [numbers(simulation.down[c]) for c in (0, 4, 5)] == [0, everything, everything]


def test_a_client_has_its_own_expert_first_the_others_held_and_its_cluster_s_router():
    simulation = Simulation()
    simulation.round(1)
    simulation.round(2, [0, 1, 2, 3])
    before, _ = simulation.round(3, [0, 4])  # one is up to date, one is not
    for client, j in ((0, 0), (4, 1)):
        for name in SIZES:
            memory, start = before.memory.layers[name], simulation.starts[client][name]
            for field in ("A", "B", "R"):
                assert torch.equal(start[field], memory[field][j])
            for field in ("A", "B"):
                assert torch.equal(start[field + "s"], torch.stack([memory[field][e] for e in range(3) if e != j]))
            assert start["routes"] == 1
    assert not torch.equal(before.memory.layers["q"]["R"][0], before.memory.layers["q"]["R"][1])
    assert simulation.method.phases(3)[0].trained == {"A", "B", "R"}


@pytest.mark.parametrize("was_there", [False, True])
def test_a_client_that_missed_the_clustering_trains_its_own_pair_and_joins_the_nearest_cluster(was_there):
    simulation = Simulation(warmup_rounds=2)
    early = range(N) if was_there else range(7)
    simulation.round(1, early)
    simulation.round(2, range(7))
    assert simulation.clusters == [0, 1, 2, 0, 1, 2, 0, -1, -1]
    own = simulation.kept[8]["q"]["B"] if was_there else simulation.start.adapter["q"]["B"]
    before, _ = simulation.round(3, [0, 2, 7, 8])
    start = simulation.starts[8]["q"]
    assert torch.equal(start["B"], own)
    assert start["routes"] == 0
    assert {f: t.shape for f, t in start.items()} == {f: t.shape for f, t in simulation.starts[0]["q"].items()}
    assert not simulation.down[8]
    assert numbers(simulation.up[8]) == Q
    assert simulation.clusters == [0, 1, 2, 0, 1, 2, 0, 1, 2]
    # It joins the mean from its next round on.
    trained = simulation.trained[2]["q"]["B"]
    torch.testing.assert_close(simulation.memory["q"]["B"][2], trained, rtol=0, atol=1e-12)
    assert torch.equal(simulation.memory["q"]["B"][1], before.memory.layers["q"]["B"][1])
    assert torch.equal(simulation.answers[8].adapter["q"]["B"], simulation.memory["q"]["B"][2])
    simulation.round(4, [8])
    assert simulation.starts[8]["q"]["routes"] == 1


def test_the_order_in_which_clients_are_held_changes_no_bit():
    hashes = set()
    for order in (range(N), list(range(N))[::-1]):
        simulation = Simulation()
        ctx = RoundContext(1, 0, dict.fromkeys(range(N), 0), N)
        random = rng(0)

        def drawn(random=random, start=simulation.start.adapter):
            return {
                n: {f: torch.from_numpy(random.standard_normal(t.shape)) for f, t in layer.items()}
                for n, layer in start.items()
            }

        sent = [drawn() for _ in range(N)]
        weights = dict.fromkeys(order, 1 / N)
        uploads = Uploads({c: sent[c] for c in order}, weights, Ranks())
        heads = Uploads({c: {} for c in order}, weights, Ranks())
        hashes.add(state_hash(simulation.method.next_state(simulation.server, uploads, heads, ctx)))
    assert len(hashes) == 1


def test_every_seed_has_routers_of_its_own():
    routers = []
    for seed in (0, 0, 1):
        simulation = Simulation()
        sent = {c: {n: dict(layer) for n, layer in simulation.start.adapter.items()} for c in range(3)}
        ctx, weights = RoundContext(1, seed, dict.fromkeys(range(3), 0), N), dict.fromkeys(range(3), 1 / 3)
        uploads, heads = (Uploads(own, weights, Ranks()) for own in (sent, {c: {} for c in range(3)}))
        routers.append(simulation.method.next_state(simulation.server, uploads, heads, ctx).memory.layers["q"]["R"])
    assert torch.equal(routers[0], routers[1])
    assert not torch.equal(routers[0], routers[2])
    assert routers[0].abs().max() <= 11**-0.5


def adapters_of(trainer):
    return [row for row in rows(trainer.folder.path, "communication.csv") if row["part"] == "adapter"]


def test_one_expert_is_fedit_once_the_warm_up_is_over(fit):  # noqa: F811
    """Its first round is local and ends with the mean, as FedIT's; a plain mean of all clients of equal weight."""
    keys = {"rounds": 3, "client_weights": "uniform"}
    _, one = fit(method=FedLEASE(rank=2, experts=1, head="frozen"), name="one", **keys)
    _, plain = fit(method=FedIT(rank=2, head="frozen"), name="plain", **keys)
    found, expected = (load(trainer.folder.checkpoint("last")).state.adapter for trainer in (one, plain))
    for name, layer in expected.items():
        for field, tensor in layer.items():
            torch.testing.assert_close(found[name][field], tensor, rtol=1e-3, atol=1e-5)


def test_the_ledger_has_what_a_run_sends(fit):  # noqa: F811
    """Five clients, four layers of 16 to 16, rank 2: q = 256 and 4 * 16 inputs; two local rounds, three experts."""
    _, trainer = fit(method=FedLEASE(rank=2, warmup_rounds=2, experts=3), rounds=4)
    q, router = 4 * 2 * 32, 5 * 4 * 16
    found = {(int(row["round"]), row["direction"]): int(row["parameters"]) for row in adapters_of(trainer)}
    assert found == {
        (2, "up"): 5 * q,
        (2, "down"): 5 * (3 * q + router),
        (3, "up"): 5 * (q + router),
        (3, "down"): 5 * (3 * q + router),
        (4, "up"): 5 * (q + router),
        (4, "down"): 5 * (3 * q + router),
    }
    stands = load(trainer.folder.checkpoint("last"))
    assert {key.split("|")[2] for key in stands.clients[0]} == {"A", "B", "As", "Bs", "R", "weight", "bias"}


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize(
    ("settings", "keep"),
    [({"experts": 2, "renormalise": True}, True), ({"warmup_rounds": 2, "head": "averaged"}, False)],
)
def test_a_resumed_run_ends_with_the_bits_of_one_in_one_go_across_the_clustering(fit, settings, keep):  # noqa: F811
    """Cut before it, and at it or after it; three of five clients a round."""
    keys = {"method": FedLEASE(rank=2, **settings), "optimizer": AdamW(lr=0.02, keep_state=keep)}
    keys |= {"participation": 3, "clients_per_block": 2}
    whole, _ = fit(rounds=5, name="whole", **keys)
    fit(rounds=1, name="parts", **keys)
    for rounds in (2, 5):
        parts, _ = fit(rounds=rounds, name="parts", ckpt_path="last", **keys)
    assert parts["state_hash"] == whole["state_hash"]
    assert parts["final"] == whole["final"]
    assert parts["bytes_down"] == whole["bytes_down"]


def test_settings_that_make_no_sense_are_errors():
    for key, value, least in (("warmup_rounds", 0, 1), ("max_experts", 1, 2), ("experts", 0, 1)):
        with pytest.raises(ConfigurationError, match=rf"method\.{key} must be at least {least}.* got {value}"):
            FedLEASE(**{key: value})
    with pytest.raises(ConfigurationError, match=r"method\.mean .*plain.*weighted.*median"):
        FedLEASE(mean="median")
    assert FedLEASE(mean="weighted", renormalise=True).name == "FedLEASE-weighted-renormalised"
    assert FedLEASE(experts=2, warmup_rounds=5).name == "FedLEASE"
