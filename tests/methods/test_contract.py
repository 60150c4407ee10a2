"""The hooks of a round, seen through whole runs of a method that uses every one of them."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from fedgram import AdamW
from fedgram.distributed.uploads import average
from fedgram.engine.block import train_block
from fedgram.federation import setup
from fedgram.methods import FedIT, LoRAMethod, Paper, Phase, RoundContext
from fedgram.runs.checkpoint import load
from fedgram.state import ModelState, Payload, ServerMemory, ServerState, flatten, to
from helpers import INFO
from tables import rows
from test_block import make_network
from test_trainer import fit  # noqa: F401


class Busy(LoRAMethod):
    """Trains B first and then A, remembers how often it has aggregated, and answers each client with its own mark."""

    paper = Paper("Nobody", 2026, "nowhere", "")
    travels = "A and B both ways, and a mark"
    weight = 0.0

    def server_start(self, model, clients):
        return ServerMemory(globals={"rounds": torch.zeros(1), "clients": torch.tensor(clients)})

    def phases(self, number):
        return Phase(frozenset("B"), 0.75, "B"), Phase(frozenset("A"), 0.25, "A")

    def penalty(self, adapters):
        return self.weight * sum(layer["B"].flatten(1).pow(2).sum(dim=1) for layer in adapters.values())

    def upload(self, start, trained, ctx):
        payload = super().upload(start, trained, ctx)
        adapters = {n: layer | {"place": torch.arange(3, dtype=torch.int32)} for n, layer in payload.adapter.items()}
        return replace(payload, adapter=adapters)

    def receive(self, server, payload, ctx):
        adapters = {n: {f: layer[f] for f in ("A", "B")} for n, layer in payload.adapter.items()}
        return super().receive(server, replace(payload, adapter=adapters), ctx)

    def aggregate(self, layers, uploads, ctx):
        return average(layers, uploads)

    def next_state(self, server, adapters, heads, ctx):
        after = super().next_state(server, adapters, heads, ctx)
        memory = server.memory.globals
        return replace(after, memory=ServerMemory(globals={**memory, "rounds": memory["rounds"] + 1}))

    def answer(self, server, ctx):
        name = next(iter(server.adapter))
        shape = server.adapter[name]["B"].shape
        own = torch.full(shape, float(ctx.client + 1)) * server.memory.globals["rounds"].to(torch.float32)
        return Payload({name: {"B": own}})


KEYS = {"rounds": 3, "participation": 3, "clients_per_block": 2, "local_steps": 4}


def test_what_the_server_remembers_is_checkpointed_and_never_sent(fit):  # noqa: F811
    _, trainer = fit(method=Busy(rank=2), **KEYS)
    state = load(trainer.folder.checkpoint("last")).state
    assert {name: tensor.tolist() for name, tensor in state.memory.globals.items()} == {"rounds": [3.0], "clients": 5}
    sent = rows(trainer.folder.path, "communication.csv")
    assert {row["part"] for row in sent} == {"adapter", "head"}


def test_an_answer_is_counted_kept_and_what_the_client_is_judged_by(fit):  # noqa: F811
    summary, trainer = fit(method=Busy(rank=2), **KEYS)
    layers = trainer.federation.state.adapter
    first = f"adapter|{next(iter(layers))}|B"
    kept = load(trainer.folder.checkpoint("last")).clients
    last = trainer.federation.last_rounds
    assert {client: tensors[first].unique().tolist() for client, tensors in kept.items()} == {
        client: [float((client + 1) * last[client])] for client in last.nonzero()[0].tolist()
    }
    assert trainer.federation.models().personal
    assert trainer.federation.method.personal
    down = sum(
        int(row["parameters"])
        for row in rows(trainer.folder.path, "communication.csv")
        if (row["direction"], row["part"]) == ("down", "adapter")
    )
    whole = sum(layer["A"].numel() + layer["B"].numel() for layer in layers.values())
    answer = next(iter(layers.values()))["B"].numel()
    assert down == 3 * (2 * whole + 3 * answer)  # in round 1 answers alone
    assert summary["parameters_down"] > down


def test_places_are_bytes_and_no_parameters(fit):  # noqa: F811
    busy, plain = (fit(method=method, **KEYS)[0] for method in (Busy(rank=2), FedIT(rank=2)))
    assert busy["parameters_up"] == plain["parameters_up"]
    assert busy["bytes_up"] - plain["bytes_up"] == 3 * 3 * 4 * 3 * 4  # rounds, clients, layers, numbers, their bytes


def test_a_run_that_was_cut_ends_as_one_that_was_not(fit):  # noqa: F811
    optimizer = AdamW(lr=0.02, keep_state=True)
    whole, _ = fit(method=Busy(rank=2), optimizer=optimizer, name="whole", **KEYS)
    fit(method=Busy(rank=2), optimizer=optimizer, name="parts", **KEYS | {"rounds": 2})
    parts, trainer = fit(method=Busy(rank=2), optimizer=optimizer, name="parts", ckpt_path="last", **KEYS)
    assert (parts["state_hash"], parts["final"]) == (whole["state_hash"], whole["final"])
    memories = next(iter(trainer.federation.store.tensors.values()))
    assert {"optimizer:A|step", "optimizer:B|step"} <= memories.keys()
    assert trainer.federation.store.memory(next(iter(trainer.federation.store.tensors)), "B")["step"] % 3 == 0


@pytest.mark.parametrize("steps", [1, 4, 7])
def test_phases_share_a_clients_steps(fit, steps, monkeypatch):  # noqa: F811
    """Three quarters of the steps train B and the rest A, and every batch is trained on once."""
    seen = []

    def spy(network, optimizer, start, table, batches, span, trained, *rest):
        result = train_block(network, optimizer, start, table, batches, span, trained, *rest)
        before, after = flatten(start[0]), flatten(result.states[0])
        changed = {key.split("|")[2] for key in before if not torch.equal(before[key], after[key])}
        seen.append((sorted(trained), len(batches[0]), span, changed))
        return result

    monkeypatch.setattr("fedgram.federation.rounds.train_block", spy)
    optimizer = AdamW(lr=0.02, schedule="linear", span="run")
    fit(method=Busy(rank=2), optimizer=optimizer, clients=1, rounds=1, local_steps=steps)
    (first, many, start, changed), (second, few, end, changed_later) = seen
    assert (first, second, many + few) == (["B"], ["A"], steps)
    assert many == {1: 1, 4: 3, 7: 5}[steps]
    assert (start, end) == ((0.0, 0.75), (0.75, 1.0))
    assert changed == {"B", "weight", "bias"}
    assert changed_later == ({"A", "weight", "bias"} if few else set())


class InThree(Busy):
    """Whose middle phase has one step of a client that has six, and two of a client that has five."""

    def phases(self, number):
        return Phase(frozenset("B"), 0.5, "1"), Phase(frozenset("A"), 0.25, "2"), Phase(frozenset("B"), 0.25, "3")


def test_clients_of_fewer_steps_may_have_more_of_a_phase(fit):  # noqa: F811
    """A block of clients with 3 to 6 steps trains them as they would train alone."""
    optimizer, losses = AdamW(lr=0.02, keep_state=True), []
    for size in (1, 5):
        keys = {"clients_per_block": size, "local_steps": None, "rounds": 2}
        _, trainer = fit(method=InThree(rank=2), optimizer=optimizer, name=f"of_{size}", **keys)
        counts = {client: kept["optimizer:2|step"] for client, kept in trainer.federation.store.tensors.items()}
        losses.append((rows(trainer.folder.path)[-1]["train_loss"], counts))
    (alone, counts), (together, others) = losses
    assert float(together) == pytest.approx(float(alone), rel=1e-5)
    assert others == counts
    assert sorted(map(int, counts.values())) == [0, 0, 2, 2, 4]  # in two rounds


def test_what_the_server_remembers_lies_where_the_model_does(fit, monkeypatch):  # noqa: F811
    moved = []

    def spy(state, device):
        moved.append((sorted({key.split("|")[0] for key in flatten(state)}), device))
        return to(state, device)

    monkeypatch.setattr(setup, "to", spy)
    _, trainer = fit(method=Busy(rank=2), **KEYS)
    assert moved == [(["adapter", "head", "server"], trainer.federation.network.device)]


def test_a_penalty_pulls_at_what_it_is_of(tiny_backbone, tiny_data):
    """At a gradient of 2 λ B alone: λ so large that the loss does not matter."""
    method = Busy(rank=2)
    network, data = make_network(tiny_backbone, tiny_data, method)
    method.weight = 1e6
    state = network.initial_state()
    for layer in state.adapter.values():
        layer["B"] = torch.ones_like(layer["B"])
    table, batches = data.split("train"), [[np.array([0, 1])], [np.array([2, 3])]]
    ends = {}
    for weight in (0.0, 1e6):
        method.weight = weight
        trained = train_block(network, AdamW(lr=0.1), [state] * 2, table, batches, penalty=method.penalty)
        ends[weight] = trained
        assert torch.equal(trained.losses, ends[0.0].losses)  # which are told without it
    for client in ends[1e6].states:
        for layer in client.adapter.values():
            torch.testing.assert_close(layer["B"], torch.full_like(layer["B"], 0.9), rtol=0, atol=1e-6)
    assert any((layer["B"] > 1).any() for layer in ends[0.0].states[0].adapter.values())


def test_the_model_of_a_method_without_hooks_is_its_servers():
    state = ServerState(ModelState({"q": {"A": torch.ones(2, 3)}}), ServerMemory(globals={"x": torch.ones(1)}))
    assert FedIT(rank=2).model(state) == ModelState(state.adapter)


def test_a_round_knows_its_cohort_in_order():
    assert RoundContext(2, 0, {5: 1, 2: 0}, 9).cohort == [2, 5]
    assert len(INFO.cohort) == INFO.clients
