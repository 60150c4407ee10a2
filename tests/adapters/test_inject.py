import pytest
import torch
from torch import nn

from fedgram.adapters import HeadLinear, LoraAdapter, find_targets, head_linears, lora_start, swap, swap_heads
from fedgram.adapters.inject import base_name, linear_layers
from fedgram.errors import ConfigurationError
from fedgram.methods import RAVAN, FedIT, FLoRG
from fedgram.seeding import isolated, torch_generator

SMALL = {"vocab_size": 30, "num_labels": 3, "pad_token_id": 1}
BERT = {"hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 20}
LLAMA = {**BERT, "num_key_value_heads": 1}
CONFIGS = {
    "bert": BERT,
    "roberta": BERT,
    "distilbert": {"dim": 12, "hidden_dim": 20, "n_layers": 2, "n_heads": 2},
    "opt": {"hidden_size": 12, "ffn_dim": 20, "num_hidden_layers": 2, "num_attention_heads": 2,
            "word_embed_proj_dim": 8},
    "llama": LLAMA,
    "qwen2": LLAMA,
    "gpt2": {"n_embd": 12, "n_layer": 2, "n_head": 2},
    "deberta-v2": {**BERT, "pos_att_type": ["c2p", "p2c"], "relative_attention": True, "share_att_key": True,
                   "position_buckets": 4},
    "modernbert": BERT,
    "deberta": {**BERT, "pos_att_type": ["c2p"], "relative_attention": True},
    "phi3": LLAMA,
    "funnel": {"d_model": 12, "n_head": 2, "d_head": 6, "d_inner": 20, "block_sizes": [1, 1]},
    "ctrl": {"n_embd": 12, "dff": 20, "n_layer": 2, "n_head": 2},
    "minicpm3": {**LLAMA, "num_key_value_heads": 2, "q_lora_rank": 4, "kv_lora_rank": 4, "qk_nope_head_dim": 4,
                 "qk_rope_head_dim": 4, "v_head_dim": 6},
}  # fmt: skip
TARGETS = {
    "bert": ("query", "value"),
    "roberta": ("query", "value"),
    "distilbert": ("q_lin", "v_lin"),
    "opt": ("q_proj", "v_proj"),
    "llama": ("q_proj", "v_proj"),
    "qwen2": ("q_proj", "v_proj"),
    "gpt2": ("c_attn",),
    "deberta-v2": ("query_proj", "value_proj"),
    "modernbert": ("Wqkv",),
    "deberta": ("in_proj",),
    "phi3": ("qkv_proj",),
    "funnel": ("q_head", "v_head"),
    "ctrl": ("Wq", "Wv"),
    "minicpm3": ("q_b_proj", "kv_b_proj"),
}
HEADS = {
    "bert": ["classifier"],
    "roberta": ["classifier.dense", "classifier.out_proj"],
    "distilbert": ["pre_classifier", "classifier"],
    "opt": ["score"],
    "llama": ["score"],
    "qwen2": ["score"],
    "gpt2": ["score"],
    "deberta-v2": ["pooler.dense", "classifier"],
}


def make(kind):
    from transformers import AutoConfig, AutoModelForSequenceClassification

    config = AutoConfig.for_model(kind, **SMALL | CONFIGS[kind])
    with isolated(0, "test"):
        return AutoModelForSequenceClassification.from_config(config).eval().requires_grad_(False).double()


@pytest.mark.parametrize("kind", TARGETS)
def test_default_targets_are_the_query_and_value_projections_of_every_layer(kind):
    found = find_targets(make(kind), None)
    assert len(found) == 2 * len(TARGETS[kind])
    assert {name.rsplit(".", 1)[-1] for name in found} == set(TARGETS[kind])
    assert all(any(f".{layer}." in f"{name}." for name in found) for layer in (0, 1))


@pytest.mark.parametrize("kind", HEADS)
def test_the_head_is_what_stands_beside_the_base_model(kind):
    network = make(kind)
    heads = head_linears(network)
    assert list(heads) == HEADS[kind]
    assert all(network.get_submodule(name) is module for name, module in heads.items())
    assert not heads.keys() & linear_layers(network).keys()
    assert {name.split(".")[0] for name in linear_layers(network)} == {base_name(network)}


def test_a_head_with_other_parameters_is_an_error_with_a_remedy():
    with pytest.raises(ConfigurationError, match=r"the head 'head' .*set method\.head to frozen"):
        head_linears(make("modernbert"))


def test_suffixes_match_whole_names_at_the_end():
    network = make("bert")
    assert len(find_targets(network, ["dense"])) == 3 * 2  # without the pooler, which stands behind the layers
    assert list(find_targets(network, ["pooler.dense"])) == ["bert.pooler.dense"]
    assert list(find_targets(network, ["dense", "pooler.dense"]))[-1] == "bert.pooler.dense"
    assert list(find_targets(network, ["attention.output.dense"])) == [
        f"bert.encoder.layer.{i}.attention.output.dense" for i in range(2)
    ]
    whole = "bert.encoder.layer.1.attention.self.key"
    assert list(find_targets(network, [whole])) == [whole]
    names = list(find_targets(network, ["value", "query"]))
    assert names == [name for name in linear_layers(network) if name.endswith(("query", "value"))]


@pytest.mark.parametrize("suffix", ["uery", "classifier", "self", "output.LayerNorm"])
def test_a_suffix_without_a_linear_layer_is_an_error_that_lists_the_candidates(suffix):
    with pytest.raises(ConfigurationError, match=rf"'{suffix}' matches no linear layer: choose among dense, key, "
                       "pooler.dense, query, value"):  # fmt: skip
        find_targets(make("bert"), ["query", suffix])


def test_an_architecture_without_defaults_is_an_error_that_lists_the_candidates():
    class Other(nn.Module):
        base_model_prefix = "core"

        def __init__(self):
            super().__init__()
            self.core = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 3))
            self.top = nn.Linear(3, 2)

    with pytest.raises(ConfigurationError, match=r"no default target_modules for Other: choose among 0, 1$"):
        find_targets(Other(), None)


