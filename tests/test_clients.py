"""What stays with clients: models of their own, and their optimizers' memories."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

from fedgram import AdamW, Dirichlet, FederatedTrainer, FedIT, FedSALoRA, FLoRG, TextClassification
from fedgram.data import TextClassificationData
from fedgram.distributed.collectives import Ranks
from fedgram.errors import CheckpointError, ConfigurationError
from fedgram.federation.clients import ClientStore, Models, to_keep
from fedgram.federation.evaluation import evaluate, infer
from fedgram.runs.checkpoint import load
from fedgram.state import ModelState, flatten, merge, unflatten
from test_block import make_network
from test_trainer import fit, rows  # noqa: F401 (a fixture)
from thread_ranks import on_ranks
from whole_models import all_by, models_of


def stored(trainer):
    return load(trainer.folder.checkpoint("last")).clients


def test_every_client_keeps_what_its_own_training_made(fit, tiny_data):  # noqa: F811
    """Client 1's B and head are the same whether the others train or not: nothing passes from client to client."""
    _, everyone = fit(method=FedSALoRA(rank=2), rounds=1, clients_per_block=2)
    _, alone = fit(method=FedSALoRA(rank=2), rounds=1, participation=1 / 5, clients_per_block=1, name="alone")
    (trained,) = stored(alone)
    together, single = stored(everyone)[trained], stored(alone)[trained]
    assert set(together) == set(single)
    assert {key.split("|")[0] for key in single} == {"adapter", "head"}
    assert {key.split("|")[2] for key in single} == {"B", "weight", "bias"}
    for key, tensor in single.items():
        torch.testing.assert_close(together[key], tensor, rtol=1e-4, atol=1e-6)
        assert tensor.any()
    others = [stored(everyone)[client] for client in range(5) if client != trained]
    assert all(not torch.equal(other[key], together[key]) for other in others for key in together)


def test_a_client_goes_on_where_it_was_and_one_that_never_trained_has_nothing(fit):  # noqa: F811
    """One of five clients a round: what the others keep does not move."""
    kept = [stored(fit(method=FedSALoRA(rank=2), rounds=n, participation=1 / 5, name=str(n))[1]) for n in range(1, 6)]
    for before, after in pairwise(kept):
        changed = [c for c in after if c not in before or not torch.equal(*(_first(k[c]) for k in (before, after)))]
        assert len(changed) == 1
    assert len(kept[-1]) < 5


def test_clients_that_keep_their_optimizers_alone_have_the_model_of_the_server():
    """Such as FedDPA's of the rounds before its local pairs: whoever is first in the store says nothing of the rest."""
    moment, pair = {"optimizer:global|exp_avg": torch.ones(2)}, {"adapter|q|U": torch.ones(2)}
    server = ModelState({"q": {"A": torch.zeros(2)}})
    models = Models(server, ClientStore({2: moment, 1: moment | pair, 0: pair}), None, 0)
    assert models.personal
    assert models.keeping.tolist() == [0, 1]
    assert not Models(server, ClientStore({2: moment}), None, 0).personal


def _first(tensors):
    return tensors[min(tensors)]


def test_only_what_is_shared_travels(fit):  # noqa: F811
    summary, trainer = fit(method=FedSALoRA(rank=2), rounds=2)
    assert {row["part"] for row in rows(trainer.folder.path, "communication.csv")} == {"adapter"}
    sent = 5 * 4 * 2 * 16  # A of 2 x 16 in four layers, which in round 1 all know from the seed
    assert (summary["parameters_up"], summary["parameters_down"]) == (2 * sent, sent)
    server = load(trainer.folder.checkpoint("last")).state
    assert not any(layer["B"].any() for layer in server.adapter.values())  # the server never saw one


@pytest.mark.parametrize("method", [FLoRG(rank=2, head="local"), FedIT(rank=2, head="local")])
def test_a_head_may_stay_with_its_client_for_any_method(fit, method):  # noqa: F811
    summary, trainer = fit(method=method, rounds=2)
    assert {row["part"] for row in rows(trainer.folder.path, "communication.csv")} == {"adapter"}
    heads = [tensors["head|classifier|weight"] for tensors in stored(trainer).values()]
    assert len(heads) == 5
    assert not torch.equal(heads[0], heads[1])
    assert summary["final"]["accuracy"] > 0


def test_a_head_that_is_frozen_is_in_no_state(fit):  # noqa: F811
    assert not any(key.startswith("head") for key in flatten(_state(fit(method=FedSALoRA(rank=2, head="frozen"))[1])))


def _state(trainer):
    return load(trainer.folder.checkpoint("last")).state


def test_moments_that_are_kept_change_the_run_and_count_the_steps_of_all_rounds(fit):  # noqa: F811
    fresh, first = fit(rounds=3)
    kept, second = fit(rounds=3, optimizer=AdamW(lr=0.02, keep_state=True), name="kept")
    assert fresh["state_hash"] != kept["state_hash"]
    assert stored(first) == {}
    for tensors in stored(second).values():
        assert int(tensors["optimizer|step"]) == 3 * 2
        assert tensors["optimizer|exp_avg_sq"].min() >= 0
        assert tensors["optimizer|exp_avg"].any()
    with pytest.raises(CheckpointError, match=r"optimizer\.keep_state: True there, False here"):
        fit(rounds=4, name="kept", ckpt_path="last")


