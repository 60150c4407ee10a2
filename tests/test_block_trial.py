"""Layers that models use in unusual ways: clients are trained right in blocks, one at a time, or refused."""

import contextlib
import logging
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from fedgram.adapters.inject import linear_layers
from fedgram.backbone import frozen_linear as frozen
from fedgram.backbone.padding_free import Packing
from fedgram.data import TokenTable
from fedgram.engine.block import _rectangle, train_block
from fedgram.engine.block_trial import BlockTrial, _client, try_blocks
from fedgram.engine.network import ClientNetwork
from fedgram.engine.shortcuts import shorten
from fedgram.errors import ConfigurationError
from fedgram.federation import setup
from fedgram.methods import FeDeRA, FedIT, FLoRG, FRLoRA, SLoRA
from fedgram.models import TextClassification
from fedgram.models.loading import cast
from fedgram.optim import SGD
from fedgram.state import flatten
from test_trainer import fit  # noqa: F401

WIDTH = 16
BERT = {"hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 24}
BART = {"d_model": WIDTH, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 4,
        "decoder_attention_heads": 4, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24}  # fmt: skip
SMALL = {"vocab_size": 30, "num_labels": 3, "pad_token_id": 0, "eos_token_id": 3, "max_position_embeddings": 64}
NO_LIMIT = {name: value for name, value in SMALL.items() if name != "max_position_embeddings"}


class Wrapped(nn.Module):
    """Stands in for a layer of a model, and has it under the name ``inner``."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner


class PositionsFirst(Wrapped):
    def forward(self, x):
        return self.inner(x.transpose(0, 1)).transpose(0, 1)


class OneAxis(Wrapped):
    def forward(self, x):
        return self.inner(x.reshape(-1, x.shape[-1])).view(*x.shape[:-1], -1)


class Halved(Wrapped):
    def forward(self, x):
        y = self.inner(x)
        y /= 2
        return y


class Clamped(Wrapped):
    def forward(self, x):
        return self.inner(x).clamp_(-0.5, 0.5)


class AsksForItsType(Wrapped):
    def forward(self, x):
        assert self.inner.weight.shape == (self.inner.out_features, self.inner.in_features)
        return self.inner(x.to(self.inner.weight.dtype)) + 0 * self.inner.bias.sum()


class Twice(Wrapped):
    def forward(self, x):
        return self.inner(x) + self.inner(x.tanh())


class OneAxisPositionsFirst(Wrapped):
    def forward(self, x):
        y = self.inner(x.transpose(0, 1).reshape(-1, x.shape[-1]))
        return y.view(x.shape[1], x.shape[0], -1).transpose(0, 1)


class Sorted(Wrapped):
    """As experts get their tokens: in another order than that of the rows."""

    def forward(self, x):
        tokens = x.reshape(-1, x.shape[-1])
        order = tokens[:, 0].argsort()
        y = self.inner(tokens[order])
        return torch.zeros_like(y).index_copy(0, order, y).view(*x.shape[:-1], -1)


class Shared(Wrapped):
    """As relative positions are projected: once for all rows."""

    def forward(self, x):
        return self.inner(x) + self.inner(torch.ones(6, 1, x.shape[-1], dtype=x.dtype)).sum()


class TokensOfOneKind(Wrapped):
    """As an expert that some batches do not need."""

    def forward(self, x):
        return self.inner(x) if x.shape[1] > 40 else x


class Past(Wrapped):
    def forward(self, x):
        return functional.linear(x, self.inner.weight, self.inner.bias)


class PartlyPast(Wrapped):
    def forward(self, x):
        return self.inner(x) + x @ self.inner.weight.mT


class SpoilsItsInput(Wrapped):
    def forward(self, x):
        x = x.clone()
        y = self.inner(x)
        x *= 0
        return y


class Dropped(Wrapped):
    def forward(self, x):
        self.inner(x)
        return x


def build(
    wrap=None,
    family="bert",
    method=None,
    plain=False,
    dtype=torch.float64,
    place="bert.encoder.layer.1.attention.self.value",
    **settings,
):
    """Return a network with a layer of a tiny model wrapped, and adapters on it and on the others of its kind."""
    from transformers import AutoConfig, AutoModelForSequenceClassification

    config = AutoConfig.for_model(family, **{**(SMALL if family != "xlnet" else NO_LIMIT), **BERT, **settings})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForSequenceClassification.from_config(config).eval().requires_grad_(False)
        for parameter in model.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
    cast(model, dtype)
    model.config.use_cache = False
    if wrap is not None:
        parent, _, name = place.rpartition(".")
        setattr(model.get_submodule(parent), name, wrap(model.get_submodule(place)))
    frozen.install(linear_layers(model).values())
    task = TextClassification(f"tiny-{family}", dtype="float32")
    task.network, task.weights_dtype = model, dtype
    method = method or FedIT(rank=2, target_modules=["value", "inner"] if wrap else None)
    clients_dtype = torch.float64 if dtype == torch.float64 else torch.float32
    layers = {} if plain else method.install(model, seed=0)
    return ClientNetwork(task, layers, torch.device("cpu"), clients_dtype, contextlib.nullcontext, 0)


LENGTHS = (8, 15, 9, 12, 20, 3)


def samples(lengths=LENGTHS):
    generator = np.random.default_rng(0)
    ids = [np.append(generator.integers(4, 30, n - 1), 3) for n in lengths]
    offsets = np.cumsum([0, *lengths])
    return TokenTable(np.concatenate(ids).astype(np.int32), None, offsets, np.arange(len(lengths)) % 3)


def check_training(network, lengths=LENGTHS):
    """Train three clients in a block and alone; they must end with the same."""
    table, batches = samples(lengths), [[np.array([0, 4, 5])] * 2, [np.array([1, 3])], [np.array([2, 1, 0])]]
    start = [_client(network, number) for number in range(3)]
    together = train_block(network, SGD(lr=0.1), start, table, batches).states
    for client, own in enumerate(start):
        (alone,) = train_block(network, SGD(lr=0.1), [own], table, batches[client : client + 1]).states
        for key, tensor in flatten(alone).items():
            torch.testing.assert_close(flatten(together[client])[key], tensor, rtol=0, atol=1e-9)


@pytest.mark.parametrize("packs", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("wrap", [PositionsFirst, OneAxis, Halved, Clamped, AsksForItsType, Twice])
@pytest.mark.parametrize(
    "method",
    [
        FedIT(rank=2, target_modules=["value", "inner"]),
        FLoRG(rank=2, init_std=0.3, target_modules=["value", "inner"]),
        SLoRA(rank=2, target_modules=["value", "inner"]),
    ],
    ids=lambda method: method.name,
)
def test_layers_that_are_used_in_unusual_ways_are_trained_in_blocks(wrap, method, packs):
    network = build(wrap, method=method)
    if packs:
        shorten(network, samples(), "64-true")
        assert network.packs
    trial = try_blocks(network, samples())
    assert trial.alone is None
    assert not trial.notes
    assert network.packs == packs
    axes = [layer.rows_axis for layer in network.layers.values()]
    assert axes == [0, int(wrap is PositionsFirst), 0]
    check_training(network)


@pytest.mark.parametrize("wrap", [OneAxisPositionsFirst, Sorted, Shared, TokensOfOneKind])
def test_layers_that_mix_the_rows_of_a_batch_are_trained_one_client_at_a_time(wrap):
    trial = try_blocks(build(wrap), samples())
    assert trial.alone is not None
    if wrap in (Shared, TokensOfOneKind):
        assert "bert.encoder.layer.1.attention.self.value.inner" in trial.alone


@pytest.mark.parametrize("wrap", [Past, PartlyPast])
def test_a_model_that_computes_with_a_layers_weight_itself_is_refused(wrap):
    with pytest.raises(ConfigurationError, match=r"with the weights of \S+\.1\.attention\.self\.value\.inner itself"):
        try_blocks(build(wrap), samples())


def test_a_model_that_spoils_what_it_gave_a_layer_is_refused_in_a_line():
    with pytest.raises(
        ConfigurationError, match=r"'tiny-bert' can't be trained with .* adapted .*inplace.*name other layers"
    ) as caught:
        try_blocks(build(SpoilsItsInput), samples())
    assert "\n" not in str(caught.value)


def test_adapters_that_change_nothing_are_named():
    trial = try_blocks(build(Dropped), samples())
    assert trial.alone is None
    (note,) = trial.notes
    assert note.startswith("adapters on bert.encoder.layer.1.attention.self.value.inner got no gradient")
    with pytest.raises(ConfigurationError, match=r"adapters on \S+\.1\.attention\.self\.value\.inner no gradient"):
        try_blocks(build(Dropped, method=FedIT(rank=2, target_modules=["inner"])), samples())


MOE = {"num_local_experts": 4, "num_key_value_heads": 2}
BLOCKS = {
    "xlnet": (["layer_1", "layer_2"], {"d_model": WIDTH, "n_layer": 2, "n_head": 4, "d_inner": 24}),  # positions first
    "longformer": (["key", "value"], {"attention_window": 4}),  # positions first
    "albert": (None, {"embedding_size": WIDTH, "num_hidden_layers": 3}),  # one layer, used three times
    "olmo": (None, {"clip_qkv": 0.5}),  # clamps in place
    "opt": (["fc1"], {"ffn_dim": 24, "word_embed_proj_dim": WIDTH}),  # rows and positions as one axis
    "mt5": (["wo"], {"d_kv": 4, "d_ff": 24, "num_layers": 1, "num_heads": 4, "decoder_start_token_id": 0}),  # its type
    "falcon": (["dense", "dense_4h_to_h"], {}),  # adds in place
    "gpt2": (["c_proj"], {}),  # weights that lie transposed
    "qwen3_moe": (
        None,
        {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8, "num_key_value_heads": 2},
    ),  # in float64
    "phimoe": (None, MOE),  # a router that is a linear layer by its class
}


@pytest.mark.parametrize("family", BLOCKS)
def test_families_with_layers_of_their_own_kind_are_trained_in_blocks(family):
    targets, settings = BLOCKS[family]
    network = build(family=family, method=FedIT(rank=2, target_modules=targets), **settings)
    trial = try_blocks(network, samples())
    assert trial.alone is None
    assert not trial.notes or family == "longformer"  # whose last layer has other ones for the token that is read
    axes = {layer.rows_axis for layer in network.layers.values()}
    assert axes == ({0, 1} if family in ("longformer", "xlnet") else {0})
    check_training(network, [9] * 6 if family == "xlnet" else LENGTHS)  # XLNet reads the last token, padding or not


@pytest.mark.parametrize("wrap", [PositionsFirst, Shared, Sorted])
def test_what_runs_one_row_at_a_time_mixes_no_clients(wrap):
    network = build(wrap)
    network.one_by_one = True
    trial = try_blocks(network, samples())
    assert trial.alone is None
    check_training(network)


def test_the_router_of_a_mixture_of_experts_is_no_linear_layer():
    network = build(family="phimoe", **MOE)
    assert not any("router" in name for name in linear_layers(network.task.loaded()))
    with pytest.raises(ConfigurationError, match="'router' matches no linear layer"):
        build(family="phimoe", method=FedIT(rank=2, target_modules=["router"]), **MOE)


def test_deberta_with_shared_keys_is_trained_one_client_at_a_time():
    """It projects relative positions, which all samples share, with the query's own weights."""
    own = {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "share_att_key": True, "position_buckets": 4}
    trial = try_blocks(build(family="deberta-v2", **own), samples())
    assert trial.alone == (
        "deberta.encoder.layer.0.attention.self.query_proj gets tokens in which the rows of a batch are not kept apart"
    )


@pytest.mark.parametrize(
    ("dtype", "wrap"), [(d, w) for d in (torch.float32, torch.bfloat16) for w in (None, PositionsFirst, OneAxis)]
)
def test_rounding_is_not_taken_for_a_mix_of_clients(dtype, wrap):
    assert try_blocks(build(wrap, dtype=dtype), samples()).alone is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("wrap", [OneAxisPositionsFirst, Sorted, Shared])
def test_a_mix_of_clients_is_not_taken_for_rounding(dtype, wrap):
    assert try_blocks(build(wrap, dtype=dtype), samples()).alone is not None


def test_packing_alone_that_mixes_clients_is_left_out(monkeypatch):
    network = build()
    shorten(network, samples(), "64-true")
    assert network.packs
    own = Packing.of

    def shifted(mask, clients):
        packing = own(mask, clients)
        first, *others = packing.per_client
        return replace(packing, per_client=[first - 3, others[0] + 3] if others else [first])

    monkeypatch.setattr(Packing, "of", shifted)
    trial = try_blocks(network, samples())
    assert trial.alone is None
    (note,) = trial.notes
    assert note.startswith("batches are padded: without padding, a client of a block does not get the losses and grad")
    assert not network.packs


def test_a_run_says_why_it_trains_one_client_at_a_time(fit, monkeypatch, caplog):  # noqa: F811
    monkeypatch.setattr(setup, "try_blocks", lambda *_: BlockTrial("layer x mixes rows", ["layer y is idle"]))
    with caplog.at_level(logging.WARNING, "fedgram"):
        _, trainer = fit(rounds=1, clients_per_block="auto")
    assert trainer.plan.clients_per_block == 1
    assert "clients are trained one at a time (clients_per_block 1): layer x mixes rows" in caplog.messages
    assert "layer y is idle" in caplog.messages
    with pytest.raises(
        ConfigurationError, match=r"clients_per_block is 2, but .* one at a time: layer x mixes rows; set it"
    ):
        fit(rounds=1, clients_per_block=2)


def test_fillers_repeat_a_row_of_the_clients_own():
    """A model may ask something of every row: BART wants as many end tokens in each."""
    network = build(family="mbart", **BART, method=FedIT(rank=2))
    assert try_blocks(network, samples()).alone is None
    check_training(network)
    rows, weights = _rectangle([np.array([4, 0]), np.array([3, 2, 5])], samples())
    assert rows.tolist() == [4, 0, 0, 3, 2, 5]
    assert weights.tolist() == [[0.5, 0.5, 0], [1 / 3] * 3]


def transposed_starts():
    for method in (FeDeRA, FRLoRA):
        yield method(rank=2)
    for basis in ("svd", "identity", "kaiming"):
        yield FLoRG(rank=2, basis=basis)


@pytest.mark.parametrize("targets", [None, ["c_fc", "mlp.c_proj"]], ids=["square", "narrow"])
@pytest.mark.parametrize("method", transposed_starts(), ids=lambda method: method.name)
def test_starts_that_look_at_weights_leave_a_model_with_transposed_ones_as_it_was(method, targets):
    method.target_modules = targets
    network, plain = build(family="gpt2", n_inner=24, method=method), build(family="gpt2", n_inner=24, plain=True)
    network.load_one(network.initial_state())
    answers = [each.run(samples(), np.arange(6))[0]["logits"] for each in (network, plain)]
    torch.testing.assert_close(*answers, rtol=0, atol=1e-6)  # starts are drawn in single precision
