from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedgram import FLTAC, Dirichlet, FederatedTrainer, TextClassification, TextClassificationData
from fedgram.distributed.collectives import Ranks
from fedgram.distributed.uploads import Uploads
from fedgram.errors import ConfigurationError
from fedgram.methods import RoundContext
from fedgram.methods.client_memory import NOTHING, begin
from fedgram.methods.fl_tac import inner_products
from fedgram.runs.checkpoint import load
from fedgram.state import PARTS, ModelState, ServerState
from helpers import rng
from tables import rows
from test_trainer import fit  # noqa: F401

R, LAYERS, HEAD = 2, {"q": (11, 7), "v": (6, 6)}, {"weight": (2, 5), "bias": (2,)}


def v(random, size=1.0, head=1.0):
    """What one client sends: adapters of two layers, and a head."""
    adapters = {n: {"A": (R, d_in), "B": (d_out, R)} for n, (d_in, d_out) in LAYERS.items()}
    draw = lambda shape, size: torch.from_numpy(size * random.standard_normal(shape))  # noqa: E731
    return ModelState(
        {n: {f: draw(shape, size) for f, shape in layer.items()} for n, layer in adapters.items()},
        {"classifier": {f: draw(shape, head) for f, shape in HEAD.items()}},
    )


def plus(one, other, share=1.0):
    def total(layers, others):
        return {n: {f: t + share * others[n][f] for f, t in layer.items()} for n, layer in layers.items()}

    return ModelState(total(one.adapter, other.adapter), total(one.head, other.head))


def of_tasks(labels, seed=0, noise=0.1, **sizes):
    """Clients that all started with one v, went far for their task, and a little each for itself."""
    random = rng(seed)
    start, tasks = v(random, 5.0), [v(random, **sizes) for _ in range(max(labels) + 1)]
    return start, [plus(plus(start, tasks[label]), v(random), noise) for label in labels]


def aggregate(method, start, sent, weights=None, number=1):
    """One round: what the server holds afterwards, and what each client is answered."""
    ctx = RoundContext(number, 0, dict.fromkeys(range(len(sent)), number - 1), len(sent))
    given = dict(enumerate(weights if weights is not None else [1 / len(sent)] * len(sent)))
    parts = (Uploads({k: own.parts[part] for k, own in enumerate(sent)}, given, Ranks()) for part in PARTS)
    after = method.next_state(ServerState(start), *parts, ctx)
    return after, [method.answer(after, method.context(after, k, ctx)) for k in range(len(sent))]


def close(actual, expected, tolerance=1e-12):
    for part, layers in expected.parts.items():
        assert actual.parts[part].keys() == layers.keys()
        for name, layer in layers.items():
            for field, tensor in layer.items():
                torch.testing.assert_close(actual.parts[part][name][field], tensor, rtol=0, atol=tolerance)


def mean_of(sent, shares):
    total = plus(sent[0], sent[0], -1.0)
    for own, share in zip(sent, shares, strict=True):
        total = plus(total, own, share)
    return total


@given(st.lists(st.integers(0, 2), min_size=5, max_size=9), st.integers(0, 2**32 - 1))
@settings(max_examples=15, deadline=None)
def test_tasks_that_are_far_apart_are_found_and_averaged_each_for_itself(labels, seed):
    tasks = sorted(set(labels))
    labels = [tasks.index(label) for label in labels]
    start, sent = of_tasks(labels, seed)
    after, answers = aggregate(FLTAC(rank=R, clusters=len(tasks)), start, sent)
    groups = [[i for i, label in enumerate(labels) if label == task] for task in range(len(tasks))]
    for label, own in zip(labels, answers, strict=True):
        members = groups[label]
        close(own, mean_of([sent[i] for i in members], [1 / len(members)] * len(members)))
    seen = after.memory.globals["cluster"].tolist()
    assert all(len({seen[i] for i in members}) == 1 for members in groups)
    assert seen == [list(dict.fromkeys(labels)).index(label) for label in labels]  # numbered as they are first seen
    figures = FLTAC().figures(after)
    sizes = [len(members) for members in groups]
    assert figures == {"clusters": len(tasks), "largest_cluster": max(sizes), "smallest_cluster": min(sizes)}


