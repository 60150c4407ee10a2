import pytest
import torch

from fedgram import FedIT
from fedgram.backbone import first_token
from fedgram.backbone import padding_free as packing
from fedgram.backbone.padding_free import present
from fedgram.engine.shortcuts import shorten
from test_block import make_network
from test_trainer import fit  # noqa: F401

pytestmark = pytest.mark.trials


@pytest.fixture
def ready(tiny_backbone, tiny_data):
    network, data = make_network(tiny_backbone, tiny_data, FedIT(rank=2))
    return network, network.task.loaded(), data.split("train")


def is_short(layer):
    return "forward" in vars(layer)


def test_a_backbone_is_tried_padded_and_packed(ready):
    network, backbone, table = ready
    seen = []
    backbone.bert.encoder.layer[0].register_forward_pre_hook(lambda *_: seen.append(present() is not None))
    shorten(network, table, "64-true")
    assert network.packs
    assert is_short(backbone.bert.encoder.layer[-1])
    assert seen[0] is False
    assert seen[-1] is True


def test_what_a_backbone_says_otherwise_is_left_as_it_is(ready, monkeypatch):
    network, backbone, table = ready
    monkeypatch.setattr(packing.Packing, "unpack", lambda self, tokens: 2 * tokens.new_ones(*self.shape, 16))
    monkeypatch.setattr(first_token, "_instead", lambda *_: lambda *given, **_: (0 * given[1].transpose(1, 2), None))
    shorten(network, table, "64-true")
    assert not network.packs
    assert not is_short(backbone.bert.encoder.layer[-1])


@pytest.mark.parametrize("read", [lambda h: h.mean(dim=1), lambda h: h[:, 1], lambda h: h.amax(dim=1)])
def test_a_head_that_reads_other_tokens_has_a_whole_last_layer(ready, read):
    network, backbone, table = ready
    backbone.bert.pooler.forward = read
    shorten(network, table, "64-true")
    assert not is_short(backbone.bert.encoder.layer[-1])


def test_the_trial_leaves_no_hook_behind(ready):
    network, backbone, table = ready
    backbone.bert.pooler.forward = lambda hidden: hidden.mean(dim=1)
    shorten(network, table, "64-true")
    network.load_one(network.initial_state())
    assert torch.isfinite(network.run(table, table.offsets[:3] * 0)[0]["logits"]).all()


def test_a_backbone_of_unknown_layers_is_left_alone(ready, monkeypatch):
    network, backbone, table = ready
    backbone.config.num_hidden_layers = 77
    shorten(network, table, "64-true")
    assert not network.packs
    assert not is_short(backbone.bert.encoder.layer[-1])


def test_a_run_may_go_without(fit):  # noqa: F811
    _, trainer = fit(rounds=1, packing=False)
    network = trainer.federation.network
    assert not network.packs
    assert not is_short(network.task.loaded().bert.encoder.layer[-1])