def test_swap_replaces_layers_in_place():
    network = make("gpt2")
    targets = find_targets(network, None)
    asked = []

    def make_adapter(name, linear):
        asked.append((name, linear))
        return LoraAdapter(linear, 2, 1.0, lora_start(linear, 2, torch_generator(0, name)))

    swap(network, targets, make_adapter)
    assert asked == list(targets.items())
    for name, linear in targets.items():
        adapter = network.get_submodule(name)
        assert isinstance(adapter, LoraAdapter)
        assert adapter.base is linear
        assert (adapter.d_in, adapter.d_out) == (12, 36)
    swap_heads(network)
    assert isinstance(network.score, HeadLinear)


def logits(network, layers, tensors, ids, mask):
    for name, layer in layers.items():
        layer.load(tensors[name])
    return network(input_ids=ids, attention_mask=mask).logits


def block_inputs(kind, clients=3, rows=2, length=6):
    network = make(kind)
    layers = FLoRG(rank=2, init_std=0.5).install(network, seed=0)
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for name, layer in layers.items():
        start = layer.initial()
        tensors[name] = {
            f: t + torch.randn(clients, *t.shape, generator=generator, dtype=torch.float64) for f, t in start.items()
        }
    ids = torch.randint(3, 30, (clients * rows, length), generator=generator)
    mask = torch.ones_like(ids)
    ids[1, 4:], mask[1, 4:] = 1, 0  # padded
    return network, layers, tensors, ids, mask


@pytest.mark.parametrize("kind", sorted(HEADS.keys() - {"deberta-v2"}))
def test_a_block_gives_every_client_the_logits_it_has_alone(kind):
    network, layers, tensors, ids, mask = block_inputs(kind)
    together = logits(network, layers, tensors, ids, mask)
    for c in range(3):
        own = {name: {f: t[c : c + 1] for f, t in fields.items()} for name, fields in tensors.items()}
        rows = slice(2 * c, 2 * c + 2)
        alone = logits(network, layers, own, ids[rows], mask[rows])
        torch.testing.assert_close(together[rows], alone, rtol=0, atol=1e-10)
    first = {name: {f: t[:1] for f, t in fields.items()} for name, fields in tensors.items()}
    assert not torch.allclose(logits(network, layers, first, ids[2:4], mask[2:4]), together[2:4], atol=1e-2)


def test_deberta_trains_one_client_at_a_time():
    """It projects relative positions, which all samples share, with the query's own weights."""
    network, layers, tensors, ids, mask = block_inputs("deberta-v2")
    with pytest.raises(ConfigurationError, match="clients_per_block to 1"):
        logits(network, layers, tensors, ids, mask)
    one = {name: {f: t[:1] for f, t in fields.items()} for name, fields in tensors.items()}
    assert logits(network, layers, one, ids, mask).shape == (6, 3)


class Scaled(nn.Linear):
    """Computes what ``nn.Linear`` computes, in its own words, as Falcon's layers do."""

    def forward(self, x):
        product = x @ self.weight.T
        return product if self.bias is None else product + self.bias


class Doubled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


class Router(nn.Linear):
    def forward(self, x):
        return super().forward(x), x


class Gated(nn.Linear):
    def forward(self, x, gate):
        return super().forward(x) * gate


@pytest.mark.parametrize("bias", [False, True])
def test_only_layers_that_compute_what_a_linear_layer_does_are_linear(bias):
    base = nn.ModuleDict({kind.__name__: kind(6, 7, bias) for kind in (nn.Linear, Scaled, Doubled, Router, Gated)})
    network = nn.ModuleDict({"core": base})
    network.base_model_prefix = "core"
    assert list(linear_layers(network)) == ["core.Linear", "core.Scaled"]


def test_what_texts_do_not_go_through_is_left_alone():
    core = nn.ModuleDict({name: nn.ModuleDict({"q": nn.Linear(3, 3)}) for name in ("vision_tower", "visual", "layers")})
    network = nn.ModuleDict({"core": core})
    network.base_model_prefix = "core"
    assert list(find_targets(network, ["q"])) == ["core.layers.q"]


def test_a_model_without_linear_layers_is_an_error_that_says_so():
    network = nn.ModuleDict({"core": nn.ModuleDict({"quantised": nn.Embedding(3, 4)})})
    network.base_model_prefix = "core"
    with pytest.raises(ConfigurationError, match="it has no linear layers that can be adapted"):
        find_targets(network, None)
    with pytest.raises(ConfigurationError, match="'query' matches no linear layer: it has no linear layers"):
        find_targets(network, ["query"])


@pytest.mark.parametrize(("method", "largest"), [(FLoRG, 6), (FedIT, 6), (RAVAN, 1)])
def test_the_largest_rank_that_is_named_fits_every_layer(method, largest):
    """The values of Llama with grouped queries are narrower than its queries, which come first."""
    with pytest.raises(ConfigurationError, match=r"= 6 of model\.layers\.0\.self_attn\.v_proj, the narrowest"):
        method(rank=largest + 1).install(make("llama"), seed=0)
    assert len(method(rank=largest).install(make("llama"), seed=0)) == 5