def test_weights_count_inside_clusters_where_they_are_asked_to():
    labels, weights = [0, 1, 0, 1, 1], [0.4, 0.05, 0.1, 0.25, 0.2]
    start, sent = of_tasks(labels)
    kinds = ("plain", "weighted")
    plain, weighted = (aggregate(FLTAC(rank=R, clusters=2, mean=m), start, sent, weights)[1] for m in kinds)
    close(plain[0], mean_of([sent[0], sent[2]], [0.5, 0.5]))
    close(weighted[0], mean_of([sent[0], sent[2]], [0.8, 0.2]))
    close(weighted[4], mean_of([sent[1], sent[3], sent[4]], [0.1, 0.5, 0.4]))
    even = [aggregate(FLTAC(rank=R, clusters=2, mean=m), start, sent)[1] for m in kinds]
    for one, other in zip(*even, strict=True):
        close(one, other)


@pytest.mark.parametrize("clients", [1, 2, 3])
def test_no_more_clients_than_clusters_keep_their_own(clients):
    start, sent = of_tasks([0] * clients)
    for own, answer in zip(sent, aggregate(FLTAC(rank=R, clusters=3), start, sent)[1], strict=True):
        close(answer, own, 0.0)


def test_clients_that_are_identical_get_back_what_they_sent():
    start, sent = of_tasks([0])
    after, answers = aggregate(FLTAC(rank=R, clusters=2), start, sent * 5)
    for own in answers:
        close(own, sent[0])
    assert after.memory.globals["cluster"].tolist() == [0] * 5


def test_b_alone_separates_tasks_that_noise_in_a_hides():
    labels = [0, 1, 0, 1, 0, 1]
    start, sent = of_tasks(labels)
    random = rng(7)
    for own in sent:
        for layer in own.adapter.values():
            layer["A"] += torch.from_numpy(30 * random.standard_normal(layer["A"].shape))
    found = {
        on: aggregate(FLTAC(rank=R, clusters=2, cluster_on=on), start, sent)[0].memory.globals["cluster"].tolist()
        for on in ("B", "adapter", "all")
    }
    assert found["B"] == labels
    assert found["adapter"] != labels
    assert found["all"] != labels


def test_heads_alone_separate_tasks_where_all_is_compared():
    labels = [0, 1, 0, 1, 0, 1]
    start, sent = of_tasks(labels, size=0.0, head=30.0, noise=1.0)
    found = {
        on: aggregate(FLTAC(rank=R, clusters=2, cluster_on=on), start, sent)[0].memory.globals["cluster"].tolist()
        for on in ("all", "adapter")
    }
    assert found["all"] == labels
    assert found["adapter"] != labels


@pytest.mark.parametrize("head", ["local", "frozen"])
def test_a_head_that_stays_at_home_is_neither_compared_nor_answered(head):
    labels = [0, 1, 0, 1]
    start, sent = of_tasks(labels)
    sent = [replace(own, head={}) for own in sent]
    after, answers = aggregate(FLTAC(rank=R, clusters=2, head=head, cluster_on="all"), start, sent)
    assert after.memory.globals["cluster"].tolist() == labels
    assert all(own.head == {} for own in answers)


def test_what_all_have_in_common_takes_no_digits_from_what_they_differ_in():
    random = rng(1)
    own = random.standard_normal((4, 3, 5))
    found = inner_products(torch.from_numpy(own + 1e6))
    centred = (own - own.mean(axis=0)).reshape(4, -1)
    np.testing.assert_allclose(found.numpy(), centred @ centred.T, rtol=0, atol=1e-7)


def test_a_client_that_comes_late_is_sent_the_mean_of_all_and_nobody_else_anything():
    start, sent = of_tasks([0, 1, 0, 1])
    after, _ = aggregate(FLTAC(rank=R, clusters=2), start, sent)
    for head in ("averaged", "local"):
        method = FLTAC(rank=R, clusters=2, head=head)

        def begun(number, last, kept=NOTHING, method=method):
            ctx = method.context(after, 5, RoundContext(number, 0, {5: last}, 6))
            return begin(method, after, start, kept, ctx)

        for number, last, kept in ((1, 0, NOTHING), (3, 2, sent[3]), (3, 1, sent[3])):
            payload, own = begun(number, last, kept)
            assert payload == NOTHING
            close(own, sent[3] if last else start, 0.0)
        payload, own = begun(3, 0)
        mean = mean_of(sent, [0.25] * 4)
        close(payload, mean if head == "averaged" else replace(mean, head={}))
        close(own, mean if head == "averaged" else replace(mean, head=start.head))


