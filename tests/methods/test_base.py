import pytest
import torch
from torch import nn

from fedgram.adapters import GramAdapter, HeadLinear, LoraAdapter
from fedgram.errors import ConfigurationError
from fedgram.methods import FeDeRA, FedExLoRA, FedIT, FedSALoRA, FFALoRA, Field, FLoRG, Phase, RoundContext
from fedgram.methods.base import Method
from fedgram.methods.client_memory import read
from fedgram.state import ModelState, Payload, ServerState
from helpers import INFO

METHODS = [FedIT, FLoRG, FeDeRA, FFALoRA, FedSALoRA, FedExLoRA]


class Tiny(nn.Module):
    """A backbone of two layers, one narrower than the other, with a head."""

    base_model_prefix = "core"

    def __init__(self):
        super().__init__()
        self.core = nn.ModuleDict({"query": nn.Linear(9, 6), "mid": nn.Linear(6, 6), "value": nn.Linear(6, 3)})
        self.classifier = nn.Linear(3, 2)


def make_backbone():
    with torch.random.fork_rng(devices=[]):
        return Tiny()


@pytest.mark.parametrize("method", METHODS)
def test_rank_and_alpha_must_make_sense(method):
    assert method(rank=4, alpha=6.0).scale == 1.5
    for rank in (0, -1):
        with pytest.raises(ConfigurationError, match=rf"method\.rank must be at least 1, got {rank}"):
            method(rank=rank)
    for alpha in (0.0, -2.0):
        with pytest.raises(ConfigurationError, match=rf"method\.alpha must be positive, got {alpha}"):
            method(alpha=alpha)


@pytest.mark.parametrize("method", METHODS)
def test_a_rank_beyond_the_smallest_layer_is_an_error_that_names_it(method):
    method(rank=3).install(make_backbone(), 0)
    with pytest.raises(ConfigurationError, match=r"min\(d_in, d_out\) = 3 of core\.value, .*; got 4"):
        method(rank=4).install(make_backbone(), 0)


@pytest.mark.parametrize(("method", "kind"), [(FedIT, LoraAdapter), (FLoRG, GramAdapter)])
def test_install_puts_adapters_on_the_targets_and_weights_per_client_into_the_head(method, kind):
    backbone = make_backbone()
    layers = method(rank=2).install(backbone, 0)
    assert {name: type(layer) for name, layer in layers.items()} == {
        "core.query": kind,
        "core.value": kind,
        "classifier": HeadLinear,
    }
    assert all(backbone.get_submodule(name) is layer for name, layer in layers.items())
    assert {(layer.rank, layer.scale) for name, layer in layers.items() if name != "classifier"} == {(2, 8.0)}


def test_a_frozen_head_stays_and_targets_can_be_chosen():
    backbone = make_backbone()
    layers = FLoRG(rank=2, target_modules=["mid"], head="frozen").install(backbone, 0)
    assert list(layers) == ["core.mid"]
    assert type(backbone.classifier) is nn.Linear


@pytest.mark.parametrize("method", [FedIT(rank=2), FLoRG(rank=2), FLoRG(rank=2, basis="kaiming")])
def test_every_seed_has_a_start_of_its_own_and_always_the_same(method):
    def start(seed):
        layers = {n: layer for n, layer in method.install(make_backbone(), seed).items() if layer.part == "adapter"}
        return {n: layer.initial()["A"] for n, layer in layers.items()}, layers

    one, layers = start(0)
    again, layers_again = start(0)
    other, layers_other = start(1)
    for name in one:
        assert torch.equal(one[name], again[name])
        if isinstance(method, FLoRG):
            assert not torch.equal(one[name], other[name])
            for basis in ("L", "R"):
                drawn = [getattr(found[name], basis) for found in (layers, layers_again, layers_other)]
                if drawn[0] is not None:
                    assert torch.equal(drawn[0], drawn[1])
                    assert not torch.equal(drawn[0], drawn[2])


class Unbuilt(Method):
    """A method without a model, for what its fields alone decide."""

    def adapter(self, linear, generator):
        raise NotImplementedError

    def aggregate(self, layers, uploads, ctx):
        raise NotImplementedError


class Turns(Unbuilt):
    """Trains B in odd rounds and A in even ones; D is the server's, in steps of four numbers; A is redrawn after 4."""

    fields = (
        Field("A"),
        Field("B"),
        Field("C", down=False),
        Field("D", up=False, trained=False, increments=("steps",)),
        Field("steps", down=False, up=False, trained=False),
    )

    def phases(self, number):
        return Phase(frozenset("B" if number % 2 else "A"), 0.5, "first"), Phase(frozenset("C"), 0.5, "own")

    def redrawn(self, number):
        return frozenset("A" if number == 4 else ())

    def derived(self, held, sent):
        return {"D": lambda: held["D"] + sent["steps"].sum(0)} if "steps" in sent else {}


def test_only_declared_fields_travel():
    class OneWay(Unbuilt):
        fields = (Field("A", up=False), Field("B", down=False), Field("C", down=False, up=False))

    layers = {"q": {field: torch.zeros(2) for field in "ABC"}}
    method, state = OneWay(), ServerState(ModelState(layers))
    ctx = method.context(state, 0, INFO)
    down, up = method.download(state, ctx), method.upload(state.model, state.model, ctx)
    assert {name: list(layer) for name, layer in down.adapter.items()} == {"q": ["A"]}
    assert {name: list(layer) for name, layer in up.adapter.items()} == {"q": ["B"]}
    assert method.name == "OneWay"
    assert method.diagnose(layers, layers, None) == {}


