import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

import limit
from tiny_models import save_tiny

D, F, RANK = 16, 24, 4


@pytest.fixture
def model(tmp_path):
    return limit.classifier(save_tiny("bert", tmp_path))


def by_hand(L):
    """Two layers of BERT, q and v of both adapted, and what a sequence costs once: pooler and classifier."""
    forward = 2 * (4 * D * D + 2 * D * F) * 2 * L
    backward = forward - 3 * D * D * 2 * L  # nobody needs the gradient of what enters the first q, k and v
    attention = 2 * 12 * L * L * D - 2 * L * L * D  # nor that of the first k
    adapters = 4 * (4 + 8) * D * RANK * L - 2 * 2 * D * RANK * L
    once = 2 * (2 * D * D + 2 * 2 * D)
    return forward + backward + attention + adapters + once


def test_the_operations_of_training_are_those_counted_by_hand(model):
    limit.add_adapters(model, ["query", "value"], RANK)
    assert limit.training_flops(model, np.array([10, 50])) == pytest.approx(by_hand(10) + by_hand(50), rel=1e-9)


def test_the_layers_that_every_token_goes_through_are_counted_by_shape(model):
    assert limit.linear_shapes(model) == {(D, D): 9, (F, D): 2, (D, F): 2}  # the pooler has the shape of q


def test_the_rate_of_products_is_that_of_operations_over_time(monkeypatch):
    calls = []

    def timed(function, repeats, within):
        calls.append(function().shape)
        return 0.5

    monkeypatch.setattr(limit, "best_seconds", timed)
    rate = limit.product_rate({(3, 2): 4, (5, 7): 1}, torch.float32, functional.linear, rows=[10])
    assert calls == [(10, 3), (10, 2), (10, 5), (10, 7)]
    assert rate == (4 * 4 * 10 * 3 * 2 + 4 * 10 * 5 * 7) / (2 * 4 * 0.5 + 2 * 0.5)


def test_the_limit_is_the_fastest_rate_over_the_operations_of_a_step(tmp_path, model, monkeypatch):
    def rate(shapes, dtype, product):
        if dtype == torch.float32:
            return 4e8 if product is functional.linear else 1e9
        return 3e9 if product is functional.linear else 2e9

    monkeypatch.setattr(limit, "product_rate", rate)
    monkeypatch.setattr(torch, "set_num_threads", lambda threads: None)
    figures = limit.steps_per_second(tmp_path, np.array([10, 50]), 2, 1, ["query", "value"], RANK)
    each = (by_hand(10) + by_hand(50)) / 2
    assert figures["gflop_per_step"] == pytest.approx(each / 1e9)
    assert figures["float32_linear_gflops"] == 0.4
    assert figures["float32"] == pytest.approx(1e9 / each)
    assert figures["bfloat16"] == pytest.approx(3e9 / each)


def test_a_model_of_single_layers_counts_them_all():
    assert limit.linear_shapes(nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))) == {(3, 2): 1, (1, 3): 1}
