import pytest
import torch

from adapters.plain import D_IN, D_OUT, B, C, NewShapes, R, T, dense_forward, draw, make_linear
from fedgram.adapters import LoraPairAdapter, lora_pair_start, lora_start
from fedgram.seeding import torch_generator

SECOND = 3


def make(kind="linear", dtype=torch.float64, **settings):
    linear, weight = make_linear(kind=kind, dtype=dtype)
    start = lora_pair_start(linear, R, SECOND, torch_generator(0, "q"))
    return linear, weight, LoraPairAdapter(linear, R, 0.3, start, **settings)


def tensors():
    return {
        "A": draw(C, R, D_IN, seed=1),
        "B": draw(C, D_OUT, R, seed=2),
        "L": draw(C, SECOND, D_IN, seed=4),
        "U": draw(C, D_OUT, SECOND, seed=5),
    }


@pytest.mark.parametrize("kind", ["linear", "conv1d"])
@pytest.mark.parametrize(
    ("settings", "scales"),
    [({}, (0.3, 0.3)), ({"weights": (1.0, 1.7)}, (0.3, 0.51)), ({"weights": (0.25, 0.0)}, (0.075, 0))],
)
def test_forward_adds_both_products_each_with_its_weight(kind, settings, scales):
    linear, weight, adapter = make(kind, **settings)
    own, x = tensors(), draw(C * B, T, D_IN, seed=3)
    adapter.load(own)
    deltas = scales[0] * own["B"] @ own["A"] + scales[1] * own["U"] @ own["L"]
    torch.testing.assert_close(adapter(x), dense_forward(x, weight, linear.bias, deltas), rtol=0, atol=1e-12)


def test_both_pairs_start_as_lora_does_and_differ():
    linear, _, adapter = make(dtype=torch.float32)
    start = adapter.initial()
    shapes = {"A": (R, D_IN), "B": (D_OUT, R), "L": (SECOND, D_IN), "U": (D_OUT, SECOND)}
    assert {field: tuple(tensor.shape) for field, tensor in start.items()} == shapes
    assert not start["B"].any()
    assert not start["U"].any()
    assert not torch.equal(start["A"][:R], start["L"][:R])
    wide = lora_pair_start(linear, 1, 400, torch_generator(0, "q"))["L"].std()
    assert float(wide) == pytest.approx(float(lora_start(linear, 400, torch_generator(0, "A"))["A"].std()), rel=0.1)
    adapter.load({field: tensor.unsqueeze(0) for field, tensor in start.items()})
    x = draw(2, T, D_IN, dtype=torch.float32)
    assert torch.equal(adapter(x), linear(x))


def test_delta_w_is_never_multiplied_out_and_all_factors_learn():
    linear, _, adapter = make()
    own = {field: tensor.requires_grad_() for field, tensor in tensors().items()}
    adapter.load(own)
    x = draw(C * B, T, D_IN).requires_grad_()
    linear.forward = lambda x: x.new_zeros(*x.shape[:-1], D_OUT)
    with NewShapes(*own.values(), x, linear.weight) as made:
        adapter(x).sum().backward()
    assert not [shape for shape in made.shapes if {D_IN, D_OUT} <= set(shape)]
    assert all(tensor.grad.abs().sum() > 0 for tensor in own.values())
