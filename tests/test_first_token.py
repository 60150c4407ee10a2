import pytest
import torch
from torch import nn

from fedgram import FedIT
from fedgram.backbone import attention, first_token
from fedgram.backbone.padding_free import Packing, install, packed, present
from fedgram.engine.shortcuts import shorten
from test_block import make_network


@pytest.fixture(params=["padded", "packed"])
def ready(request, tiny_backbone, tiny_data):
    """A network whose last layer is short, and the layer."""
    network, data = make_network(tiny_backbone, tiny_data, FedIT(rank=2))
    shorten(network, data.split("train"), "64-true")
    network.packs = request.param == "packed"
    network.load_one(network.initial_state())
    return network, network.task.loaded().bert.encoder.layer, data.split("train")


ROWS = [0, -1, 3, 5]


def shapes_of(module):
    seen = []
    module.register_forward_pre_hook(lambda _, args: seen.append(tuple(args[0].shape)))
    return seen


def test_what_follows_attention_sees_first_tokens_alone(ready):
    network, layers, table = ready
    short, full = shapes_of(layers[-1].intermediate.dense), shapes_of(layers[0].intermediate.dense)
    network.run(table, torch.tensor(ROWS).numpy())
    assert short == ([(1, 4, 16)] if network.packs else [(4, 1, 16)])
    assert full[0][0] * full[0][1] > 4


def test_keys_are_those_of_all_tokens(ready):
    network, layers, table = ready
    seen = shapes_of(layers[-1].attention.self.key)
    full = shapes_of(layers[0].attention.self.key)
    network.run(table, torch.tensor(ROWS).numpy())
    assert seen[0] == full[0]


def test_no_trace_is_left(ready):
    network, _, table = ready
    network.run(table, torch.tensor(ROWS).numpy())
    assert present() is None
    assert attention.rule.get() is None


def test_it_can_be_undone(ready):
    network, layers, table = ready
    first_token.uninstall(layers[-1])
    seen, full = shapes_of(layers[-1].intermediate.dense), shapes_of(layers[0].intermediate.dense)
    network.run(table, torch.tensor(ROWS).numpy())
    assert seen == full


def test_a_layer_that_follows_no_rules_says_what_it_says():
    class Plain(nn.Module):
        def forward(self, hidden_states):
            return 2 * hidden_states

    class Stack(nn.Module):
        _supports_attention_backend = True

        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList([Plain(), Plain()])
            self.config = type("Config", (), {"num_hidden_layers": 2, "_attn_implementation": "sdpa"})()

    network, hidden = Stack(), torch.ones(2, 3, 4)
    assert install(network)
    first_token.install(network.layers[-1])
    mask = torch.tensor([[1, 1, 1], [1, 0, 0]])
    with packed(Packing.of(mask, 1)):
        said = network.layers[1](network.layers[0](hidden))
    torch.testing.assert_close(said, 4 * mask.unsqueeze(-1).float().expand(2, 3, 4))
