import numpy as np
import pytest
import torch

from fedgram import CELoRA, FederatedTrainer, FedIT, TextClassification, TextClassificationData
from fedgram.data import Dirichlet
from fedgram.distributed.collectives import Ranks
from fedgram.distributed.uploads import Uploads
from fedgram.errors import ConfigurationError
from fedgram.federation import rounds as federation
from fedgram.federation.rounds import Federation
from fedgram.methods import RoundContext
from fedgram.methods.ce_lora import closeness
from fedgram.methods.client_memory import NOTHING, begin
from fedgram.runs.checkpoint import load
from fedgram.seeding import torch_generator
from fedgram.state import ModelState, ServerMemory, ServerState
from helpers import rng
from tables import rows
from test_trainer import fit  # noqa: F401

R, LAYERS, WIDTH = 3, {"q": (11, 7), "v": (6, 6)}, 4


def server_of(method, clients, distance=None):
    with torch.random.fork_rng(devices=[]):
        linears = {name: torch.nn.Linear(*sizes) for name, sizes in LAYERS.items()}
    adapters = {name: method.adapter(linear, torch_generator(0, name)).initial() for name, linear in linears.items()}
    model = ModelState(adapters)
    told = {} if distance is None else {"distance": torch.tensor(distance)}
    return ServerState(model, ServerMemory(globals=told) if told else method.server_start(model, clients))


def aggregate(method, server, Cs, weights=None):
    """One round of clients who send these C for every layer, (N, r, r)."""
    count = len(Cs)
    sent = {k: {name: {"C": torch.as_tensor(C, dtype=torch.float32)} for name in LAYERS} for k, C in enumerate(Cs)}
    ctx = RoundContext(2, 0, dict.fromkeys(range(count), 1), count)
    given = dict(enumerate(weights)) if weights else dict.fromkeys(range(count), 1 / count)
    uploads, heads = (Uploads(own, given, Ranks()) for own in (sent, {k: {} for k in sent}))
    after = method.next_state(server, uploads, heads, ctx)
    return after, [method.answer(after, method.context(after, k, ctx)).adapter for k in range(count)]


def drawn(count, seed=0):
    return rng(seed).standard_normal((count, R, R)) + np.eye(R)


@pytest.mark.parametrize("similarity", ["model", "data", "both"])
@pytest.mark.parametrize("measure", ["cka", "cosine"])
def test_clients_that_are_identical_get_back_what_they_sent(similarity, measure):
    method = CELoRA(rank=R, similarity=similarity, measure=measure)
    (C,) = drawn(1)
    after, answers = aggregate(method, server_of(method, 4), [C] * 4)
    torch.testing.assert_close(after.memory.globals["weights"], torch.full((4, 4), 0.25, dtype=torch.float64))
    for own in answers:
        for name in LAYERS:
            torch.testing.assert_close(own[name]["C"], torch.tensor(C, dtype=torch.float32), rtol=0, atol=1e-6)


def test_the_weights_of_a_client_sum_to_one_and_the_largest_is_its_own():
    method = CELoRA(rank=R, temperature=0.3)
    distance = np.abs(np.subtract.outer(np.arange(5.0), np.arange(5.0)))
    after, _ = aggregate(method, server_of(method, 5, distance), drawn(5))
    weights = after.memory.globals["weights"]
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(5, dtype=torch.float64), rtol=0, atol=1e-14)
    assert (weights > 0).all()
    assert weights.argmax(dim=1).tolist() == [0, 1, 2, 3, 4]
    assert method.figures(after) == {"own_weight": float(weights.diagonal().mean())}


def test_the_colder_the_more_a_client_listens_to_itself_and_the_hotter_the_more_to_all():
    Cs = drawn(4)
    for temperature, expected in ((1e-3, Cs), (1e4, np.repeat(Cs.mean(axis=0, keepdims=True), 4, axis=0))):
        method = CELoRA(rank=R, similarity="model", temperature=temperature)
        _, answers = aggregate(method, server_of(method, 4), Cs)
        for own, C in zip(answers, expected, strict=True):
            torch.testing.assert_close(own["q"]["C"].double(), torch.tensor(C), rtol=0, atol=1e-3)


def test_clients_of_like_data_listen_to_each_other():
    far = np.array([[0.0, 0.1, 9, 9], [0.1, 0, 9, 9], [9, 9, 0, 0.1], [9, 9, 0.1, 0]])
    method = CELoRA(rank=R, similarity="data", temperature=0.05)
    after, _ = aggregate(method, server_of(method, 4, far), drawn(4))
    weights = after.memory.globals["weights"]
    assert min(weights[:2, :2].min(), weights[2:, 2:].min()) > 0.4
    assert weights[:2, 2:].max() < 1e-4


