import pytest
import torch
from torch import nn

from adapters.plain import D_IN, D_OUT, B, C, T, draw, make_linear
from fedgram.adapters import HeadLinear


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(C * B,), (C * B, T)])
def test_each_client_has_weights_of_its_own(shape, bias):
    linear, _ = make_linear()
    head = HeadLinear(linear)
    tensors = {"weight": draw(C, D_OUT, D_IN)} | ({"bias": draw(C, D_OUT, seed=1)} if bias else {})
    head.load(tensors)
    x = draw(*shape, D_IN, seed=2)
    expected = [
        nn.functional.linear(part, tensors["weight"][c], tensors["bias"][c] if bias else None)
        for c, part in enumerate(x.chunk(C))
    ]
    torch.testing.assert_close(head(x), torch.cat(expected), rtol=0, atol=1e-12)


def test_the_start_is_the_pretrained_layer_copied():
    linear, weight = make_linear(dtype=torch.float16)
    head = HeadLinear(linear)
    layer = head.initial()
    assert torch.equal(layer["weight"], weight.float())
    assert torch.equal(layer["bias"], linear.bias.float())
    layer["weight"].zero_()
    assert torch.equal(linear.weight, weight)
    linear, _ = make_linear(dtype=torch.float32)
    layer = HeadLinear(linear).initial()
    layer["bias"].zero_()
    assert linear.bias.any()
    assert list(HeadLinear(nn.Linear(3, 2, bias=False)).initial()) == ["weight"]
    assert HeadLinear.part == "head"


def test_a_head_keeps_its_precision_after_a_backbone_in_half_precision():
    linear, _ = make_linear(dtype=torch.bfloat16)
    head = HeadLinear(linear)
    weight = draw(C, D_OUT, D_IN).float()
    head.load({"weight": weight})
    x = draw(C, D_IN).bfloat16()
    assert head(x).dtype == torch.float32
    expected = torch.einsum("coi,ci->co", weight.double(), x.double())
    torch.testing.assert_close(head(x).double(), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("bias", [True, False])
def test_it_computes_in_its_own_precision_under_autocast(bias):
    with torch.random.fork_rng(devices=[]):
        head = HeadLinear(nn.Linear(6, 3, bias=bias))
    head.load({field: tensor.unsqueeze(0) for field, tensor in head.initial().items()})
    x = draw(4, 6).float()
    expected = head(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(head(x), expected)