def test_kept_moments_are_those_of_one_optimizer_that_goes_on(tiny_backbone, tiny_data):
    """One client in two rounds of two steps, its parameters sent back as they are, is one training of four steps."""
    from fedgram.engine.block import train_block

    network, data = make_network(tiny_backbone, tiny_data, FedIT(rank=2))
    table, optimizer, generator = data.split("train"), AdamW(lr=0.01, keep_state=True), np.random.default_rng(0)
    batches = [generator.choice(60, 3, replace=False) for _ in range(4)]
    start = network.initial_state()
    whole = train_block(network, optimizer, [start], table, [batches])
    half = train_block(network, optimizer, [start], table, [batches[:2]])
    rest = train_block(network, optimizer, half.states, table, [batches[2:]], memories=half.memories)
    fresh = train_block(network, optimizer, half.states, table, [batches[2:]])
    for key, tensor in flatten(whole.states[0]).items():
        torch.testing.assert_close(flatten(rest.states[0])[key], tensor, rtol=0, atol=1e-12)
        assert not torch.allclose(flatten(fresh.states[0])[key], tensor, rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", [2, 3])
def test_all_ranks_know_what_every_client_keeps(size):
    """The last of three ranks has trained nobody."""
    cohort, generator = [1, 4, 6], torch.Generator().manual_seed(0)
    new = {
        c: {"adapter|q|B": torch.randn(3, 2, generator=generator), "optimizer|step": torch.tensor(c)} for c in cohort
    }
    hands = {2: [[6, 1], [4]], 3: [[4], [1, 6], []]}[size]

    def tell(ranks):
        store = ClientStore({0: {"adapter|q|B": torch.ones(3, 2)}, 4: {"adapter|q|B": torch.zeros(3, 2)}})
        store.update({c: new[c] for c in hands[ranks.rank]}, cohort, ranks)
        return store.tensors

    for tensors in on_ranks(size, tell):
        assert sorted(tensors) == [0, 1, 4, 6]
        assert torch.equal(tensors[0]["adapter|q|B"], torch.ones(3, 2))
        for client in cohort:
            assert all(torch.equal(tensors[client][key], value) for key, value in new[client].items())


def personal_models(tiny_backbone, tiny_data, clients=4):
    """A network, its data, and a store in which every client but the last has a head and B of its own."""
    method = FedSALoRA(rank=2)
    network, data = make_network(tiny_backbone, tiny_data, method)
    data.partition = Dirichlet(0.3)
    state, generator = network.initial_state(), torch.Generator().manual_seed(0)
    store = ClientStore()
    for client in range(clients - 1):
        own = {
            key: tensor + torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype)
            for key, tensor in flatten(method.kept(state)).items()
        }
        store.tensors[client] = to_keep(unflatten(own), {"": {"step": torch.tensor(3)}})
    return network, data, models_of(state, data, store, clients)


def test_clients_answer_for_samples_of_their_own_kind(tiny_backbone, tiny_data):
    network, data, models = personal_models(tiny_backbone, tiny_data)
    table = data.split("validation")
    shares = data.shares(models.shards, "validation", models.seed)
    assert sorted(np.concatenate(list(shares)).tolist()) == list(range(16))
    outputs = infer(network, models.answering(data, "validation"), table, 3, Ranks())["logits"]
    for client, own in enumerate(shares):
        alone = infer(network, all_by(models.of(client), table), table, 16, Ranks())["logits"]
        torch.testing.assert_close(outputs[own], alone[own], rtol=0, atol=1e-12)
    counted = evaluate(network, models, data, "validation", Ranks())["accuracy"]
    right = (outputs.argmax(dim=1) == torch.tensor(table.labels)).double().mean()
    assert counted == pytest.approx(float(right), abs=1e-6)
    answering = models.answering(data, "validation")
    for size in (2, 3):
        networks = [personal_models(tiny_backbone, tiny_data)[0] for _ in range(size)]  # each loads models of its own
        for seen in on_ranks(size, lambda ranks, own=networks: infer(own[ranks.rank], answering, table, 3, ranks)):
            assert torch.equal(seen["logits"], outputs)


def test_clients_that_keep_nothing_answer_together(tiny_backbone, tiny_data):
    _, data, models = personal_models(tiny_backbone, tiny_data, clients=6)
    for client in (0, 1, 3):
        del models.store.tensors[client]
    shares = data.shares(models.shards, "validation", models.seed)
    (server, rest), *own = models.answering(data, "validation")
    assert server is models.server
    assert rest.tolist() == sorted(np.concatenate([shares[client] for client in (0, 1, 3, 5)]).tolist())
    assert [rows.tolist() for _, rows in own] == [shares[client].tolist() for client in (2, 4) if len(shares[client])]


