import pytest
import torch
from torch import nn

from fedgram.adapters import GramAdapter, HeadLinear, LoraAdapter
from fedgram.errors import ConfigurationError
from fedgram.methods import FeDeRA, FedExLoRA, FedIT, FedSALoRA, FFALoRA, Field, FLoRG, RoundInfo
from fedgram.methods.base import Method
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


def test_only_declared_fields_travel():
    class OneWay(Method):
        fields = (Field("A", up=False), Field("B", down=False), Field("C", down=False, up=False))

        def adapter(self, linear, generator):
            raise NotImplementedError

        def aggregate(self, layers, uploads, info):
            raise NotImplementedError

    layers = {"q": {field: torch.zeros(2) for field in "ABC"}}
    method = OneWay()
    assert {name: list(layer) for name, layer in method.download(layers, 0, INFO).items()} == {"q": ["A"]}
    assert {name: list(layer) for name, layer in method.upload(layers, layers, 0, INFO).items()} == {"q": ["B"]}
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
    state = {"adapter": {"q": fields}, "head": {} if policy == "frozen" else head}
    travels = policy == "averaged"
    server = {**state, "server": {}}
    assert (chosen.payload_down(server, 5, INFO)["head"] == head) == travels
    assert (chosen.payload_up(server, state, state, 5, INFO)["head"] == head) == travels
    assert (chosen.kept(state)["head"] == head) == (policy == "local")
    assert chosen.personal == (policy == "local" or method is FedSALoRA)


def test_a_policy_that_there_is_not_is_an_error():
    with pytest.raises(ConfigurationError, match=r"method\.head .*averaged.*local.*frozen.*shared"):
        FLoRG(head="shared")


def test_what_a_round_tells_of_its_clients():
    info = RoundInfo(4, 0, {1: 3, 2: 1, 3: 0})
    assert [info.is_new(client) for client in (1, 2, 3)] == [False, False, True]
    assert [info.is_up_to_date(client) for client in (1, 2, 3)] == [True, False, False]
    assert RoundInfo(1, 0, {1: 0}).is_up_to_date(1)


def test_variants_have_names_of_their_own():
    """They stand beside each other in tables, and in folders."""
    variants = [FeDeRA(), FeDeRA(when="round"), FedExLoRA(), FedExLoRA(residual="factored"), FLoRG(), FLoRG(rank=2)]
    assert [v.name for v in variants] == ["FeDeRA", "FeDeRA-round", "FedExLoRA", "FedExLoRA-factored", "FLoRG", "FLoRG"]
    assert FLoRG(projection="none").name == "FLoRG-none"
    assert FLoRG(projection="top_r", basis="svd").name == "FLoRG-top_r-svd"
