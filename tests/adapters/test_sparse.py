import pytest
import torch
from torch import nn

from adapters.plain import D_IN, D_OUT, B, C, R, T, dense_forward, draw, make_linear
from fedgram.adapters import SparseLoraAdapter, draw_positions, lora_start
from fedgram.adapters.sparse import _SparseProduct
from fedgram.errors import ConfigurationError
from fedgram.seeding import torch_generator
from test_packing import Probe, Stack

S = 0.3


def make(linear, density=0.2):
    positions = draw_positions(D_IN * D_OUT, density, torch_generator(0, "mask"))
    start = {"delta": torch.zeros(len(positions)), **lora_start(linear, R, torch_generator(0, "A"))}
    return SparseLoraAdapter(linear, R, S, start, positions)


def drawn(adapter, fields, clients=C, dtype=torch.float64):
    shapes = {"delta": (len(adapter.positions),), "A": (R, D_IN), "B": (D_OUT, R)}
    return {f: draw(clients, *shapes[f], seed=i, dtype=dtype) for i, f in enumerate(shapes) if f in fields}


def multiplied_out(adapter, tensors):
    """ΔW of every client, entry by entry."""
    clients = len(next(iter(tensors.values())))
    deltas = torch.zeros(clients, D_OUT, D_IN, dtype=torch.float64)
    for delta, row in zip(deltas, tensors.get("delta", deltas[:, 0, :0]), strict=True):
        for place, value in zip(adapter.positions.tolist(), row.tolist(), strict=False):
            delta[place // D_IN, place % D_IN] = value
    return deltas + (S * tensors["B"] @ tensors["A"] if "A" in tensors else 0)


STAGES = [["delta"], ["A", "B"], ["delta", "A", "B"]]


@pytest.mark.parametrize("fields", STAGES, ids="-".join)
@pytest.mark.parametrize("kind", ["linear", "conv1d"])
def test_forward_adds_what_is_loaded(kind, fields):
    linear, weight = make_linear(kind=kind)
    adapter, x = make(linear), draw(C * B, T, D_IN, seed=7)
    tensors = drawn(adapter, fields)
    adapter.load(tensors)
    expected = dense_forward(x, weight, linear.bias, multiplied_out(adapter, tensors))
    torch.testing.assert_close(adapter(x), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("fields", STAGES, ids="-".join)
@pytest.mark.parametrize("kind", ["linear", "conv1d"])
def test_a_merged_layer_says_the_same(kind, fields):
    linear, _ = make_linear(kind=kind)
    adapter, x, before = make(linear), draw(4, T, D_IN, seed=7), linear.weight.clone()
    adapter.load(drawn(adapter, fields, clients=1))
    apart = adapter(x)
    adapter.merge(1000)
    assert len(list(adapter.held_once())) == 1
    torch.testing.assert_close(adapter(x), apart, rtol=0, atol=1e-12)
    assert (apart - linear(x)).abs().max() > 1e-3
    assert torch.equal(linear.weight, before)


def test_every_client_of_a_packed_batch_has_its_own_sparse_change():
    linear, weight = make_linear()
    adapter, lengths = make(linear), [9, 5, 3]
    tensors = drawn(adapter, {"delta"})
    adapter.load(tensors)
    x = draw(1, 18, D_IN, seed=7)  # 18 is the next number with an eighth of 16
    seen = []
    Stack(nn.ModuleList([Probe(lambda hidden: seen.append(adapter(x)) or hidden)])).run(lengths)
    deltas, begin = multiplied_out(adapter, tensors), 0
    for delta, length in zip(deltas, lengths, strict=True):
        own = x[0, begin : begin + length] @ (weight + delta).mT + linear.bias
        torch.testing.assert_close(seen[0][0, begin : begin + length], own, rtol=0, atol=1e-12)
        begin += length


@pytest.mark.parametrize("needed", [(True, True, True), (True, False, True), (False, True, False)])
def test_the_gradients_are_those_of_differences(needed):
    positions = draw_positions(4 * 7, 0.3, torch_generator(0, "mask"))
    tensors = [draw(9, 4, seed=1), draw(9, 7, seed=2), draw(3, len(positions), seed=3)]
    for tensor, need in zip(tensors, needed, strict=True):
        tensor.requires_grad_(need)
    assert torch.autograd.gradcheck(lambda *given: _SparseProduct.apply(*given, positions, [3, 5, 1]), tensors)


def test_a_backbone_of_lower_precision_keeps_its_type():
    linear, _ = make_linear(dtype=torch.bfloat16)
    adapter = make(linear)
    tensors = drawn(adapter, {"delta"}, dtype=torch.float32)
    adapter.load({f: t.requires_grad_() for f, t in tensors.items()})
    x = draw(C * B, T, D_IN, seed=7).to(torch.bfloat16).requires_grad_()
    y = adapter(x)
    y.float().square().sum().backward()
    assert y.dtype == x.grad.dtype == torch.bfloat16
    assert tensors["delta"].grad.dtype == torch.float32


def test_rows_that_samples_share_are_an_error():
    adapter = make(make_linear()[0])
    adapter.load(drawn(adapter, {"delta"}))
    with pytest.raises(ConfigurationError, match="4 rows for 3 clients"):
        adapter(draw(4, T, D_IN))


@pytest.mark.parametrize(("density", "count"), [(1e-9, 1), (0.1, 8), (1.0, 77)])
def test_positions_are_a_share_of_the_entries_each_once(density, count):
    positions = draw_positions(D_IN * D_OUT, density, torch_generator(0, "mask"))
    assert len(positions) == count
    assert positions.tolist() == sorted(set(positions.tolist()))
    assert 0 <= positions.min() <= positions.max() < D_IN * D_OUT
    if 1 < count < 77:
        assert not torch.equal(positions, draw_positions(D_IN * D_OUT, density, torch_generator(1, "mask")))