def checkpoint(trainer):
    return load(trainer.folder.checkpoint("last"))


@pytest.mark.parametrize(("head", "extra"), [("averaged", 34), ("local", 0), ("frozen", 0)])
def test_q_numbers_go_each_way_and_the_head_where_it_is_sent(fit, head, extra):  # noqa: F811
    """All five clients, four layers of 16 to 16, rank 2, a head of 2 x 16 and 2."""
    summary, trainer = fit(method=FLTAC(rank=2, clusters=2, head=head), rounds=2)
    assert summary["parameters_up"] == summary["parameters_down"] == 2 * 5 * (4 * 2 * 32 + extra)
    table = rows(trainer.folder.path, "communication.csv")
    assert {row["clients"] for row in table} == {"5"}
    metrics = rows(trainer.folder.path)
    assert [row["clusters"] for row in metrics[1:]] == ["2", "2"]
    assert all(int(row["largest_cluster"]) + int(row["smallest_cluster"]) == 5 for row in metrics[1:])


def test_every_client_keeps_the_mean_of_its_cluster_and_has_that_as_its_model(fit):  # noqa: F811
    _, trainer = fit(method=FLTAC(rank=2, clusters=2), rounds=2)
    after = checkpoint(trainer)
    labels, name = after.state.memory.globals["cluster"].tolist(), next(iter(after.state.adapter))
    assert len(set(labels)) == 2
    for label, client in zip(labels, sorted(after.clients), strict=True):
        own = after.clients[client]
        assert torch.equal(own[f"adapter|{name}|B"], after.state.memory.layers[name]["B"][label])
        assert torch.equal(own["head|classifier|weight"], after.state.memory.layers["classifier"]["weight"][label])
        model = trainer.federation.models().of(client)
        assert torch.equal(model.adapter[name]["A"], own[f"adapter|{name}|A"])


def test_a_client_that_is_absent_keeps_what_it_has(fit):  # noqa: F811
    method = FLTAC(rank=2, clusters=2)
    runs = [fit(method=method, rounds=n, participation=3, name=str(n))[1] for n in (1, 2)]
    before, after = (checkpoint(trainer).clients for trainer in runs)
    absent = set(before) - set(runs[1].federation._cohort(2))
    assert absent
    for client in absent:
        assert all(torch.equal(after[client][key], tensor) for key, tensor in before[client].items())


def test_models_of_clients_answer(fit, tiny_backbone, tiny_data, tmp_path):  # noqa: F811
    method = FLTAC(rank=2, clusters=2)
    summary, trainer = fit(method=method, rounds=2)
    labels = checkpoint(trainer).state.memory.globals["cluster"].tolist()

    def ask(what, **keys):
        trainer = FederatedTrainer(accelerator="cpu", progress_bar=False, clients=5, loggers=False,
                                   default_root_dir=str(tmp_path / "runs"))  # fmt: skip
        data = TextClassificationData(
            str(tiny_data), batch_size=3, partition=Dirichlet(1.0), cache_dir=str(tmp_path / "cache")
        )
        return getattr(trainer, what)(TextClassification(tiny_backbone), data, method, "last", **keys)

    assert ask("validate") == pytest.approx(summary["final"])
    answers = [ask("predict", output=str(tmp_path / f"{c}.csv"), client=c).read_text() for c in range(5)]
    assert [answers.index(answer) for answer in answers] == [labels.index(label) for label in labels]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"clusters": 0}, r"method\.clusters must be at least 1, got 0"),
        ({"cluster_on": "A"}, r"method\.cluster_on .*adapter.*B.*all.*A"),
        ({"mean": "median"}, r"method\.mean .*plain.*weighted.*median"),
        ({"client_ranks": [1, 2]}, "FLTAC is not defined for ranks that differ"),
    ],
)
def test_settings_out_of_range_are_errors(given, message):
    with pytest.raises(ConfigurationError, match=message):
        FLTAC(**given)


def test_variants_have_names_of_their_own():
    assert [FLTAC().name, FLTAC(cluster_on="B", mean="weighted").name] == ["FLTAC", "FLTAC-B-weighted"]
