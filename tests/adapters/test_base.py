import pytest
import torch

from adapters.plain import D_IN, D_OUT, B, C, R, T, draw, make_linear
from fedgram.adapters import LoraAdapter, add_low_rank
from fedgram.adapters.base import frozen_weight, layer_sizes
from fedgram.errors import ConfigurationError


@pytest.mark.parametrize("kind", ["linear", "conv1d"])
def test_sizes_and_weight_of_a_layer(kind):
    linear, weight = make_linear(kind=kind, dtype=torch.float16)
    assert layer_sizes(linear) == (D_IN, D_OUT)
    assert torch.equal(frozen_weight(linear), weight.float())
    assert frozen_weight(linear).dtype == torch.float32
    assert not frozen_weight(linear).requires_grad
    x = draw(4, D_IN).half()
    assert torch.allclose(linear(x).float(), x.float() @ frozen_weight(linear).mT + linear.bias.float(), atol=0.02)


@pytest.mark.parametrize("shape", [(C * B, T), (C * B,), (C,), (C * B * T,)])
def test_each_client_multiplies_its_own_rows(shape):
    x, y = draw(*shape, D_IN), draw(*shape, D_OUT, seed=1)
    down, up = draw(C, R, D_IN, seed=2), draw(C, R, D_OUT, seed=3)
    out = add_low_rank(y, x, down, up, 0.7)
    rows = shape[0] // C
    for c in range(C):
        own = slice(c * rows, (c + 1) * rows)
        expected = y[own] + x[own] @ (0.7 * up[c].mT @ down[c]).mT
        torch.testing.assert_close(out[own], expected, rtol=0, atol=1e-12)
    assert out.shape == y.shape


def test_adapters_keep_their_precision_beside_a_backbone_in_half_precision():
    x, y = draw(C * B, T, D_IN).bfloat16(), draw(C * B, T, D_OUT, seed=1).bfloat16()
    down, up = draw(C, R, D_IN, seed=2).float(), draw(C, R, D_OUT, seed=3).float()
    out = add_low_rank(y, x, down, up, 0.7)
    assert out.dtype == torch.bfloat16
    low = add_low_rank(torch.zeros_like(y).double(), x.double(), down.double(), up.double(), 0.7)
    # Both summands are rounded once: an inner sum in bfloat16 would be off by more.
    assert torch.equal(out, y + low.bfloat16())


def test_rows_that_clients_share_are_an_error():
    """DeBERTa's positions come as one row, which would silently be dealt to the clients."""
    x, y = draw(1, 6, D_IN), draw(1, 6, D_OUT)
    down, up = draw(C, R, D_IN, seed=2), draw(C, R, D_OUT, seed=3)
    with pytest.raises(ConfigurationError, match=r"got 1 rows for 3 clients.*trainer\.clients_per_block to 1"):
        add_low_rank(y, x, down, up, 1.0)
    add_low_rank(y, x, down[:1], up[:1], 1.0)


@pytest.mark.parametrize("kind", ["linear", "conv1d"])
def test_a_residual_is_a_part_of_the_frozen_weight(kind):
    """It has the shape of the weight, (d_out, d_in): a transposed one would not fit."""
    linear, weight = make_linear(kind=kind)
    start = {"A": draw(R, D_IN, seed=1), "B": draw(D_OUT, R, seed=2)}
    adapter = LoraAdapter(linear, R, 0.5, start)
    adapter.load({field: tensor.unsqueeze(0) for field, tensor in start.items()})
    x = draw(4, T, D_IN, seed=3)
    for seed in (5, 6):  # the second replaces the first
        residual = draw(D_OUT, D_IN, seed=seed)
        adapter.share({"residual": residual})
        expected = x @ (weight + residual + 0.5 * start["B"] @ start["A"]).mT + linear.bias
        torch.testing.assert_close(adapter(x), expected, rtol=0, atol=1e-12)
    adapter.share({})
    expected = x @ (weight + 0.5 * start["B"] @ start["A"]).mT + linear.bias
    torch.testing.assert_close(adapter(x), expected, rtol=0, atol=1e-12)
