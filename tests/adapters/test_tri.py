import pytest
import torch

from adapters.plain import D_IN, D_OUT, B, C, NewShapes, R, T, dense_forward, draw, make_linear
from fedgram.adapters import LoraAdapter, TriAdapter, tri_start
from fedgram.seeding import torch_generator


def make(linear, rank=R, std=1e-3, name="A"):
    return TriAdapter(linear, rank, 0.3, tri_start(linear, rank, std, torch_generator(0, name)))


@pytest.mark.parametrize("kind", ["linear", "conv1d"])
@pytest.mark.parametrize(("d_in", "d_out"), [(11, 7), (7, 11), (6, 6)])
def test_forward_adds_s_b_c_a(kind, d_in, d_out):
    linear, weight = make_linear(d_in, d_out, kind)
    adapter = make(linear)
    A, C_, B_ = draw(C, R, d_in, seed=1), draw(C, R, R, seed=2), draw(C, d_out, R, seed=3)
    adapter.load({"A": A, "C": C_, "B": B_})
    x = draw(C * B, T, d_in, seed=4)
    expected = dense_forward(x, weight, linear.bias, 0.3 * B_ @ C_ @ A)
    torch.testing.assert_close(adapter(x), expected, rtol=0, atol=1e-12)


def test_with_the_identity_between_them_it_is_lora():
    linear, _ = make_linear()
    A, B_ = draw(C, R, D_IN, seed=1), draw(C, D_OUT, R, seed=2)
    adapter, lora = make(linear), LoraAdapter(linear, R, 0.3, {"A": A[0], "B": B_[0]})
    adapter.load({"A": A, "C": torch.eye(R, dtype=A.dtype).expand(C, R, R), "B": B_})
    lora.load({"A": A, "B": B_})
    x = draw(C * B, T, D_IN, seed=3)
    torch.testing.assert_close(adapter(x), lora(x), rtol=0, atol=1e-14)


def test_the_start_is_the_pretrained_function_with_a_small_normal_a():
    linear, _ = make_linear(dtype=torch.float32)
    adapter, same, other = (make(linear, 400, 1e-3, name) for name in "aab")
    layer = adapter.initial()
    shapes = {"A": (400, D_IN), "C": (400, 400), "B": (D_OUT, 400)}
    assert {field: tuple(tensor.shape) for field, tensor in layer.items()} == shapes
    assert {tensor.dtype for tensor in layer.values()} == {torch.float32}
    assert not layer["B"].any()
    assert torch.equal(layer["C"], torch.eye(400))
    assert layer["A"].std() == pytest.approx(1e-3, rel=0.05)
    assert torch.equal(same.initial()["A"], layer["A"])
    assert not torch.equal(other.initial()["A"], layer["A"])
    adapter.load({field: tensor.unsqueeze(0) for field, tensor in layer.items()})
    x = draw(2, T, D_IN, dtype=torch.float32)
    assert torch.equal(adapter(x), linear(x))


def test_all_three_matrices_have_a_gradient_and_delta_w_is_never_multiplied_out():
    linear, _ = make_linear()
    linear.forward = lambda x: x.new_zeros(*x.shape[:-1], D_OUT)
    adapter = make(linear)
    A, C_, B_ = (draw(*s, seed=i).requires_grad_() for i, s in enumerate([(C, R, D_IN), (C, R, R), (C, D_OUT, R)]))
    adapter.load({"A": A, "C": C_, "B": B_})
    x = draw(C * B, T, D_IN).requires_grad_()
    with NewShapes(A, B_, C_, x, linear.weight) as made:
        adapter(x).sum().backward()
    assert made.shapes
    assert not [shape for shape in made.shapes if {D_IN, D_OUT} <= set(shape)]
    assert all(t.grad.shape == t.shape and t.grad.any() for t in (A, B_, C_))