def test_one_that_beta_leaves_out_makes_no_difference():
    Cs = drawn(3)
    distances = [np.abs(np.subtract.outer(x, x)) for x in (np.arange(3.0), np.array([0.0, 5, 6]))]

    def weights(distance, Cs, **settings):
        method = CELoRA(rank=R, **settings)
        return aggregate(method, server_of(method, 3, distance), Cs)[0].memory.globals["weights"]

    assert torch.equal(weights(distances[0], Cs, beta=0.0), weights(distances[1], Cs, beta=0.0))
    assert torch.equal(weights(distances[0], Cs, beta=1.0), weights(distances[0], drawn(3, 1), beta=1.0))
    assert not torch.equal(weights(distances[0], Cs), weights(distances[1], Cs))
    assert not torch.equal(weights(distances[0], Cs), weights(distances[0], drawn(3, 1)))


def test_weights_of_clients_are_no_part_of_the_personal_means():
    method = CELoRA(rank=R)
    Cs = drawn(3)
    runs = [aggregate(method, server_of(method, 3), Cs, weights) for weights in ([0.8, 0.1, 0.1], [0.1, 0.1, 0.8])]
    assert torch.equal(runs[0][1][0]["q"]["C"], runs[1][1][0]["q"]["C"])
    assert not torch.equal(runs[0][0].adapter["q"]["C"], runs[1][0].adapter["q"]["C"])


@pytest.mark.parametrize("clients", [1, 2, 5, 6])
def test_closeness_is_one_at_home_and_1_over_e_at_the_median_distance(clients):
    points = rng(1).normal(size=(clients, 2))
    D = ((points[:, None] - points[None]) ** 2).sum(axis=2)
    pairs = D[np.triu_indices(clients, 1)]
    expected = np.exp(-D / np.median(pairs)) if clients > 1 else np.ones((1, 1))
    torch.testing.assert_close(closeness(torch.tensor(D)), torch.tensor(expected), rtol=0, atol=1e-14)
    assert torch.equal(closeness(torch.zeros(clients, clients).double()), torch.ones(clients, clients).double())


def test_a_client_that_comes_late_is_sent_the_mean_c_and_nobody_else_anything():
    method = CELoRA(rank=R)
    server = server_of(method, 3)
    server = server.with_adapter({name: {**layer, "C": layer["C"] + 1} for name, layer in server.adapter.items()})
    initial, own = server_of(method, 3).model, {"A": torch.full((R, 11), 2.0), "C": torch.full((R, R), 3.0)}
    for number, last, is_sent in ((1, 0, False), (3, 0, True), (3, 2, False), (3, 1, False)):
        ctx = method.context(server, 1, RoundContext(number, 0, {1: last}, 3))
        kept = ModelState({"q": own}) if last else NOTHING
        payload, start = begin(method, server, initial, kept, ctx)
        assert payload.adapter == ({n: {"C": server.adapter[n]["C"]} for n in LAYERS} if is_sent else {})
        layer = start.adapter["q"]
        assert torch.equal(layer["C"], own["C"] if last else torch.eye(R) + (1 if is_sent else 0))
        assert torch.equal(layer["A"], own["A"] if last else initial.adapter["q"]["A"])


@pytest.mark.parametrize("labels", [torch.tensor([0.5, 1.5, 2.5, 0.1]), torch.tensor([[1, 2], [0, 1], [2, 2], [1, 1]])])
def test_targets_and_spans_are_one_class(labels):
    features = torch.from_numpy(rng(2).normal(size=(4, 5)))
    described = CELoRA(rank=R, components=2).describe(features, labels, 0, 0)
    assert described["samples"].tolist() == [4]
    assert described["components"].tolist() == [2]
    assert described["means"].shape == (2, 5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"similarity": "task"}, r"method\.similarity .*model.*data.*both.*task"),
        ({"measure": "l2"}, r"method\.measure .*cka.*cosine.*l2"),
        ({"beta": 1.5}, r"method\.beta must be a share from 0 to 1, got 1\.5"),
        ({"temperature": 0.0}, r"method\.temperature must be positive, got 0"),
        ({"components": 0}, r"method\.components must be positive, got 0"),
        ({"init_std": -1.0}, r"method\.init_std must be positive"),
        ({"client_ranks": [1, 2]}, "CELoRA is not defined for ranks that differ"),
    ],
)
def test_settings_out_of_range_are_errors(settings, message):
    with pytest.raises(ConfigurationError, match=message):
        CELoRA(**settings)


def test_variants_have_names_of_their_own():
    assert [CELoRA().name, CELoRA(similarity="model", measure="cosine").name] == ["CELoRA", "CELoRA-model-cosine"]


def checkpoint(trainer):
    return load(trainer.folder.checkpoint("last"))