def test_the_head_is_what_each_paper_makes_of_it():
    assert {method.__name__: method().head for method in METHODS} == {
        "FLoRG": "averaged",
        "FedIT": "averaged",
        "FeDeRA": "averaged",
        "FFALoRA": "frozen",
        "FedSALoRA": "local",
        "FedExLoRA": "averaged",
    }


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("policy", ["averaged", "local", "frozen"])
def test_the_head_goes_where_its_policy_says(method, policy):
    """Averaged it travels, local it is kept, frozen it is in no state."""
    chosen, head = method(head=policy), {"out": {"weight": torch.zeros(2)}}
    fields = {field.name: torch.zeros(2, 2) for field in chosen.fields}
    state = ModelState({"q": fields}, {} if policy == "frozen" else head)
    travels = policy == "averaged"
    server = ServerState(state)
    ctx = chosen.context(server, 5, INFO)
    assert (chosen.download(server, ctx).head == head) == travels
    assert (chosen.upload(state, state, ctx).head == head) == travels
    assert (chosen.kept(state).head == head) == (policy == "local")
    assert chosen.personal == (policy == "local" or method is FedSALoRA)


def test_a_policy_that_there_is_not_is_an_error():
    with pytest.raises(ConfigurationError, match=r"method\.head .*averaged.*local.*frozen.*shared"):
        FLoRG(head="shared")


def test_what_a_client_knows_of_its_round():
    ctx = RoundContext(4, 0, {1: 3, 2: 1, 3: 0}, 4)
    clients = [FedIT(rank=5, client_ranks=[5, 1, 2, 3]).context({}, client, ctx) for client in (1, 2, 3)]
    assert all(client.round is ctx for client in clients)
    assert [client.client for client in clients] == [1, 2, 3]
    assert [client.rank for client in clients] == [1, 2, 3]
    assert [client.last_round for client in clients] == [3, 1, 0]
    assert [client.is_new for client in clients] == [False, False, True]


def test_a_round_changes_what_clients_train_in_it_and_what_the_server_alone_makes():
    assert [Turns().changes(number) for number in (1, 2, 3)] == [{"B", "D"}, {"A", "D"}, {"B", "D"}]
    assert FedIT(rank=2).changes(1) == {"A", "B"}
    assert FFALoRA(rank=2).changes(7) == {"B"}
    assert FedSALoRA(rank=2).changes(7) == {"A"}


@pytest.mark.parametrize(
    ("number", "last_round", "lacking"),
    [
        (1, 0, (0, 0, 0)),  # all comes from the seed
        (2, 0, (0, 1, 1)),
        (2, 1, (0, 1, 1)),  # a client of round 1 lacks what came of it, as one that was never there does
        (4, 3, (0, 1, 1)),
        (4, 2, (1, 1, 2)),
        (4, 0, (1, 1, 3)),
        (5, 4, (0, 0, 1)),  # A is drawn by all
        (6, 0, (0, 1, 5)),
        (7, 4, (1, 1, 3)),
    ],
)
def test_a_client_lacks_what_has_changed_since_it_was_last_there(number, last_round, lacking):
    missed = {field.name: count for field, count in Turns().missed_changes(last_round, number).items()}
    assert missed == dict(zip("ABD", lacking, strict=True))


@pytest.mark.parametrize(("last_round", "sent"), [(9, 1), (8, 2), (7, None), (0, None)])
def test_changes_are_sent_one_by_one_where_they_are_fewer_numbers_than_the_sum(last_round, sent):
    """Of a D of twelve numbers, after nine rounds of four numbers each."""
    steps = torch.arange(36.0).reshape(9, 4)
    layer = {"A": torch.zeros(2), "B": torch.zeros(2), "C": torch.zeros(2), "steps": steps}
    layer["D"] = steps.sum(0).expand(3, 4)
    method, ctx = Turns(), RoundContext(10, 0, {0: last_round}, 1)
    state = ServerState(ModelState({"q": layer}))
    payload = method.download(state, method.context(state, 0, ctx)).adapter["q"]
    assert payload.keys() & {"D", "steps"} == {"D" if sent is None else "steps"}
    if sent is None:
        assert torch.equal(payload["D"], layer["D"])
    else:
        assert torch.equal(payload["steps"], steps[-sent:])
        before = ModelState({"q": layer | {"D": steps[:-sent].sum(0).expand(3, 4)}})
        known = read(method, before, Payload({"q": payload}), method.context(state, 0, ctx))
        assert torch.equal(known.adapter["q"]["D"], layer["D"])


def test_a_server_that_keeps_too_few_changes_sends_the_sum():
    layer = {f: torch.zeros(2) for f in "ABC"} | {"D": torch.zeros(3, 4), "steps": torch.zeros(1, 4)}
    method, state = Turns(), ServerState(ModelState({"q": layer}))
    ctx = RoundContext(10, 0, {0: 9, 1: 8}, 2)
    sent = [method.download(state, method.context(state, c, ctx)).adapter["q"].keys() for c in (0, 1)]
    assert [keys & {"D", "steps"} for keys in sent] == [{"steps"}, {"D"}]


def test_variants_have_names_of_their_own():
    """They stand beside each other in tables, and in folders."""
    variants = [FeDeRA(), FeDeRA(when="round"), FedExLoRA(), FedExLoRA(residual="factored"), FLoRG(), FLoRG(rank=2)]
    assert [v.name for v in variants] == ["FeDeRA", "FeDeRA-round", "FedExLoRA", "FedExLoRA-factored", "FLoRG", "FLoRG"]
    assert FLoRG(projection="none").name == "FLoRG-none"
    assert FLoRG(projection="top_r", basis="svd").name == "FLoRG-top_r-svd"
