"""Counts on fake tensors against counts of real training, and against formulas on paper."""

import contextlib
import doctest

import numpy as np
import pytest
import torch
import transformers
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from fedgram.adapters.inject import linear_layers
from fedgram.backbone import frozen_linear as frozen
from fedgram.cost import client_flops as flops
from fedgram.cost.client_flops import TrainingFlops, Work, training_flops
from fedgram.cost.flop_counter import FlopCounter, NotCountableError
from fedgram.data.tokens import TokenTable
from fedgram.engine.block import train_block
from fedgram.engine.network import ClientNetwork
from fedgram.engine.shortcuts import shorten
from fedgram.errors import ConfigurationError
from fedgram.methods import RAVAN, FedDPA, FeDeRA, FedExLoRA, FedIT, FedLEASE, FedSALoRA, FFALoRA, FLoRG
from fedgram.models import QuestionAnswering, TextClassification
from fedgram.optim import AdamW
from tiny_models import FAMILIES, save_tiny

METHODS = {
    "FLoRG": lambda **keys: FLoRG(rank=2, **keys),
    "FLoRG-kaiming": lambda **keys: FLoRG(rank=3, basis="kaiming", preserve_start=False, **keys),
    "FedIT": lambda **keys: FedIT(rank=2, **keys),
    "FFALoRA": lambda **keys: FFALoRA(rank=2, **keys),
    "FedSALoRA": lambda **keys: FedSALoRA(rank=1, **keys),
    "FeDeRA": lambda **keys: FeDeRA(rank=2, **keys),
    "FeDeRA-round": lambda **keys: FeDeRA(rank=2, when="round", **keys),
    "FedLEASE": lambda **keys: FedLEASE(rank=2, **keys),
    "RAVAN": lambda **keys: RAVAN(rank=2, heads=3, **keys),
    "FedExLoRA": lambda **keys: FedExLoRA(rank=2, **keys),
    "FedExLoRA-factored": lambda **keys: FedExLoRA(rank=2, residual="factored", **keys),
}


@pytest.fixture(scope="module")
def backbones(tmp_path_factory):
    return {family: save_tiny(family, tmp_path_factory.mktemp(family)) for family in FAMILIES}


def make_network(backbone, method, kind=TextClassification, dtype=torch.float32, labels=3, **changes):
    """A network with real weights and a method's adapters in it."""
    task = kind(backbone)
    config = transformers.AutoConfig.from_pretrained(backbone, num_labels=labels, **changes)
    config.pad_token_id = 0 if config.pad_token_id is None else config.pad_token_id
    with torch.random.fork_rng():
        network = getattr(transformers, task.auto_class).from_config(config)
    task.network = network.eval().requires_grad_(False)
    task.cast(dtype)
    layers = method.install(task.network, seed=0)
    args = (task, layers, torch.device("cpu"), dtype, contextlib.nullcontext, config.pad_token_id)
    return ClientNetwork(*args, method.shared_fields), config


def samples_of(lengths, pad, labels=()):
    """Samples of some lengths, all tokens of which are real."""
    ids = np.full(sum(lengths), pad + 1, np.int32)
    return TokenTable(ids, None, np.cumsum([0, *lengths]), np.zeros((len(lengths), *labels), np.int64))


def count_step(counter, network, method, table, rows):
    """Count one local step of one client, as a run makes it."""
    start = network.initial_state()
    network.share(start)
    network.load_one(start)  # what is made once is made here
    start, optimizer = method.without_shared(start), AdamW(lr=0.1, max_grad_norm=1.0)
    with counter, sdpa_kernel(SDPBackend.MATH):
        train_block(network, optimizer, [start], table, [[rows]], trained=method.trained_fields)


def real_count(network, method, table, rows):
    counter = FlopCounterMode(display=False)
    count_step(counter, network, method, table, rows)
    return counter.get_total_flops()


@pytest.mark.quick_cases(2)
@pytest.mark.parametrize(
    ("family", "name"), [*(("bert", name) for name in METHODS), ("llama", "FLoRG"), ("llama", "FedExLoRA")]
)
def test_a_real_step_has_the_operations_that_were_counted_without_weights(backbones, family, name):
    method = METHODS[name]()
    network, config = make_network(backbones[family], method, dtype=torch.float64)
    found = training_flops(network.task, config, method, 9)
    table = samples_of([7] * 3, network.pad_id)
    assert found.of(Work(1, 3, 21, 3 * 49)) == real_count(network, method, table, np.arange(3)) > 100_000


@pytest.mark.slow
def test_a_phase_costs_what_its_fields_do_without_those_that_are_absent(backbones):
    """FedDPA's global pair alone is one LoRA, and both pairs are more."""

    def found(method):
        network, config = make_network(backbones["bert"], method)
        return training_flops(network.task, config, method, 9)

    alone, both, half = (found(FedDPA(rank=2, local_share=share)) for share in (0.0, 1.0, 0.5))
    assert alone == found(FedIT(rank=2))
    assert both.token > alone.token
    assert half.token == round((alone.token + both.token) / 2)