def test_r_squared_numbers_of_a_layer_go_each_way_and_the_data_is_described_once(fit):  # noqa: F811
    """Two of five clients a round, four layers of rank 2, hidden 16."""
    described = []

    class Noting(CELoRA):
        def describe(self, features, labels, client, seed):
            described.append((client, tuple(features.shape), super().describe(features, labels, client, seed)))
            return described[-1][2]

    _, trainer = fit(method=Noting(rank=2), participation=2, rounds=3)
    assert sorted(client for client, _, _ in described) == [0, 1, 2, 3, 4]
    assert sum(n for _, (n, _), _ in described) == 60
    assert {width for _, (_, width), _ in described} == {16}
    once = 0
    for _, _, own in described:
        mixtures = int(own["components"].sum())
        assert mixtures <= 3 * len(own["samples"]) <= 6
        once += mixtures * (1 + 2 * 16)
    table = rows(trainer.folder.path, "communication.csv")
    seen = {(row["round"], row["direction"]): (int(row["clients"]), int(row["parameters"])) for row in table}
    assert {row["part"] for row in table} == {"adapter"}
    last = np.zeros(5, int)
    for number in (1, 2, 3):
        cohort = trainer.federation._cohort(number)
        late = sum(last[c] == 0 for c in cohort) if number > 1 else 0
        last[cohort] = number
        assert seen[str(number), "up"] == ((7, once + 2 * 16) if number == 1 else (2, 2 * 16))
        assert seen[str(number), "down"] == (2 + late, 2 * 16 + 16 * late)


def test_a_and_b_stay_with_their_client_and_c_is_the_personal_mean(fit):  # noqa: F811
    _, trainer = fit(method=CELoRA(rank=2), rounds=2)
    after = checkpoint(trainer)
    server, name = after.state, next(iter(after.state.adapter))
    for row, client in enumerate(sorted(after.clients)):
        own = after.clients[client]
        assert torch.equal(own[f"adapter|{name}|C"], server.memory.layers[name]["C"][row])
        assert own[f"adapter|{name}|B"].any()
    assert not server.adapter[name]["B"].any()  # the server never saw one
    assert {key.split("|")[0] for key in after.clients[0]} == {"adapter", "head"}
    assert len({own[f"adapter|{name}|B"].sum().item() for own in after.clients.values()}) == 5
    distance = server.memory.globals["distance"]
    assert torch.equal(distance, distance.T)
    assert (distance + torch.eye(5) > 0).all()
    assert not torch.allclose(server.memory.globals["weights"], torch.full((5, 5), 0.2).double(), atol=1e-3)


def test_a_run_that_goes_on_describes_the_data_no_second_time(fit, monkeypatch):  # noqa: F811
    keys = {"method": CELoRA(rank=2), "participation": 3, "clients_per_block": 2}
    _, first = fit(rounds=1, **keys)
    before = checkpoint(first).state.memory.globals["distance"].clone()
    monkeypatch.setattr(federation, "features_of", lambda *_: pytest.fail("the data is described before round 1 alone"))
    _, second = fit(rounds=2, ckpt_path="last", **keys)
    assert torch.equal(checkpoint(second).state.memory.globals["distance"], before)


@pytest.mark.slow
def test_a_run_that_is_killed_in_its_first_round_describes_the_data_again(fit, monkeypatch):  # noqa: F811
    keys = {"method": CELoRA(rank=2), "participation": 3}
    whole, _ = fit(rounds=2, name="whole", **keys)
    with monkeypatch.context() as patch:
        patch.setattr(Federation, "train", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            fit(rounds=2, name="killed", **keys)
    killed, trainer = fit(rounds=2, name="killed", ckpt_path="last", **keys)
    for key in ("state_hash", "final", "bytes_up"):
        assert killed[key] == whole[key]
    assert len(rows(trainer.folder.path, "communication.csv")) == 4


@pytest.mark.parametrize("method", [FedIT(rank=2), CELoRA(rank=2, similarity="model")])
def test_a_method_that_does_not_ask_is_sent_nothing_of_the_data(fit, monkeypatch, method):  # noqa: F811
    monkeypatch.setattr(federation, "features_of", lambda *_: pytest.fail("nobody asked"))
    summary, _ = fit(method=method, rounds=1)
    assert summary["parameters_up"] > 0


def test_models_of_clients_answer(fit, tiny_backbone, tiny_data, tmp_path):  # noqa: F811
    method = CELoRA(rank=2)
    summary, _ = fit(method=method, rounds=2)

    def ask(what, **keys):
        trainer = FederatedTrainer(accelerator="cpu", progress_bar=False, clients=5, loggers=False,
                                   default_root_dir=str(tmp_path / "runs"))  # fmt: skip
        data = TextClassificationData(
            str(tiny_data), batch_size=3, partition=Dirichlet(1.0), cache_dir=str(tmp_path / "cache")
        )
        return getattr(trainer, what)(TextClassification(tiny_backbone), data, method, "last", **keys)

    assert ask("validate") == pytest.approx(summary["final"])
    answers = {ask("predict", output=str(tmp_path / f"{c}.csv"), client=c).read_text() for c in range(5)}
    assert len(answers) == 5