def test_a_split_is_dealt_to_clients_once_in_a_run(fit, monkeypatch):  # noqa: F811
    dealt, shares = [], TextClassificationData.shares

    def counted(self, shards, split, seed):
        dealt.append(split)
        return shares(self, shards, split, seed)

    monkeypatch.setattr(TextClassificationData, "shares", counted)
    fit(method=FedSALoRA(rank=2), rounds=3)
    assert dealt == ["validation"]


def test_or_every_client_answers_for_all(tiny_backbone, tiny_data):
    network, data, models = personal_models(tiny_backbone, tiny_data)
    found = evaluate(network, models, data, "validation", Ranks(), "all")
    each = [evaluate(network, models_of(models.of(c), data), data, "validation", Ranks()) for c in range(4)]
    assert len({scores["loss"] for scores in each}) == 4
    for name, value in found.items():
        assert value == pytest.approx(np.mean([scores[name] for scores in each]), abs=1e-12)
    assert found != evaluate(network, models, data, "validation", Ranks(), "own")


def test_a_client_that_keeps_nothing_has_the_servers_model(tiny_backbone, tiny_data):
    _, _, models = personal_models(tiny_backbone, tiny_data)
    assert flatten(models.of(3)).keys() == flatten(models.server).keys()
    assert all(torch.equal(t, flatten(models.server)[key]) for key, t in flatten(models.of(3)).items())
    kept = merge(models.server, models.store.state(0))
    assert all(torch.equal(t, flatten(models.of(0))[key]) for key, t in flatten(kept).items())
    assert models.store.memory(0) == {"step": torch.tensor(3)}
    assert models.store.memory(3) is None


def test_memories_alone_make_no_model_personal(tiny_backbone, tiny_data):
    _, data, models = personal_models(tiny_backbone, tiny_data)
    store = ClientStore({0: to_keep(unflatten({}), {"": {"step": torch.tensor(1)}})})
    assert models.personal
    assert not Models(models.server, store, models.shards, 0).personal
    ((state, samples),) = Models(models.server, store, models.shards, 0).answering(data, "validation")
    assert state is models.server
    assert len(samples) == 16


def test_a_client_that_diverges_in_what_it_keeps_stops_the_run(fit, monkeypatch):  # noqa: F811
    kept = FedSALoRA.kept

    def broken(self, trained):
        return replace(state := kept(self, trained), head={n: {f: t * torch.nan for f, t in layer.items()}
                                                           for n, layer in state.head.items()})  # fmt: skip

    monkeypatch.setattr(FedSALoRA, "kept", broken)
    with pytest.raises(Exception, match=r"^client \d diverged: its head\|classifier\|\w+ holds nan or inf"):
        fit(method=FedSALoRA(rank=2), rounds=1)


def test_validate_and_predict_with_models_of_clients(fit, tiny_backbone, tiny_data, tmp_path):  # noqa: F811
    method = FedSALoRA(rank=2)
    summary, _ = fit(method=method, rounds=3)

    def trainer(**keys):
        given = {"clients": 5, "loggers": False, "default_root_dir": str(tmp_path / "runs")} | keys
        return FederatedTrainer(accelerator="cpu", progress_bar=False, **given)

    def data(**keys):
        given = {"partition": Dirichlet(1.0)} | keys
        return TextClassificationData(str(tiny_data), batch_size=3, cache_dir=str(tmp_path / "cache"), **given)

    def task():
        return TextClassification(tiny_backbone)

    assert trainer().validate(task(), data(), method, "last") == pytest.approx(summary["final"])
    whole = trainer(personal_evaluation="all").validate(task(), data(), method, "last")
    assert whole != pytest.approx(summary["final"])
    with pytest.raises(CheckpointError, match=r"data\.partition\.rho: 1\.0 there, 0\.5 here"):
        trainer().validate(task(), data(partition=Dirichlet(0.5)), method, "last")
    with pytest.raises(CheckpointError, match=r"trainer\.clients: 5 there, 4 here"):
        trainer(clients=4).validate(task(), data(), method, "last")
    with pytest.raises(CheckpointError, match=r"data\.groups"):  # other samples are dealt otherwise
        trainer().validate(task(), data(max_train_samples=40), method, "last")
    with pytest.raises(ConfigurationError, match=r"say whose predicts with --client 0 to 4, got None"):
        trainer().predict(task(), data(), method, "last", output=str(tmp_path / "p.csv"))
    with pytest.raises(ConfigurationError, match=r"--client 0 to 4, got 5"):
        trainer().predict(task(), data(), method, "last", output=str(tmp_path / "p.csv"), client=5)
    answers = {}
    for client in range(5):
        path = trainer().predict(task(), data(), method, "last", output=str(tmp_path / "p.csv"), client=client)
        answers[client] = path.read_text()
    assert len(set(answers.values())) == 5
    with pytest.raises(ConfigurationError, match=r"all clients have one model.*leave --client 1 out"):
        trainer().predict(task(), data(), FLoRG(rank=2), output=str(tmp_path / "p.csv"), client=1)
