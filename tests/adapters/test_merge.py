"""One weight W⁰ + ΔW for a model that answers many tokens."""

import pytest
import torch

from adapters.plain import D_IN, D_OUT, R, T, draw, make_linear
from fedgram.adapters import GramAdapter, HeadLinear, LoraAdapter, make_bases

ENOUGH = 5
"""Tokens from which on merging a layer of 11 to 7 pays: 5 (11 + 7) >= 11 * 7 > 4 (11 + 7)."""


def lora(linear, weight, dtype, **settings):
    start = {"A": draw(R, D_IN, seed=1), "B": draw(D_OUT, R, seed=2)}
    adapter = LoraAdapter(linear, R, 0.7, start, **settings)
    adapter.load({"A": draw(1, R, D_IN, seed=3).to(dtype), "B": draw(1, D_OUT, R, seed=4).to(dtype)})
    return adapter


def lora_that_preserves_its_start(linear, weight, dtype):
    return lora(linear, weight, dtype, preserve_start=True)


def lora_with_residual(linear, weight, dtype):
    adapter = lora(linear, weight, dtype)
    adapter.share({"residual": draw(D_OUT, D_IN, seed=5).to(dtype)})
    return adapter


def gram(linear, weight, dtype, preserve_start=True):
    bases = make_bases("orthogonal", weight.float(), torch.Generator().manual_seed(0))
    adapter = GramAdapter(linear, R, 0.3, bases, draw(R, D_OUT, seed=9).float(), preserve_start)
    adapter.load({"A": draw(1, R, D_OUT, seed=6).to(dtype)})
    return adapter


def gram_without_its_start(linear, weight, dtype):
    return gram(linear, weight, dtype, preserve_start=False)


KINDS = [lora, lora_that_preserves_its_start, lora_with_residual, gram, gram_without_its_start]


def held(adapter):
    """How many numbers are held beside the backbone, over those of its weight."""
    return sum(tensor.numel() for tensor in adapter.held_once()) / (D_IN * D_OUT)


@pytest.mark.parametrize("make", KINDS, ids=lambda make: make.__name__)
@pytest.mark.parametrize("kind", ["linear", "conv1d"])
def test_a_merged_layer_says_what_the_layer_and_its_adapter_say(make, kind):
    linear, weight = make_linear(kind=kind)
    adapter, x, before = make(linear, weight, torch.float64), draw(4, T, D_IN, seed=7), linear.weight.clone()
    apart, alone = adapter(x), linear(x)
    adapter.merge(ENOUGH)
    torch.testing.assert_close(adapter(x), apart, rtol=0, atol=1e-12)
    assert (apart - alone).abs().min() > 1e-6
    assert torch.equal(linear.weight, before)


@pytest.mark.parametrize("make", KINDS, ids=lambda make: make.__name__)
def test_a_merged_layer_holds_one_copy_of_its_weight_until_it_is_loaded_anew(make):
    adapter = make(*make_linear(), torch.float64)
    x, residual = draw(4, T, D_IN, seed=7), len(adapter.shared)
    apart = adapter(x)
    for undo in (adapter.unmerge, lambda: adapter.load(adapter.clients), lambda: adapter.share(adapter.shared)):
        adapter.merge(ENOUGH)
        adapter(x)
        assert held(adapter) == 1 + residual
        undo()
        assert held(adapter) == residual
        assert torch.equal(adapter(x), apart)


def test_a_layer_that_sees_few_tokens_is_left_as_it_is():
    adapter = lora(*make_linear(), torch.float64)
    adapter.merge(ENOUGH - 1)
    assert held(adapter) == 0


def test_weights_of_lower_precision_take_nothing_in():
    adapter = lora(*make_linear(dtype=torch.bfloat16), torch.float32)
    adapter.merge(ENOUGH)
    assert held(adapter) == 0
    adapter = gram(*make_linear(dtype=torch.float32), torch.float32)
    with torch.autocast("cpu"):
        adapter.merge(ENOUGH)
    assert held(adapter) == 0
    adapter.merge(ENOUGH)
    assert held(adapter) == 1


def test_a_head_has_nothing_to_merge():
    linear, weight = make_linear()
    head = HeadLinear(linear)
    head.load({"weight": weight.unsqueeze(0), "bias": linear.bias.unsqueeze(0)})
    head.merge(10**6)
    assert not list(head.held_once())
    torch.testing.assert_close(head(draw(4, T, D_IN)), linear(draw(4, T, D_IN)), rtol=0, atol=1e-12)
