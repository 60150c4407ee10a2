import pytest
import torch

from adapters.plain import D_IN, D_OUT, B, C, NewShapes, R, T, dense_forward, draw, make_linear
from fedgram.adapters import NestedLoraAdapter, lora_start, nested_start
from fedgram.seeding import torch_generator

INNER = 1
OUTER = {"A": draw(R, D_IN, seed=1), "B": draw(D_OUT, R, seed=2)}


def make(kind="linear", dtype=torch.float64):
    linear, weight = make_linear(kind=kind, dtype=dtype)
    generator = torch_generator(0, "q")
    outer = lora_start(linear, R, generator)
    start = outer | nested_start(outer["A"], outer["B"], INNER, generator)
    adapter = NestedLoraAdapter(linear, R, 0.3, start, 0.7)
    adapter.share(OUTER)
    return linear, weight, adapter


def nested():
    shapes = {"Ad": (R, INNER), "Au": (INNER, D_IN), "Bd": (D_OUT, INNER), "Bu": (INNER, R)}
    return {field: draw(C, *shape, seed=seed) for seed, (field, shape) in enumerate(shapes.items(), 4)}


@pytest.mark.parametrize("kind", ["linear", "conv1d"])
def test_forward_has_every_clients_own_factors_of_the_factors_in_common(kind):
    linear, weight, adapter = make(kind)
    own, x = nested(), draw(C * B, T, D_IN, seed=3)
    adapter.load(own)
    up = OUTER["B"] + 0.7 * own["Bd"] @ own["Bu"]
    down = OUTER["A"] + 0.7 * own["Ad"] @ own["Au"]
    torch.testing.assert_close(adapter(x), dense_forward(x, weight, linear.bias, 0.3 * up @ down), rtol=0, atol=1e-12)


def test_at_the_start_of_a_round_the_factors_are_those_in_common():
    _, _, adapter = make()
    start = nested_start(OUTER["A"], OUTER["B"], INNER, torch_generator(1, "q"))
    own = {field: tensor.double().expand(C, *tensor.shape) for field, tensor in start.items()}
    adapter.load(own)
    down, up = adapter.factors()
    assert torch.equal(down, OUTER["A"].expand_as(down))
    assert torch.equal(up, OUTER["B"].mT.expand_as(up))
    assert all(start[field].any() == (field in ("Au", "Bu")) for field in start)


def test_all_nested_factors_learn_and_delta_w_is_never_multiplied_out():
    linear, _, adapter = make()
    own = {field: tensor.requires_grad_() for field, tensor in nested().items()}
    adapter.load(own)
    x = draw(C * B, T, D_IN).requires_grad_()
    linear.forward = lambda x: x.new_zeros(*x.shape[:-1], D_OUT)
    with NewShapes(*own.values(), *OUTER.values(), x, linear.weight) as made:
        adapter(x).sum().backward()
    assert not [shape for shape in made.shapes if {D_IN, D_OUT} <= set(shape)]
    assert all(tensor.grad.abs().sum() > 0 for tensor in own.values())
