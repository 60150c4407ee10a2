import numpy as np
import pytest
import torch

from adapters.plain import D_IN, D_OUT, B, C, NewShapes, R, T, dense_forward, draw, make_linear
from fedgram.adapters import GramAdapter, make_bases

SIZES = [(11, 7), (7, 11), (6, 6)]
KINDS = ["orthogonal", "kaiming", "svd", "identity"]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def dense(bases, d_in, d_out):
    """L and R with the identities written out, in float64."""
    k = min(d_in, d_out)
    return tuple(torch.eye(k).double() if basis is None else basis.double() for basis in bases)


def make_adapter(d_in, d_out, kind="linear", basis="orthogonal", preserve_start=True, dtype=torch.float64):
    linear, weight = make_linear(d_in, d_out, kind, dtype)
    bases = make_bases(basis, weight.float(), generator())
    start = draw(R, min(d_in, d_out), seed=9).float()
    return GramAdapter(linear, R, 0.3, bases, start, preserve_start), weight, *dense(bases, d_in, d_out)


def deltas(adapter, A, L, Rm):
    start = adapter.start["A"].double().mT @ adapter.start["A"].double() if adapter.preserve_start else 0
    return adapter.scale * L @ (A.mT @ A - start) @ Rm


@pytest.mark.parametrize("preserve_start", [True, False])
@pytest.mark.parametrize("basis", KINDS)
@pytest.mark.parametrize("kind", ["linear", "conv1d"])
@pytest.mark.parametrize(("d_in", "d_out"), SIZES)
def test_forward_adds_s_l_ata_r(d_in, d_out, kind, basis, preserve_start):
    adapter, weight, L, Rm = make_adapter(d_in, d_out, kind, basis, preserve_start)
    x = draw(C * B, T, d_in, seed=3)
    for clients in (C, 2 * C):  # what was kept of the start fits any number of clients
        A = draw(clients, R, min(d_in, d_out), seed=clients)
        adapter.load({"A": A})
        expected = dense_forward(x, weight, adapter.base.bias, deltas(adapter, A, L, Rm))
        torch.testing.assert_close(adapter(x), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("d_in", "d_out"), SIZES)
def test_the_start_is_the_pretrained_function_or_that_of_the_first_gram_matrix(d_in, d_out):
    x = draw(4, T, d_in, seed=3)
    for preserve_start in (True, False):
        adapter, weight, L, Rm = make_adapter(d_in, d_out, preserve_start=preserve_start)
        layer = adapter.initial()
        assert list(layer) == ["A"]
        assert torch.equal(layer["A"], adapter.start["A"])
        layer["A"] += 1  # a copy
        A = adapter.initial()["A"].double()
        assert not torch.equal(layer["A"].double(), A)
        adapter.load({"A": A.expand(2, -1, -1)})
        W = weight if preserve_start else weight + 0.3 * L @ A.mT @ A @ Rm
        torch.testing.assert_close(adapter(x), x @ W.mT + adapter.base.bias, rtol=0, atol=1e-12)
        assert torch.allclose(adapter(x), adapter.base(x), rtol=0, atol=1e-12) == preserve_start