@pytest.mark.quick_cases(2)
@pytest.mark.parametrize("kind", [TextClassification, QuestionAnswering])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_and_task_is_counted(backbones, family, kind):
    method = FedIT(rank=2, head="averaged")
    network, config = make_network(backbones[family], method, kind, torch.float64, labels=2)
    found = training_flops(network.task, config, method, 9)
    table = samples_of([5] * 2, network.pad_id, () if kind is TextClassification else (2,))
    assert found.of(Work(1, 2, 10, 50)) == real_count(network, method, table, np.arange(2))


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("name", ["FLoRG", "FedIT"])
@pytest.mark.parametrize("depth", [1, 2, 3, 4, 7])
def test_backbones_of_any_depth_are_counted(backbones, name, depth):
    method = METHODS[name]()
    network, config = make_network(backbones["roberta"], method, num_hidden_layers=depth)
    found = training_flops(network.task, config, method, 9)
    table = samples_of([4], network.pad_id)
    assert found.of(Work(1, 1, 4, 16)) == real_count(network, method, table, np.arange(1))


SMALL = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
FURTHER = {
    "deberta-v2": SMALL | {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_biased_input": False},
    "modernbert": SMALL | dict.fromkeys(("pad_token_id", "bos_token_id", "cls_token_id"), 0) | {"eos_token_id": 1},
    "gpt2": {"vocab_size": 50, "n_embd": 16, "n_layer": 2, "n_head": 2, "eos_token_id": 1, "bos_token_id": 1},
    "albert": SMALL | {"embedding_size": 8},
}


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("family", FURTHER)
def test_other_architectures_are_counted(tmp_path, family):
    """DeBERTa's products with positions are made once for all samples; ALBERT's layers are one."""
    transformers.AutoConfig.for_model(family, **FURTHER[family]).save_pretrained(tmp_path)
    method = FedIT(rank=2, head="frozen")
    network, config = make_network(str(tmp_path), method, dtype=torch.float64)
    found = training_flops(network.task, config, method, 9)
    assert (found.step > 0) == (family == "deberta-v2")
    table = samples_of([7] * 3, network.pad_id)
    assert found.of(Work(1, 3, 21, 3 * 49)) == real_count(network, method, table, np.arange(3))


def test_layers_that_differ_are_all_counted(backbones):
    method = FedIT(rank=2, target_modules=["1.attention.self.key", "3.output.dense"])
    network, config = make_network(backbones["bert"], method, num_hidden_layers=5)
    found = training_flops(network.task, config, method, 9)
    table = samples_of([4], network.pad_id)
    assert found.of(Work(1, 1, 4, 16)) == real_count(network, method, table, np.arange(1))


def test_products_by_onednn_are_seen(backbones):
    method = METHODS["FedExLoRA"]()
    network, config = make_network(backbones["bert"], method)
    frozen.install(linear_layers(network.task.loaded()).values())
    table = samples_of([6] * 2, network.pad_id)
    counter = FlopCounter()
    count_step(counter, network, method, table, np.arange(2))
    assert counter.total == training_flops(network.task, config, method, 9).of(Work(1, 2, 12, 72))


def test_neither_padding_nor_shortcuts_count(backbones):
    """The network of a run leaves out what nobody reads; what counts is the plain one, on each sample by itself."""
    method = METHODS["FLoRG"]()
    network, config = make_network(backbones["bert"], method)
    table, lengths = samples_of([3, 9, 5], network.pad_id), [3, 9, 5]
    each = [real_count(network, method, table, np.array([row])) for row in range(3)]
    shorten(network, table, "32-true")
    assert network.packs
    found = training_flops(network.task, config, method, 9)
    assert found.of(Work.of(table, [np.array([2, 0, 1])])) == sum(each) - 2 * found.step
    assert found.of(Work.of(table, [np.array([row]) for row in range(3)])) == sum(each)
    assert Work.of(table, [np.array([0, 1]), np.array([2])]) == Work(2, 3, sum(lengths), 9 + 81 + 25)


def test_a_bert_of_two_layers_by_hand(backbones):
    """Products of one token with a d x d matrix are 2 d² operations; frozen weights get no gradient."""
    d, f, r, C = 16, 24, 2, 3
    method = FedIT(rank=r)
    network, config = make_network(backbones["bert"], method)
    forward = 2 * (4 * d * d + 2 * d * f)  # query, key, value, output; two of the feed-forward part
    lora = 2 * 2 * r * (d + d)  # of query and value
    # In the first layer nothing below asks for a gradient, in the second the layer before does.
    back_first, back_second = 2 * (d * d + 2 * d * f), forward
    lora_back_first, lora_back_second = 2 * 2 * r * (d + d + d), 2 * 2 * r * (2 * d + 2 * d)
    attention, attention_back = 2 * 2 * d, (3 + 4) * 2 * d  # keys of the first layer need no gradient
    head, head_back = 2 * d * d + 2 * d * C, 2 * d * d + 2 * 2 * d * C  # the pooler is frozen
    assert training_flops(network.task, config, method, 9) == TrainingFlops(
        step=0,
        sample=head + head_back,
        token=2 * forward + 2 * lora + back_first + back_second + lora_back_first + lora_back_second,
        squared_token=2 * attention + attention_back,
    )


def test_florg_multiplies_a_with_its_bases_once_a_step(backbones):
    """With a basis of 16 x 16 on either side of four layers, A R and A Lᵀ forwards, and ∂A of both backwards."""
    method = FLoRG(rank=3, basis="kaiming", preserve_start=False)
    network, config = make_network(backbones["bert"], method)
    assert training_flops(network.task, config, method, 9).step == 4 * 2 * 2 * (2 * 3 * 16 * 16)


def test_a_frozen_half_gets_no_gradient(backbones):
    """FFA-LoRA saves one product of the low-rank path a layer; its head is frozen as well."""
    found = {}
    for method in (FedIT(rank=2, head="frozen"), FFALoRA(rank=2)):
        network, config = make_network(backbones["bert"], method)
        found[method.name] = training_flops(network.task, config, method, 9)
    saved_first, saved_second = 2 * 2 * 2 * 16 * 2, 2 * 2 * 16 * 2
    assert found["FedIT"].token - found["FFALoRA"].token == saved_first + saved_second


def test_neither_generators_nor_the_network_of_a_run_are_touched(backbones):
    method = METHODS["FLoRG"]()
    network, config = make_network(backbones["bert"], method)
    own, settings, before = network.task.network, config.to_dict(), torch.get_rng_state()
    training_flops(network.task, config, FLoRG(rank=5), 11)
    assert network.task.network is own
    assert all(type(p) is torch.nn.Parameter for p in own.parameters())
    assert config.to_dict() == settings
    assert torch.equal(torch.get_rng_state(), before)


def test_a_second_count_of_the_same_is_remembered(backbones, monkeypatch):
    method = METHODS["FedIT"]()
    network, config = make_network(backbones["opt"], method)
    first = training_flops(network.task, config, method, 9)
    monkeypatch.setattr(flops, "_step", lambda *_: pytest.fail("counted again"))
    assert training_flops(network.task, config, FedIT(rank=2), 9) == first
    with pytest.raises(pytest.fail.Exception):
        training_flops(network.task, config, FedIT(rank=3), 9)


class Curious(FedIT):
    def adapter(self, linear, generator):
        if float(linear.weight.norm()) > 0:
            self.seen = True
        return super().adapter(linear, generator)


def test_a_method_that_looks_at_weights_can_not_be_counted(backbones):
    network, config = make_network(backbones["bert"], METHODS["FedIT"]())
    with pytest.raises(NotCountableError, match=r"the operations of Curious on .* can't be counted"):
        training_flops(network.task, config, Curious(rank=2), 9)


def test_a_method_that_does_not_fit_is_refused_as_always(backbones):
    network, config = make_network(backbones["bert"], METHODS["FedIT"]())
    with pytest.raises(ConfigurationError, match=r"method\.rank must be at most"):
        training_flops(network.task, config, FedIT(rank=17), 9)


@pytest.mark.parametrize(
    ("powers", "error"),
    [((1, 3), "which no formula"), ((0, 1), "which no formula"), ((2, 1), "which no formula"), ((1, 1), None)],
)
def test_products_that_fit_no_formula_are_an_error(backbones, monkeypatch, powers, error):
    method = METHODS["FedIT"]()
    network, config = make_network(backbones["bert"], method)
    monkeypatch.setattr(flops, "_step", lambda _, samples, tokens: [6 * samples ** powers[0] * tokens ** powers[1]])
    if error is None:
        assert training_flops(network.task, config, method, 8) == TrainingFlops(0, 0, 6, 0)
    else:
        with pytest.raises(NotCountableError, match=error):
            training_flops(network.task, config, method, 8)


def test_a_formula_that_does_not_hold_is_an_error(backbones, monkeypatch):
    """Such as that of attention over all tokens, where it looks no further than 8 of them."""
    method = METHODS["FedIT"]()
    network, config = make_network(backbones["bert"], method)
    monkeypatch.setattr(flops, "_step", lambda _, samples, tokens: [samples * tokens * min(tokens, 8)])
    with pytest.raises(NotCountableError, match=r"two samples of 5 tokens take 50 operations, and not 80"):
        training_flops(network.task, config, method, 5)


@pytest.mark.parametrize("name", ["client_flops", "server_flops"])
def test_examples_in_the_docstrings(name):
    from importlib import import_module

    result = doctest.testmod(import_module(f"fedgram.cost.{name}"))
    assert (result.failed, result.attempted > 0) == (0, True)
