"""What must hold for every family of backbones, with a head for classes and with one for spans."""

import contextlib
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from fedgram.adapters import find_targets, head_linears
from fedgram.adapters.inject import base_name, linear_layers
from fedgram.backbone import first_token
from fedgram.data import TokenTable
from fedgram.engine.block import train_block
from fedgram.engine.network import ClientNetwork
from fedgram.engine.shortcuts import shorten
from fedgram.errors import ConfigurationError
from fedgram.federation.setup import _check_lengths
from fedgram.methods import FedIT, FLoRG
from fedgram.models import QuestionAnswering, TextClassification
from fedgram.models.loading import cast
from fedgram.models.padding import NO_TOKEN
from fedgram.optim import SGD, AdamW
from fedgram.state import flatten
from tiny_models import FAMILIES, WORDS, make_tokenizer, save_tiny

POSITIONS = 64
DECODERS = ("opt", "llama", "qwen2")
TARGETS = {
    "roberta": {"query", "value"},
    "bert": {"query", "value"},
    "opt": {"q_proj", "v_proj"},
    "llama": {"q_proj", "v_proj"},
    "qwen2": {"q_proj", "v_proj"},
}
HEADS = {
    "roberta": ["classifier.dense", "classifier.out_proj"],
    "bert": ["classifier"],
    "opt": ["score"],
    "llama": ["score"],
    "qwen2": ["score"],
}
LABELS = SimpleNamespace(label_names=["bad", "good"], num_labels=2, metrics=("accuracy",))


class Spans(QuestionAnswering):
    """Question answering on tables of the test's own."""

    def configure_for(self, tokenizer, data, seed):
        self.build(tokenizer, seed, num_labels=2)


TASKS = [TextClassification, Spans]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("backbones")
    return {family: save_tiny(family, folder / family) for family in FAMILIES}


def build(kind, folder, weights=torch.float64, **settings):
    task = kind(str(folder), **settings)
    tokenizer = task.load_tokenizer()
    task.configure_for(tokenizer, LABELS, seed=0)
    if weights is not None:
        task.cast(weights)
    return task, tokenizer


def tokens(kind, tokenizer, count=40):
    generator = np.random.default_rng(0)
    texts = [" ".join(generator.choice(WORDS, generator.integers(3, 11))) for _ in range(count)]
    encoded = tokenizer(texts)
    lengths = [len(ids) for ids in encoded["input_ids"]]
    types = [np.concatenate(encoded["token_type_ids"]).astype(np.uint8)] if "token_type_ids" in encoded else [None]
    labels = [i % 2 if kind is TextClassification else (i % 2, n - 1) for i, n in enumerate(lengths)]
    ids = np.concatenate(encoded["input_ids"]).astype(np.int32)
    return TokenTable(ids, *types, np.concatenate([[0], np.cumsum(lengths)]), np.array(labels))


def outputs_of(task, table, rows, pad_id):
    batch = table.batch(np.array(rows), pad_id)
    batch.pop("labels")
    with torch.inference_mode():
        return task.outputs(batch)


@pytest.mark.parametrize("kind", TASKS)
@pytest.mark.parametrize("family", FAMILIES)
def test_all_weights_of_the_base_model_are_the_published_ones(folders, family, kind):
    """LlamaForQuestionAnswering finds none of them by itself: it calls its base model by another name."""
    from transformers import AutoModel

    network = build(kind, folders[family], None)[0].loaded()
    published = AutoModel.from_pretrained(folders[family]).state_dict()
    base = network.get_submodule(base_name(network)).state_dict()
    assert base.keys() <= published.keys()
    assert all("pooler" in key for key in published.keys() - base.keys())
    for key, weight in base.items():
        assert torch.equal(weight, published[key]), key