@pytest.mark.parametrize("preserve_start", [True, False])
@pytest.mark.parametrize("basis", ["orthogonal", "kaiming"])
@pytest.mark.parametrize(("d_in", "d_out"), SIZES)
def test_gradient_is_that_of_eq_2(d_in, d_out, basis, preserve_start):
    adapter, weight, L, Rm = make_adapter(d_in, d_out, basis=basis, preserve_start=preserve_start)
    A = draw(C, R, min(d_in, d_out), seed=1).requires_grad_()
    adapter.load({"A": A})
    x, target = draw(C * B, T, d_in, seed=3), draw(C * B, T, d_out, seed=4)

    def losses(y):
        return (y.tanh() - target).square().reshape(C, -1).mean(dim=1)

    losses(adapter(x)).sum().backward()
    W = (weight + deltas(adapter, A.detach(), L, Rm)).requires_grad_()
    dense_y = torch.cat([part @ w.mT for part, w in zip(x.chunk(C), W, strict=True)]) + adapter.base.bias
    (G,) = torch.autograd.grad(losses(dense_y).sum(), W)
    H = L.mT @ G @ Rm.mT
    expected = adapter.scale * A.detach() @ (H + H.mT)
    assert expected.norm() > 1e-3
    torch.testing.assert_close(A.grad, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("basis", KINDS)
@pytest.mark.parametrize(("d_in", "d_out"), [(D_IN, D_OUT), (D_OUT, D_IN)])
def test_neither_delta_w_nor_a_gram_matrix_is_multiplied_out(d_in, d_out, basis, dtype):
    k = min(d_in, d_out)
    adapter, *_ = make_adapter(d_in, d_out, basis=basis, dtype=dtype)
    adapter.L, adapter.R = (None if basis is None else basis.double() for basis in (adapter.L, adapter.R))
    adapter.base.forward = lambda x: x.new_zeros(*x.shape[:-1], d_out)
    A = draw(C, R, k, seed=1).requires_grad_()
    x = draw(C * B, T, d_in).to(dtype).requires_grad_()
    known = [tensor for tensor in (A, x, adapter.base.weight, adapter.L, adapter.R) if tensor is not None]
    with NewShapes(*known) as made:
        adapter.load({"A": A})
        adapter(x).sum().backward()
    assert made.shapes
    assert not [shape for shape in made.shapes if {d_in, d_out} <= set(shape) or shape[-2:] == (k, k)]
    assert A.grad.shape == A.shape


def orthonormal(M, atol=1e-6):
    small = M @ M.mT if M.shape[0] < M.shape[1] else M.mT @ M
    return torch.allclose(small, torch.eye(len(small)), rtol=0, atol=atol)


@pytest.mark.parametrize(("d_in", "d_out"), SIZES)
def test_orthogonal_bases_are_semi_orthogonal_and_the_square_one_is_the_identity(d_in, d_out):
    _, weight = make_linear(d_in, d_out)
    L, Rm = make_bases("orthogonal", weight, generator())
    drawn, other = (L, Rm) if d_in <= d_out else (Rm, L)
    assert other is None
    assert drawn.shape == (d_out, d_in)
    assert drawn.dtype == torch.float32
    assert orthonormal(drawn)
    again, new = (make_bases("orthogonal", weight, generator(seed)) for seed in (0, 1))
    index = 0 if d_in <= d_out else 1
    assert torch.equal(again[index], drawn)
    assert not torch.allclose(new[index], drawn, atol=0.1)


@pytest.mark.parametrize(("d_in", "d_out"), SIZES)
def test_svd_bases_are_the_singular_vectors_of_the_weight(d_in, d_out):
    _, weight = make_linear(d_in, d_out)
    L, Rm = make_bases("svd", weight, generator())
    k = min(d_in, d_out)
    assert (L.shape, Rm.shape) == ((d_out, k), (k, d_in))
    assert orthonormal(L)
    assert orthonormal(Rm)
    sigma = L.double().mT @ weight @ Rm.double().mT
    expected = np.linalg.svd(weight.numpy(), compute_uv=False)
    np.testing.assert_allclose(sigma.numpy(), np.diag(expected), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("d_in", "d_out"), SIZES)
def test_identity_bases_are_the_leading_part_of_the_identity(d_in, d_out):
    _, weight = make_linear(d_in, d_out)
    bases = make_bases("identity", weight, generator())
    assert [basis is None for basis in bases] == [d_out <= d_in, d_in <= d_out]
    L, Rm = dense(bases, d_in, d_out)
    k = min(d_in, d_out)
    assert torch.equal(L, torch.eye(d_out, k).double())
    assert torch.equal(Rm, torch.eye(k, d_in).double())


def test_kaiming_bases_are_uniform_in_their_bounds_and_not_orthogonal():
    L, Rm = make_bases("kaiming", torch.zeros(80, 50), generator())
    assert (L.shape, Rm.shape) == ((80, 50), (50, 50))
    for basis in (L, Rm):
        assert 0.99 < basis.abs().max() * 50**0.5 <= 1
        assert basis.std() * 150**0.5 == pytest.approx(1, rel=0.05)
        assert not orthonormal(basis, atol=0.1)
    L, Rm = make_bases("kaiming", torch.zeros(50, 80), generator())
    assert 0.99 < L.abs().max() * 50**0.5 <= 1
    assert 0.99 < Rm.abs().max() * 80**0.5 <= 1
    assert Rm.shape == (50, 80)


def test_bases_and_start_are_no_part_of_what_is_saved():
    adapter, *_ = make_adapter(11, 7, basis="svd")
    assert set(adapter.state_dict()) == {"base.weight", "base.bias"}
    assert {name for name, _ in adapter.named_buffers()} == {"L", "R"}
    assert not [name for name, parameter in adapter.named_parameters() if parameter.requires_grad]


def test_a_backbone_in_half_precision_gets_the_float32_adapter_rounded_once():
    adapter, _, L, Rm = make_adapter(11, 7, dtype=torch.bfloat16)
    A = draw(C, R, 7, seed=1).float().requires_grad_()
    adapter.load({"A": A})
    x = draw(C * B, T, 11, seed=3).bfloat16()
    y = adapter(x)
    assert y.dtype == torch.bfloat16
    low = dense_forward(x.double(), 0, 0, deltas(adapter, A.detach().double(), L, Rm))
    expected = adapter.base(x) + low.bfloat16()
    torch.testing.assert_close(y, expected, rtol=2**-7, atol=2**-8)
    assert (y == expected).float().mean() > 0.95
    y.float().sum().backward()
    assert A.grad.dtype == torch.float32


def test_a_small_step_is_not_lost_in_autocast():
    """A step of AdamW moves A by less than bfloat16 resolves: A - A₁ must not be computed in it."""
    adapter, _, L, Rm = make_adapter(64, 48, dtype=torch.float32)
    adapter.start["A"] *= 0.02
    A = (adapter.start["A"] + 1e-4 * draw(R, 48, seed=1).sign().float()).unsqueeze(0)
    adapter.base.forward = lambda x: x.new_zeros(*x.shape[:-1], 48, dtype=torch.bfloat16)
    x = draw(4, T, 64, dtype=torch.float32)
    expected = x.double() @ deltas(adapter, A.double(), L, Rm).mT
    adapter.load({"A": A})
    with torch.autocast("cpu", torch.bfloat16):
        error = (adapter(x).double() - expected).norm() / expected.norm()
    assert error < 0.01


def test_the_start_follows_the_type_of_what_is_loaded():
    adapter, *_ = make_adapter(11, 7)
    x = draw(2, 11)
    for dtype in (torch.float32, torch.float64):
        adapter.load({"A": adapter.start["A"].to(dtype).unsqueeze(0)})
        down, up = adapter.factors()
        assert down.dtype == up.dtype == dtype
    torch.testing.assert_close(adapter(x), adapter.base(x), rtol=0, atol=1e-12)


def test_signs_of_the_singular_vectors_are_fixed_by_a_rule():
    """ΔW = L AᵀA R is another one where a pair of vectors has the other sign."""
    weight = draw(7, 11, seed=3).float()
    L, Rm = make_bases("svd", weight, torch.Generator())
    assert (Rm.gather(1, Rm.abs().argmax(dim=1, keepdim=True)) > 0).all()
    assert ((L.mT @ weight @ Rm.mT).diagonal() > 0).all()  # a pair keeps its sign together
