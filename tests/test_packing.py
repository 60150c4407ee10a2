import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fedgram import FedExLoRA, FedIT, FFALoRA, FLoRG
from fedgram.adapters.base import _PackedLowRank, add_low_rank
from fedgram.backbone.padding_free import Packing, install, packed, present
from fedgram.runs.checkpoint import load
from fedgram.state import flatten, stack
from test_block import make_network
from test_trainer import fit  # noqa: F401


def mask_of(lengths, width):
    return (torch.arange(width) < torch.tensor(lengths)[:, None]).long()


@settings(deadline=None)
@given(st.integers(1, 4), st.integers(1, 3), st.data())
def test_unpacking_undoes_packing_and_leaves_zeros_for_padding(clients, each, data):
    lengths = data.draw(st.lists(st.integers(1, 40), min_size=clients * each, max_size=clients * each))
    width = max(lengths) + data.draw(st.integers(0, 2))
    mask = mask_of(lengths, width)
    rows = torch.randn(len(lengths), width, 3, generator=torch.Generator().manual_seed(0))
    packing = Packing.of(mask, clients)
    tokens = packing.pack(rows)
    fillers = -sum(lengths) % max(1, 2 ** int(np.log2(sum(lengths))) // 8)
    assert tokens.shape == (1, sum(lengths) + fillers, 3)
    assert packing.samples == lengths
    assert packing.lengths == lengths + [fillers] * (fillers > 0)
    own = [sum(lengths[c * each : (c + 1) * each]) for c in range(clients)]
    assert packing.per_client == [*own[:-1], own[-1] + fillers]
    assert torch.equal(tokens[0, : lengths[0]], rows[0, : lengths[0]])
    assert torch.equal(packing.unpack(tokens), rows * mask.unsqueeze(-1))


def test_what_all_samples_have_in_common_is_given_to_each():
    packing = Packing.of(mask_of([2, 4, 1], 4), 1)
    positions = torch.arange(4.0).reshape(1, 4, 1)
    assert packing.pack(positions).flatten().tolist() == [0, 1, 0, 1, 2, 3, 0]


def test_a_batch_of_one_sample_is_packed_by_its_own_tokens():
    packing = Packing.of(mask_of([2], 4), 1)
    assert packing.pack(torch.arange(4.0).reshape(1, 4, 1)).flatten().tolist() == [0, 1]


def test_the_first_tokens_are_a_batch_of_one_column():
    packing = Packing.of(mask_of([2, 4, 1, 3], 4), 2)
    assert packing.starts().tolist() == [0, 2, 6, 7]
    first = packing.of_starts()
    tokens = torch.arange(4.0).reshape(1, 4, 1)
    assert torch.equal(first.unpack(tokens), tokens.transpose(0, 1))
    assert (first.lengths, first.per_client) == ([1] * 4, [2, 2])


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_every_client_multiplies_its_own_tokens(dtype):
    random = torch.Generator().manual_seed(0)
    sizes, tokens, d_in, d_out = [9, 5, 3], 18, 7, 4  # 18 is the next number with an eighth of 16
    x, y = (torch.randn(1, tokens, d, generator=random, dtype=torch.float64).to(dtype) for d in (d_in, d_out))
    down, up = (torch.randn(3, 2, d, generator=random, dtype=torch.float64) for d in (d_in, d_out))
    layers = nn.ModuleList([Probe(lambda hidden: add_low_rank(y, x, down, up, 0.5))])
    network = Stack(layers)
    padded = network.run(sizes)
    start = 0
    for client, size in enumerate(sizes):
        own = x[0, start : start + size].double() @ (0.5 * down[client].mT @ up[client]) + y[0, start : start + size]
        torch.testing.assert_close(
            padded[client, :size], own.to(dtype), rtol=0, atol=1e-12 if dtype == torch.float64 else 0.1
        )
        start += size


@pytest.mark.parametrize("needed", [(True, True, True, True), (True, False, True, True), (False, True, False, True)])
def test_the_gradients_of_packed_clients_are_those_of_differences(needed):
    random = torch.Generator().manual_seed(0)
    shapes = [(9, 4), (9, 7), (3, 2, 7), (3, 2, 4)]
    tensors = [torch.randn(*shape, generator=random, dtype=torch.float64) for shape in shapes]
    for tensor, need in zip(tensors, needed, strict=True):
        tensor.requires_grad_(need)

    def add(*given):
        return _PackedLowRank.apply(*given, 0.7, [3, 5, 1])

    assert torch.autograd.gradcheck(add, tensors)


class Probe(nn.Module):
    """A layer that computes a function of what it gets."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, hidden_states):
        return self.function(hidden_states)


class Stack(nn.Module):
    """What `install` needs of a network."""

    _supports_attention_backend = True

    def __init__(self, layers):
        super().__init__()
        self.layers = layers
        self.config = type("Config", (), {"num_hidden_layers": len(layers), "_attn_implementation": "sdpa"})()
        assert install(self)

    def run(self, lengths):
        hidden = torch.zeros(len(lengths), max(lengths), 4, dtype=torch.float64)
        with packed(Packing.of(mask_of(lengths, max(lengths)), len(lengths))):
            for layer in self.layers:
                hidden = layer(hidden)
        return hidden


def test_only_the_layers_see_packed_tokens():
    seen = []
    look = Probe(lambda hidden: seen.append((tuple(hidden.shape), present() is not None)) or hidden)
    network = Stack(nn.ModuleList([look, look]))
    assert network.run([2, 5]).shape == (2, 5, 4)
    assert seen == [((1, 7, 4), True)] * 2
    assert present() is None
    network.layers[0](torch.zeros(2, 5, 4))
    assert seen[-1] == ((2, 5, 4), False)


def test_a_layer_that_raises_leaves_no_packing_behind():
    network = Stack(nn.ModuleList([Probe(lambda hidden: hidden), Probe(lambda hidden: hidden[5])]))
    with pytest.raises(IndexError):
        network.run([2, 3])
    assert present() is None


def test_a_network_whose_layers_are_not_known_is_left_alone():
    network = nn.Module()
    network.config = type("Config", (), {"num_hidden_layers": 2, "_attn_implementation": "eager"})()
    network._supports_attention_backend = True
    network.layers = nn.ModuleList([nn.Linear(2, 2), nn.ReLU()])
    assert not install(network)
    assert network.config._attn_implementation == "eager"


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("method", [FLoRG(rank=2), FedIT(rank=2), FFALoRA(rank=2), FedExLoRA(rank=2)])
def test_packing_is_a_matter_of_speed(fit, method):  # noqa: F811
    states = []
    for packing in (True, False):
        _, trainer = fit(method=method, packing=packing, precision="64-true", local_steps=None, rounds=2)
        assert trainer.federation.network.packs is packing
        states.append(flatten(load(trainer.folder.checkpoint("last")).state))
    for key, tensor in states[0].items():
        torch.testing.assert_close(tensor, states[1][key], rtol=0, atol=1e-10)


def test_packing_computes_less(tiny_backbone, tiny_data):
    """The layers see as many rows as there are real tokens, of which a filler sample has one, and a few fillers."""
    network, data = make_network(tiny_backbone, tiny_data, FedIT(rank=2))
    assert install(network.task.loaded())
    network.packs, rows = True, np.array([0, 1, -1, 2, 3, 4])
    seen = []
    query = network.task.loaded().bert.encoder.layer[1].attention.self.key
    query.register_forward_pre_hook(lambda module, args: seen.append(tuple(args[0].shape[:2])))
    network.load(stack([network.initial_state()] * 2))
    network.run(data.split("train"), rows)
    lengths = data.split("train").lengths[[0, 1, 2, 3, 4]]
    assert seen == [(1, -(-(int(lengths.sum()) + 1) // 4) * 4)]


@pytest.mark.parametrize(("rows", "packs"), [([0, 0, 0], False), ([0, 0, -1], True)])
def test_a_batch_that_is_nearly_full_is_not_packed(tiny_backbone, tiny_data, rows, packs):
    network, data = make_network(tiny_backbone, tiny_data, FedIT(rank=2))
    assert install(network.task.loaded())
    network.packs, seen = True, []
    network.task.loaded().bert.encoder.layer[0].register_forward_pre_hook(lambda *_: seen.append(present() is not None))
    network.load_one(network.initial_state())
    network.run(data.split("train"), np.array(rows))
    assert seen == [packs]


def test_an_old_version_of_transformers_is_left_alone(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers.masking_utils", None)
    network = Stack.__new__(Stack)
    nn.Module.__init__(network)
    network.layers = nn.ModuleList([nn.Identity()])
    network.config = type("Config", (), {"num_hidden_layers": 1, "_attn_implementation": "sdpa"})()
    assert not install(network)
    assert network.config._attn_implementation == "sdpa"