@pytest.mark.parametrize("kind", TASKS)
@pytest.mark.parametrize("family", FAMILIES)
def test_targets_are_queries_and_values_and_the_head_stands_apart(folders, family, kind):
    network = build(kind, folders[family], None)[0].loaded()
    found = find_targets(network, None)
    assert len(found) == 4
    assert {name.rsplit(".", 1)[-1] for name in found} == TARGETS[family]
    heads = head_linears(network)
    assert list(heads) == (HEADS[family] if kind is TextClassification else ["qa_outputs"])
    assert {name.split(".")[0] for name in linear_layers(network)} == {base_name(network)}
    if family in ("llama", "qwen2"):
        sizes = {name.rsplit(".", 1)[-1]: (m.in_features, m.out_features) for name, m in found.items()}
        assert sizes == {"q_proj": (16, 16), "v_proj": (16, 8)}


@pytest.mark.parametrize("kind", TASKS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_row_does_not_depend_on_its_padding_or_its_company(folders, family, kind):
    task, tokenizer = build(kind, folders[family])
    table, pad_id = tokens(kind, tokenizer), task.pad_id
    rows = [3, 0, -1, 7, 12]
    longest = int(table.lengths.argmax())
    assert table.lengths[longest] > table.lengths[3]
    together = outputs_of(task, table, [*rows, longest], pad_id)
    apart = outputs_of(task, table, [longest, *rows[::-1]], pad_id)
    for name, values in together.items():
        assert torch.isfinite(values[:, 0]).all()  # fillers too
        for place, row in enumerate(rows):
            alone = outputs_of(task, table, [row], pad_id)[name][0]
            width = alone.shape[0]
            torch.testing.assert_close(values[place, :width], alone, rtol=0, atol=1e-12)
            torch.testing.assert_close(apart[name][-1 - place, :width], alone, rtol=0, atol=1e-12)
        assert (values[0] - values[1])[:2].abs().max() > 1e-4  # else the comparisons say nothing


@pytest.mark.parametrize("pads", ["nothing", "the end", "no id of the vocabulary"])
@pytest.mark.parametrize("family", DECODERS)
def test_a_text_with_the_token_that_pads_is_read_as_it_is_alone(tmp_path, family, pads):
    from transformers import AutoModelForSequenceClassification

    folder = Path(save_tiny(family, tmp_path))
    task = TextClassification(str(folder))
    end = task.load_tokenizer().eos_token_id
    config = json.loads((folder / "config.json").read_text())
    config |= {"pad_token_id": {"nothing": None, "the end": end, "no id of the vocabulary": -7}[pads]}
    (folder / "config.json").write_text(json.dumps(config))
    task.configure_for(task.load_tokenizer(), LABELS, seed=0)
    assert task.pad_id == {"nothing": NO_TOKEN, "the end": end, "no id of the vocabulary": -7}[pads]
    samples = [[5, 6, 7, end], [8, end, end, 6, 7, 5], [end], [9, 4], [end, end, 8]]
    ids, ends = np.concatenate(samples).astype(np.int32), np.cumsum([0, *map(len, samples)])
    table = TokenTable(ids, None, ends, np.zeros(len(samples), np.int64))
    together = outputs_of(task, table, [*range(len(samples)), -1], task.pad_id)["logits"]
    assert torch.isfinite(together).all()
    plain = (
        task.loaded()
        if pads == "no id of the vocabulary"
        else AutoModelForSequenceClassification.from_pretrained(folder)
    )
    plain.load_state_dict(task.loaded().state_dict())  # the head is drawn
    with torch.inference_mode():
        for row, sample in enumerate(samples):
            alone = plain.eval()(torch.tensor([sample])).logits[0]
            torch.testing.assert_close(together[row], alone, rtol=0, atol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_sample_may_be_as_long_as_there_are_positions(folders, family):
    task, tokenizer = build(TextClassification, folders[family])

    def data(length):
        ids = np.full(length, len(tokenizer) - 1, np.int32)
        table = TokenTable(ids, None, np.array([0, length]), np.array([0]))
        return SimpleNamespace(tables={"train": table}, max_length=length)

    fits = data(POSITIONS)
    _check_lengths(task, fits)
    assert torch.isfinite(outputs_of(task, fits.tables["train"], [0], task.pad_id)["logits"]).all()
    too_long = data(POSITIONS + 1)
    with pytest.raises(ConfigurationError, match=rf"has {POSITIONS} positions; set data\.max_length to that"):
        _check_lengths(task, too_long)
    if family not in ("llama", "qwen2"):  # rotary positions have no end
        with pytest.raises((IndexError, RuntimeError)):
            outputs_of(task, too_long.tables["train"], [0], task.pad_id)


def clients_of(network, table, steps):
    """Return unequal starts and unequal batches of some clients."""
    generator = np.random.default_rng(0)
    batches = [[generator.choice(len(table), 3 if i else 2, replace=False) for i in range(n)] for n in steps]
    start = []
    for _ in steps:
        state = network.initial_state()
        for layers in state.parts.values():
            for layer in layers.values():
                for field, tensor in layer.items():
                    layer[field] = tensor + 0.1 * torch.from_numpy(generator.normal(size=tuple(tensor.shape)))
        start.append(state)
    return start, batches


@pytest.mark.quick_cases(12)
@pytest.mark.parametrize("method", [FedIT(rank=2), FLoRG(rank=2, init_std=0.3)], ids=["FedIT", "FLoRG"])
@pytest.mark.parametrize("kind", TASKS)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("shortcuts", ["none", "padded", "packed"])
def test_a_block_trains_every_client_as_if_it_were_alone(folders, family, kind, method, shortcuts):
    plain, network = (clients_network(kind, folders[family], method) for _ in range(2))
    # The softmax over positions is blind to the span head's bias, so its gradient is 0 but for rounding, which AdamW
    # would blow up to a step.
    optimizer = AdamW(lr=0.01, max_grad_norm=1.0) if kind is TextClassification else SGD(lr=0.1, momentum=0.9)
    table = tokens(kind, build(kind, folders[family])[1])
    start, batches = clients_of(plain, table, [4, 3, 1])
    if shortcuts != "none":
        shorten(network, table, "64-true")
        assert network.packs
        assert has_short_last_layer(network) == (kind is TextClassification and family not in DECODERS)
        network.packs = shortcuts == "packed"
    together = train_block(network, optimizer, start, table, batches)
    for client, trained in enumerate(together.states):
        alone = train_block(plain, optimizer, [start[client]], table, [batches[client]])
        torch.testing.assert_close(together.losses[client], alone.losses[0], rtol=0, atol=1e-10)
        for key, tensor in flatten(alone.states[0]).items():
            torch.testing.assert_close(flatten(trained)[key], tensor, rtol=0, atol=1e-10)
            assert not torch.equal(tensor, flatten(start[client])[key]) or key == "head|qa_outputs|bias", key


def clients_network(kind, folder, method):
    task, _ = build(kind, folder)
    layers, device = method.install(task.loaded(), seed=0), torch.device("cpu")
    return ClientNetwork(task, layers, device, torch.float64, contextlib.nullcontext, task.pad_id)


def has_short_last_layer(network):
    return any(getattr(m.forward, "func", None) is first_token._forward for m in network.task.loaded().modules())


@pytest.mark.quick_cases(6)
@pytest.mark.parametrize(("dtype", "digits"), [("bfloat16", 8), ("float16", 11)])
@pytest.mark.parametrize("kind", TASKS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_backbone_in_half_precision_trains_adapters_in_single(folders, family, kind, dtype, digits):
    device, said = torch.device("cpu"), {}
    for kept in ("float32", dtype):
        task, tokenizer = build(kind, folders[family], None, dtype=kept)
        layers = FLoRG(rank=2, init_std=0.3).install(task.loaded(), seed=0)
        network = ClientNetwork(task, layers, device, torch.float32, contextlib.nullcontext, task.pad_id)
        state = network.initial_state()
        if kept == "float32":
            start, table = state, tokens(kind, tokenizer)
        network.load_one(start)  # one head for both: the half-precision one is drawn otherwise
        with torch.inference_mode():
            said[kept] = network.run(table, np.arange(12))[0]
    assert {p.dtype for p in task.loaded().parameters()} == {getattr(torch, dtype)}
    assert {b.dtype for n, b in task.loaded().named_buffers() if n.endswith("inv_freq")} <= {torch.float32}
    for name, values in said["float32"].items():
        seen = torch.isfinite(values)
        error = (said[dtype][name].float() - values)[seen].abs().max()
        assert 0 < error < 24 * 2**-digits * values[seen].abs().max(), name
    block = train_block(network, AdamW(lr=0.01), [start] * 2, table, [[np.arange(4)] * 3] * 2)
    assert torch.isfinite(block.losses).all()
    for key, tensor in flatten(block.states[0]).items():
        assert tensor.dtype == torch.float32
        assert torch.isfinite(tensor).all()
        assert not torch.equal(tensor, flatten(start)[key]) or key == "head|qa_outputs|bias", key


def test_weights_drawn_at_random_come_from_the_seed_alone(folders):
    def network(seed, dtype="float32"):
        task = TextClassification(folders["llama"], dtype, pretrained=False)
        task.configure_for(task.load_tokenizer(), LABELS, seed)
        assert not task.loaded().training
        return task.loaded().state_dict()

    pretrained = build(TextClassification, folders["llama"], None)[0].loaded().state_dict()
    before = torch.get_rng_state()
    one, same, other = network(0), network(0), network(1)
    assert torch.equal(before, torch.get_rng_state())
    key = "model.layers.0.self_attn.v_proj.weight"
    assert torch.equal(one[key], same[key])
    assert not torch.equal(one[key], other[key])
    assert not torch.equal(one[key], pretrained[key])
    assert one.keys() == pretrained.keys()
    assert network(0, "bfloat16")[key].dtype == torch.bfloat16


def test_a_folder_that_lacks_weights_is_an_error(folders, tmp_path):
    from safetensors.torch import load_file, save_file

    for family, lost, kind in [
        ("bert", "bert.encoder.layer.1.output.dense.weight", TextClassification),
        ("llama", "model.layers.1.self_attn.v_proj.weight", Spans),
    ]:
        folder = tmp_path / family
        shutil.copytree(folders[family], folder)
        weights = load_file(folder / "model.safetensors")
        del weights[lost]
        save_file(weights, folder / "model.safetensors", {"format": "pt"})
        with pytest.raises(ConfigurationError, match=r"lacks 1 weights of a .*Model.*give a folder whose weights fit"):
            build(kind, folder)


def test_another_tokenizer_may_be_set_if_it_fits(folders, tmp_path):
    fitting = tmp_path / "fitting"
    make_tokenizer("bert", ["film"]).save_pretrained(fitting)
    task, tokenizer = build(TextClassification, folders["roberta"], tokenizer=str(fitting))
    assert len(tokenizer) == 5
    assert tokenizer.pad_token_id == 0
    assert task.pad_id == task.loaded().config.pad_token_id == 1  # the model's own, from which it counts positions
    large = tmp_path / "large"
    make_tokenizer("bert", [f"word{i}" for i in range(30)]).save_pretrained(large)
    with pytest.raises(ConfigurationError, match=r"token ids up to 33, but .* has embeddings for 18 tokens"):
        build(TextClassification, folders["roberta"], tokenizer=str(large))
    with pytest.raises(ConfigurationError, match=r"model\.tokenizer: 'no/such' is no folder"):
        build(TextClassification, folders["roberta"], tokenizer="no/such")


def test_casting_widens_buffers_and_never_narrows_them():
    module = torch.nn.Linear(2, 2)
    module.register_buffer("frequencies", torch.tensor([0.1]))
    module.register_buffer("positions", torch.tensor([1]))
    cast(module, torch.bfloat16)
    assert module.weight.dtype == torch.bfloat16
    assert module.frequencies.dtype == torch.float32
    cast(module, torch.float64)
    assert module.weight.dtype == module.frequencies.dtype == torch.float64
    assert module.positions.dtype == torch.int64
