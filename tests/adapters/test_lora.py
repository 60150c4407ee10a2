import pytest
import torch

from adapters.plain import D_IN, D_OUT, B, C, NewShapes, R, T, dense_forward, draw, make_linear
from fedgram.adapters import LoraAdapter, lora_start
from fedgram.seeding import torch_generator


@pytest.mark.parametrize("kind", ["linear", "conv1d"])
@pytest.mark.parametrize(("d_in", "d_out"), [(11, 7), (7, 11), (6, 6)])
def test_forward_adds_s_b_a(kind, d_in, d_out):
    linear, weight = make_linear(d_in, d_out, kind)
    adapter = LoraAdapter(linear, R, 0.3, lora_start(linear, R, torch_generator(0, "A")))
    A, B_ = draw(C, R, d_in, seed=1), draw(C, d_out, R, seed=2)
    adapter.load({"A": A, "B": B_})
    x = draw(C * B, T, d_in, seed=3)
    torch.testing.assert_close(adapter(x), dense_forward(x, weight, linear.bias, 0.3 * B_ @ A), rtol=0, atol=1e-12)


def test_the_start_is_the_pretrained_function_with_kaiming_a():
    linear, _ = make_linear(dtype=torch.float32)
    starts = [lora_start(linear, 400, torch_generator(0, name)) for name in "aab"]
    adapter, same, other = (LoraAdapter(linear, 400, 2.0, start) for start in starts)
    layer = adapter.initial()
    assert {field: tuple(tensor.shape) for field, tensor in layer.items()} == {"A": (400, D_IN), "B": (D_OUT, 400)}
    assert {tensor.dtype for tensor in layer.values()} == {torch.float32}
    assert not layer["B"].any()
    bound = D_IN**-0.5
    assert 0.99 * bound < layer["A"].abs().max() <= bound
    assert layer["A"].std() == pytest.approx(bound / 3**0.5, rel=0.05)
    assert torch.equal(same.initial()["A"], layer["A"])
    assert not torch.equal(other.initial()["A"], layer["A"])
    adapter.load({field: tensor.unsqueeze(0) for field, tensor in layer.items()})
    x = draw(2, T, D_IN, dtype=torch.float32)
    assert torch.equal(adapter(x), linear(x))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_delta_w_is_never_multiplied_out(dtype):
    """The second type is that of a backbone of lower precision than its adapters."""
    linear, _ = make_linear(dtype=dtype)
    linear.forward = lambda x: x.new_zeros(*x.shape[:-1], D_OUT)
    adapter = LoraAdapter(linear, R, 0.3, lora_start(linear, R, torch_generator(0, "A")))
    A, B_ = draw(C, R, D_IN).requires_grad_(), draw(C, D_OUT, R).requires_grad_()
    adapter.load({"A": A, "B": B_})
    x = draw(C * B, T, D_IN).to(dtype).requires_grad_()
    with NewShapes(A, B_, x, linear.weight) as made:
        adapter(x).sum().backward()
    assert made.shapes
    assert not [shape for shape in made.shapes if {D_IN, D_OUT} <= set(shape)]
    assert A.grad.shape == A.shape
