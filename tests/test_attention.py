from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedgram.backbone import attention
from fedgram.backbone.attention import within_samples

BOTH_WAYS = SimpleNamespace(is_causal=False)
FORWARD = SimpleNamespace(is_causal=True)


def draw(heads, tokens, size, seed, dtype=torch.float64):
    return torch.randn(1, heads, tokens, size, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def softmax_attention(query, key, value, asked, lengths, scale, causal):
    """Attention of one sample and one head after the other, in NumPy: (heads, N, d) to (N, heads, d_v)."""
    heads, group = query.shape[0], query.shape[0] // key.shape[0]
    said = np.zeros((query.shape[1], heads, value.shape[2]))
    for head in range(heads):
        row = column = 0
        for n, m in zip(asked, lengths, strict=True):
            q, k, v = query[head, row : row + n], key[head // group, column : column + m], value[head // group]
            scores = scale * q @ k.T
            if causal:
                scores[np.triu_indices(n, 1, m)] = -np.inf
            weights = np.exp(scores - scores.max(axis=1, keepdims=True))
            weights /= weights.sum(axis=1, keepdims=True)
            said[row : row + n, head] = weights @ v[column : column + m]
            row, column = row + n, column + m
    return said


@pytest.fixture(params=["one node", "kernel"])
def way(request, monkeypatch):
    if request.param == "kernel":
        monkeypatch.setattr(attention, "_LONG", 0)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (6, 2)])
@pytest.mark.parametrize("scale", [None, 0.3])
def test_each_sample_attends_to_itself_alone(way, heads, kv_heads, causal, scale):
    lengths = [3, 1, 7, 4]
    tensors = [draw(heads, 15, 6, 0), draw(kv_heads, 15, 6, 1), draw(kv_heads, 15, 6, 2)]
    module = FORWARD if causal else BOTH_WAYS
    if kv_heads != heads:
        module = SimpleNamespace(is_causal=causal, num_key_value_groups=heads // kv_heads)
    found, _ = within_samples(lengths, lengths, module, *tensors, None, scaling=scale)
    arrays = [tensor[0].numpy() for tensor in tensors]
    expected = softmax_attention(*arrays, lengths, lengths, scale or 6**-0.5, causal)
    np.testing.assert_allclose(found[0].numpy(), expected, rtol=0, atol=1e-12)


@settings(deadline=None, max_examples=25)
@given(st.lists(st.tuples(st.integers(1, 3), st.integers(1, 6)), min_size=1, max_size=4))
def test_a_sample_may_have_other_numbers_of_queries_than_of_keys(sizes):
    asked, lengths = map(list, zip(*sizes, strict=True))
    tensors = [draw(2, sum(asked), 3, 0), draw(2, sum(lengths), 3, 1), draw(2, sum(lengths), 3, 2)]
    found, _ = within_samples(asked, lengths, BOTH_WAYS, *tensors, None)
    arrays = [tensor[0].numpy() for tensor in tensors]
    expected = softmax_attention(*arrays, asked, lengths, 3**-0.5, False)
    np.testing.assert_allclose(found[0].numpy(), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("module", [BOTH_WAYS, FORWARD])
@pytest.mark.parametrize(("asked", "lengths"), [([3, 1, 4], [3, 1, 4]), ([1, 1, 1], [3, 1, 4])])
def test_the_gradients_are_those_of_differences(module, asked, lengths):
    def attend(query, key, value):
        return within_samples(asked, lengths, module, query, key, value, None, scaling=0.7)[0]

    tensors = [draw(2, sum(asked), 3, 0), draw(2, sum(lengths), 3, 1), draw(2, sum(lengths), 3, 2)]
    assert torch.autograd.gradcheck(attend, [tensor.requires_grad_() for tensor in tensors])


def test_the_choice_says_otherwise_than_the_module():
    tensors = [draw(2, 4, 3, seed) for seed in range(3)]
    one = within_samples([4], [4], FORWARD, *tensors, None, is_causal=False)[0]
    torch.testing.assert_close(one, within_samples([4], [4], BOTH_WAYS, *tensors, None)[0])


def test_half_precision_is_computed_in_single(way):
    tensors = [draw(2, 9, 8, seed, torch.bfloat16) for seed in range(3)]
    found, _ = within_samples([5, 4], [5, 4], BOTH_WAYS, *tensors, None)
    exact, _ = within_samples([5, 4], [5, 4], BOTH_WAYS, *(tensor.float() for tensor in tensors), None)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, exact.to(torch.bfloat16))


def test_a_rule_holds_for_a_while():
    def rule(*_, **__):
        return "said", None

    tensors = [draw(2, 4, 3, seed) for seed in range(3)]
    plain = attention._attend(BOTH_WAYS, *tensors, None)[0]
    with attention.by(rule):
        assert attention._attend(BOTH_WAYS, *tensors, None)[0] == "said"
    torch.testing.assert_close(attention._attend(BOTH_WAYS, *tensors, None)[0], plain)
    torch.testing.assert_close(plain, within_samples([4], [4], BOTH_WAYS, *tensors, None)[0])
