import contextlib
import copy

import pytest
import torch
from torch import nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from fedgram import FedIT
from fedgram.adapters.inject import linear_layers
from fedgram.backbone import frozen_linear as frozen
from test_trainer import fit  # noqa: F401

TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 6e-2}


def draw(*shape, dtype=torch.float64, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def check(x, weight, bias):
    """Compare values and the gradient of x with the definition in double precision."""
    x = x.detach().requires_grad_()
    y = frozen.linear(x, weight, bias)
    gradient = draw(*y.shape, dtype=y.dtype, seed=1)
    (found,) = torch.autograd.grad(y, x, gradient)
    expected = x.double() @ weight.double().mT + (0 if bias is None else bias.double())
    tolerance = TOLERANCE[x.dtype]
    assert y.dtype == found.dtype == x.dtype
    torch.testing.assert_close(y.double(), expected, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(found.double(), gradient.double() @ weight.double(), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("onednn", [True, False])
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shape", [(6, 3), (2, 4, 3), (1, 3), (3,), (0, 3)])
def test_the_product_is_that_of_the_definition(monkeypatch, shape, dtype, onednn):
    if not onednn:
        monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    weight, bias = draw(5, 3, dtype=dtype, seed=2), draw(5, dtype=dtype, seed=3)
    check(draw(*shape, dtype=dtype), weight, bias)
    check(draw(*shape, dtype=dtype), draw(3, 5, dtype=dtype, seed=2).mT, None)


@pytest.mark.parametrize("x", [draw(3, 8).mT, draw(1, 3).expand(4, 3), draw(8, 6)[:, ::2]])
def test_rows_may_lie_in_memory_as_they_like(x):
    check(x.float(), draw(5, 3, dtype=torch.float32), None)


def test_a_gradient_may_be_one_number_for_all():
    x = draw(4, 3, dtype=torch.float32).requires_grad_()
    weight = draw(5, 3, dtype=torch.float32)
    frozen.linear(x, weight, None).sum().backward()
    torch.testing.assert_close(x.grad, weight.sum(dim=0).expand(4, 3))


@pytest.mark.parametrize("make", [lambda: nn.Linear(3, 5), lambda: nn.Linear(3, 5, bias=False), lambda: Conv1D(5, 3)])
def test_layers_say_what_they_said_before(make):
    layer, x = make().requires_grad_(False), draw(2, 4, 3, dtype=torch.float32)
    expected, names = layer(x), list(layer.state_dict())
    frozen.install([layer])
    torch.testing.assert_close(layer(x), expected)
    torch.testing.assert_close(copy.deepcopy(layer)(x), expected)
    assert list(layer.state_dict()) == names


def seen_by_linear(monkeypatch):
    seen = []
    monkeypatch.setattr(functional, "linear", lambda x, w, b: seen.append((x, w)) or x @ w.mT)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    return seen


@pytest.mark.parametrize("make", [lambda: nn.Linear(3, 5), lambda: Conv1D(5, 3)])
def test_under_autocast_a_weight_is_cast_once(monkeypatch, make):
    layer, x = make().requires_grad_(False), draw(2, 3, dtype=torch.float32)
    frozen.install([layer])
    names, seen = list(layer.state_dict()), seen_by_linear(monkeypatch)
    for grad_mode in (torch.inference_mode, torch.enable_grad, contextlib.nullcontext):
        with torch.autocast("cpu", dtype=torch.bfloat16), grad_mode():
            layer(x)
    weights = [weight for _, weight in seen]
    assert all(weight.dtype == torch.bfloat16 and not weight.is_inference() for weight in weights)
    assert len({weight.data_ptr() for weight in weights}) == 1
    assert all(rows.dtype == torch.bfloat16 for rows, _ in seen)
    assert list(layer.state_dict()) == names
    layer.weight.mul_(2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        layer(x)
    torch.testing.assert_close(seen[-1][1], 2 * weights[0])


def test_autocast_says_what_it_says_of_other_layers():
    layer, x = nn.Linear(30, 50).requires_grad_(False), draw(7, 30, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = layer(x)
    frozen.install([layer])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = layer(x)
    assert found.dtype == expected.dtype
    torch.testing.assert_close(found, expected, rtol=2e-2, atol=2e-2)


def test_all_layers_of_a_backbone_are_ready(fit):  # noqa: F811
    _, trainer = fit(method=FedIT(rank=2), rounds=1)
    layers = linear_layers(trainer.federation.network.task.loaded())
    assert len(layers) == 2 * 6 + 1
    assert all("forward" in vars(layer) for layer in layers.values())
