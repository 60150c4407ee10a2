"""The oracle is NumPy with an explicit Q (`literal_step`, `mean_gram`); nothing of it calls the code under test."""

import doctest

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode

from fedgram.numerics import linalg
from helpers import conditioned, deficient, drifted, orthogonal, rng, unequal_weights, with_singular_values

EPS = np.finfo(float).eps


def t(array):
    return torch.from_numpy(np.ascontiguousarray(array))


def close(actual, expected, tolerance=1e-10):
    """The error of a matrix, relative to the norm of what it should be, is within the tolerance."""
    expected = np.asarray(expected)
    assert tuple(actual.shape) == expected.shape
    assert actual.dtype == torch.float64
    error = np.linalg.norm(actual.numpy() - expected)
    assert error <= tolerance * max(np.linalg.norm(expected), np.finfo(float).tiny), error


def mean_gram(factors, weights):
    """Q = Σ wₙ AₙᵀAₙ (eq. 4)."""
    return sum(w * A.T @ A for w, A in zip(weights, factors, strict=True))


def literal_step(A, factors, weights, rank_of_M=None):
    """Eqs. (4)-(11) as they stand: Q, its eigenvectors, the SVD of A Ãᵀ, of which the known rank is kept."""
    Q = mean_gram(factors, weights)
    values, vectors = np.linalg.eigh(Q)
    keep = values > EPS * len(Q) * values[-1]
    factor = np.sqrt(values[keep])[:, None] * vectors[:, keep].T
    U, _, Vh = np.linalg.svd(A @ factor.T, full_matrices=False)
    return U[:, :rank_of_M] @ Vh[:rank_of_M] @ factor


def server_step(A, factors, weights):
    return linalg.align(t(A), linalg.weighted_stack(t(factors), t(weights)))


def test_the_examples_of_the_docstrings_hold():
    result = doctest.testmod(linalg)
    assert result.attempted >= 16
    assert result.failed == 0


# --- bases ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rows", "cols"), [(7, 3), (3, 7), (5, 5), (1, 1), (4, 1)])
def test_semi_orthogonal_has_orthonormal_columns_or_rows(rows, cols):
    M = linalg.semi_orthogonal(rows, cols, torch.Generator().manual_seed(1))
    small = M.mT @ M if rows >= cols else M @ M.mT
    assert M.shape == (rows, cols)
    close(small, np.eye(min(rows, cols)), 1e-12)


def test_semi_orthogonal_is_the_unique_q_of_its_gaussian():
    normal = torch.randn(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(3)).numpy()
    Q = linalg.semi_orthogonal(6, 4, torch.Generator().manual_seed(3)).numpy()
    R = Q.T @ normal
    assert np.allclose(np.tril(R, -1), 0, atol=1e-12)
    assert (np.diag(R) > 0).all()
    assert np.allclose(Q @ R, normal, atol=1e-12)


def test_semi_orthogonal_is_haar():
    """Of a Haar matrix the first entry has mean 0 and variance 1/n; a raw QR would give it one sign always."""
    generator = torch.Generator().manual_seed(0)
    entries = np.array([float(linalg.semi_orthogonal(4, 2, generator)[0, 0]) for _ in range(2000)])
    assert abs(entries.mean()) < 4 * 0.5 / np.sqrt(2000)
    assert abs(entries.var() - 1 / 4) < 0.03


def test_semi_orthogonal_depends_on_its_generator_alone():
    first = linalg.semi_orthogonal(5, 2, torch.Generator().manual_seed(1))
    torch.manual_seed(123)
    assert torch.equal(first, linalg.semi_orthogonal(5, 2, torch.Generator().manual_seed(1)))
    assert not torch.allclose(first, linalg.semi_orthogonal(5, 2, torch.Generator().manual_seed(2)))


@pytest.mark.parametrize(("rows", "cols"), [(0, 3), (3, 0), (-1, 2)])
def test_semi_orthogonal_refuses_an_empty_shape(rows, cols):
    with pytest.raises(ValueError, match="positive dimensions"):
        linalg.semi_orthogonal(rows, cols, torch.Generator())


# --- Gram matrices and their factors -------------------------------------------------------------------------------


def test_gram_is_that_of_the_columns():
    A = rng().standard_normal((3, 5))
    close(linalg.gram(t(A)), np.einsum("ri,rj->ij", A, A), 1e-12)


def test_weighted_stack_is_a_factor_of_the_mean_gram():
    random = rng(1)
    factors, weights = random.standard_normal((4, 3, 10)), unequal_weights(4, random)
    Z = linalg.weighted_stack(t(factors), t(weights))
    close(Z.mT @ Z, mean_gram(factors, weights), 1e-12)
    close(Z[3:6], np.sqrt(weights[1]) * factors[1], 1e-12)


@pytest.mark.parametrize(("factors", "weights"), [((2, 3, 4), (3,)), ((3, 4), (3,)), ((2, 3, 4), (2, 1))])
def test_weighted_stack_refuses_other_shapes(factors, weights):
    with pytest.raises(ValueError, match="one weight per client"):
        linalg.weighted_stack(torch.ones(factors), torch.ones(weights))


def test_weighted_stack_refuses_a_negative_weight():
    with pytest.raises(ValueError, match="positive semi-definite"):
        linalg.weighted_stack(torch.ones(2, 1, 3), torch.tensor([1.5, -0.5]))


@pytest.mark.parametrize("rank", [1, 3, 7])
def test_gram_factor_is_canonical(rank):
    Z = deficient(9, 7, rank, rng(2))
    factor = linalg.gram_factor(t(Z.T @ Z))
    assert factor.shape == (rank, 7)
    close(factor.mT @ factor, Z.T @ Z, 1e-12)
    squares = np.linalg.eigvalsh(Z.T @ Z)[::-1][:rank]
    close(factor @ factor.mT, np.diag(squares), 1e-12)  # orthogonal rows, eigenvalues descending


@pytest.mark.parametrize(("rows", "cols", "rank"), [(9, 7, 3), (4, 11, 4), (4, 11, 2), (6, 6, 5)])
def test_stack_factor_is_canonical(rows, cols, rank):
    Z = deficient(rows, cols, rank, rng(3))
    factor = linalg.stack_factor(t(Z))
    assert factor.shape == (rank, cols)
    close(factor.mT @ factor, Z.T @ Z, 1e-12)
    close(factor @ factor.mT, np.diag(np.linspace(2, 1, rank) ** 2), 1e-12)


def test_stack_factor_sees_what_gram_factor_cannot():
    Z = with_singular_values(5, 8, [1, 1e-10], rng(4))
    assert linalg.stack_factor(t(Z)).shape[0] == 2
    assert linalg.gram_factor(t(Z.T @ Z)).shape[0] == 1


def test_a_gram_matrix_of_rank_r_survives_float32_rounding_of_its_inputs():
    A = rng(5).standard_normal((3, 6)).astype(np.float32)
    close(linalg.gram(t(A)), A.astype(float).T @ A.astype(float), 1e-14)
    assert linalg.gram_factor(linalg.gram(t(A))).shape[0] == 3


def test_factors_of_zero_have_no_rows():
    assert linalg.gram_factor(torch.zeros(5, 5)).shape == (0, 5)
    assert linalg.stack_factor(torch.zeros(4, 5)).shape == (0, 5)


@pytest.mark.parametrize("shape", [(3, 4), (4,), (2, 3, 3)])
def test_gram_factor_refuses_what_is_no_gram_matrix(shape):
    with pytest.raises(ValueError, match="square Gram matrix"):
        linalg.gram_factor(torch.ones(shape))


# --- polar factors and Procrustes ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("rows", "cols"), [(3, 7), (7, 3), (4, 4)])
@pytest.mark.parametrize("condition", [1, 1e4, 1e8])
def test_polar_times_a_semi_definite_matrix_is_the_matrix(rows, cols, condition):
    M = conditioned(rows, cols, condition, rng(6))
    W = linalg.polar(t(M)).numpy()
    H = W.T @ M
    assert np.allclose(W @ H, M, atol=1e-12)
    assert np.allclose(H, H.T, atol=1e-12)
    assert np.linalg.eigvalsh((H + H.T) / 2).min() > -1e-12
    assert np.allclose(np.linalg.svd(W, compute_uv=False), 1, atol=1e-12)


@pytest.mark.parametrize("rank", [0, 1, 3])
def test_polar_of_a_deficient_matrix_is_a_partial_isometry(rank):
    M = deficient(4, 6, rank, rng(7))
    W = linalg.polar(t(M))
    singular = np.linalg.svd(W.numpy(), compute_uv=False)
    assert np.allclose(singular, [1] * rank + [0] * (4 - rank), atol=1e-12)


def test_polar_counts_what_is_below_the_floor_as_zero():
    M = torch.diag(torch.tensor([1.0, 1e-3]))
    close(linalg.polar(M), np.eye(2))
    close(linalg.polar(M, floor=1e-2), np.diag([1.0, 0.0]))


@pytest.mark.parametrize("r", [1, 2, 3, 5])
@pytest.mark.parametrize("sign", [1, -1])
def test_the_nearest_rotation_is_the_best_of_all(r, sign):
    random = rng(12)
    U, V = orthogonal(r, random), orthogonal(r, random)
    U[:, 0] *= sign * np.linalg.det(U @ V)  # det M > 0, or < 0, where a reflection would be nearer
    values = np.linspace(3, 1, r)
    M = U * values @ V
    R = linalg.nearest_rotation(t(M)).numpy()
    assert np.allclose(R.T @ R, np.eye(r), atol=1e-12)
    assert np.linalg.det(R) == pytest.approx(1)
    best = np.trace(R.T @ M)
    assert best == pytest.approx(values.sum() - (sign < 0) * 2 * values[-1], abs=1e-10)
    for _ in range(200):
        other = orthogonal(r, random)
        other[:, 0] *= np.linalg.det(other)
        assert np.trace(other.T @ M) <= best + 1e-10


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_the_nearest_rotation_turns_nothing_that_it_is_not_told_to(rank):
    """All rotations that agree on the range of a semi-definite M are as near to it; only one is the identity."""
    half = deficient(4, 4, rank, rng(13))
    close(linalg.nearest_rotation(t(half @ half.T)), np.eye(4), 1e-3)


@pytest.mark.parametrize(("r", "k"), [(3, 8), (4, 4), (2, 5)])
def test_procrustes_recovers_a_rotation(r, k):
    random = rng(8)
    factor, rotation = conditioned(r, k, 50, random), orthogonal(r, random)
    close(linalg.procrustes(t(rotation @ factor), t(factor)), rotation)


@pytest.mark.parametrize(("r", "rank"), [(4, 4), (5, 3)])
def test_procrustes_is_optimal(r, rank):
    """For r' <= r no other matrix with orthonormal columns brings the factor nearer to the target (8a), (8b)."""
    random = rng(9)
    target, factor = random.standard_normal((r, 7)), random.standard_normal((rank, 7))
    S = linalg.procrustes(t(target), t(factor)).numpy()
    assert np.allclose(S.T @ S, np.eye(rank), atol=1e-12)
    best = np.linalg.norm(S @ factor - target)
    far = [orthogonal(r, random)[:, :rank] for _ in range(200)]
    near = [np.linalg.qr(S + 1e-3 * random.standard_normal(S.shape)) for _ in range(200)]
    near = [Q * np.sign(np.diag(R)) for Q, R in near]
    assert all(np.linalg.norm(other @ factor - target) > best for other in far + near)


def test_procrustes_maximises_the_trace_for_a_factor_of_higher_rank():
    random = rng(10)
    target, factor = random.standard_normal((3, 9)), random.standard_normal((6, 9))
    S = linalg.procrustes(t(target), t(factor)).numpy()
    assert np.allclose(S @ S.T, np.eye(3), atol=1e-12)
    best = np.trace(target @ factor.T @ S.T)
    others = [orthogonal(6, random)[:3] for _ in range(200)]
    assert all(np.trace(target @ factor.T @ other.T) < best for other in others)


@given(scale=st.floats(1e-6, 1e6), seed=st.integers(0, 99))
@settings(max_examples=20, deadline=None)
def test_procrustes_does_not_depend_on_scale(scale, seed):
    random = rng(seed)
    target, factor = random.standard_normal((3, 6)), random.standard_normal((4, 6))
    close(linalg.procrustes(t(scale * target), t(factor)), linalg.procrustes(t(target), t(factor)), 1e-9)


@pytest.mark.parametrize(
    ("target", "factor"), [((3, 4), (3, 5)), ((4, 3), (5, 4)), ((4,), (2, 4)), ((2, 4), (1, 2, 4))]
)
def test_procrustes_refuses_factors_of_different_layers(target, factor):
    with pytest.raises(ValueError, match="one k"):
        linalg.procrustes(torch.ones(target), torch.ones(factor))


# --- the server step -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("condition", [1, 1e2, 1e4])
@pytest.mark.parametrize("drift", [1e-2, 1.0])
@pytest.mark.parametrize(("r", "k", "clients"), [(4, 24, 5), (4, 6, 5), (3, 17, 2)])
def test_align_equals_the_literal_equations(r, k, clients, drift, condition):
    """With N r <= k and N r > k: r' = N r, and r' = k."""
    random = rng(11)
    A = conditioned(r, k, condition, random)
    factors, weights = drifted(A, clients, drift, random), unequal_weights(clients, random)
    close(server_step(A, factors, weights), literal_step(A, factors, weights))


def test_all_solvers_take_the_same_step():
    random = rng(12)
    A = conditioned(4, 20, 30, random)
    factors, weights = drifted(A, 3, 0.3, random), unequal_weights(3, random)
    Q, Z = mean_gram(factors, weights), linalg.weighted_stack(t(factors), t(weights))
    for factor in (linalg.gram_factor(t(Q)), linalg.stack_factor(Z), Z):
        close(linalg.procrustes(t(A), factor) @ factor, literal_step(A, factors, weights))


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_align_with_a_deficient_server_factor(rank):
    """A of rank < r, clients of full rank: the arbitrary singular vectors of A Ãᵀ must not enter."""
    random = rng(13)
    A = deficient(4, 15, rank, random)
    factors, weights = drifted(A, 3, 0.5, random), unequal_weights(3, random)
    step = server_step(A, factors, weights)
    close(step, literal_step(A, factors, weights, rank_of_M=rank))
    assert np.linalg.matrix_rank(step.numpy()) == rank


@pytest.mark.parametrize("rank", [1, 3, 4])
def test_align_when_the_mean_gram_has_rank_below_or_equal_r(rank):
    """r' <= r: nothing is lost, the Gram matrix of the step is Q."""
    random = rng(14)
    core = deficient(rank, 12, rank, random)
    factors = np.stack([random.standard_normal((4, rank)) @ core for _ in range(3)])
    A, weights = random.standard_normal((4, 12)), unequal_weights(3, random)
    step = server_step(A, factors, weights)
    close(step.mT @ step, mean_gram(factors, weights))
    close(step, literal_step(A, factors, weights, rank_of_M=rank))


@pytest.mark.parametrize("condition", [1, 1e4])
def test_one_client_keeps_its_gram_matrix(condition):
    A = conditioned(4, 13, condition, rng(15))
    own = drifted(A, 1, 0.2, rng(16))
    step = server_step(A, own, np.ones(1))
    close(step.mT @ step, own[0].T @ own[0])


def test_clients_that_only_rotate_change_nothing():
    """AₙᵀAₙ = AᵀA for all n, so the step must be A itself; a mean of the Aₙ would not be."""
    random = rng(17)
    A = conditioned(4, 13, 100, random)
    factors = np.stack([orthogonal(4, random) @ A for _ in range(5)])
    close(server_step(A, factors, unequal_weights(5, random)), A)


def test_the_step_does_not_depend_on_the_clients_rotations():
    random = rng(18)
    A = conditioned(4, 13, 10, random)
    factors, weights = drifted(A, 5, 0.4, random), unequal_weights(5, random)
    rotated = np.stack([orthogonal(4, random) @ own for own in factors])
    close(server_step(A, rotated, weights), server_step(A, factors, weights))


def test_the_step_does_not_depend_on_the_order_of_the_clients():
    random = rng(19)
    A = conditioned(4, 13, 10, random)
    factors, weights = drifted(A, 5, 0.4, random), unequal_weights(5, random)
    order = random.permutation(5)
    close(server_step(A, factors[order], weights[order]), server_step(A, factors, weights), 1e-12)
    with pytest.raises(AssertionError):  # the weights do matter
        close(server_step(A, factors[order], weights), server_step(A, factors, weights), 1e-3)


@given(r=st.integers(1, 4), k=st.integers(4, 12), clients=st.integers(1, 5), seed=st.integers(0, 999))
@settings(max_examples=40, deadline=None)
def test_the_step_is_below_q_and_positive_towards_a(r, k, clients, seed):
    """Aᵗ⁺¹ᵀAᵗ⁺¹ ≼ Q, and Aᵗ⁺¹Aᵗᵀ is symmetric and positive semi-definite, which characterises the alignment."""
    random = rng(seed)
    A, factors = random.standard_normal((r, k)), random.standard_normal((clients, r, k))
    weights = unequal_weights(clients, random)
    step = server_step(A, factors, weights).numpy()
    missing = mean_gram(factors, weights) - step.T @ step
    assert np.linalg.eigvalsh((missing + missing.T) / 2).min() > -1e-10
    towards = step @ A.T
    assert np.allclose(towards, towards.T, atol=1e-9)
    assert np.linalg.eigvalsh((towards + towards.T) / 2).min() > -1e-9


def test_the_steps_gram_matrix_is_the_nystrom_approximation():
    random = rng(20)
    A = conditioned(4, 20, 5, random)
    factors, weights = drifted(A, 5, 0.8, random), unequal_weights(5, random)
    Q = mean_gram(factors, weights)
    step = server_step(A, factors, weights)
    close(step.mT @ step, Q @ A.T @ np.linalg.inv(A @ Q @ A.T) @ A @ Q)


def test_directions_orthogonal_to_a_are_not_seen():
    A, Z = torch.eye(2, 5), torch.zeros(2, 5)
    Z[:, 3:] = 1.0
    close(linalg.align(A, Z), np.zeros((2, 5)))


@pytest.mark.parametrize("seed", range(5))
def test_rounding_of_the_product_is_not_taken_for_a_direction(seed):
    """Row 1 of A meets Z at 1e-8 of its length only, row 2 not at all: what A Zᵀ has there is rounding, far above ε of
    its largest singular value, and must not bring in a second row of Z."""
    basis = orthogonal(40, rng(seed))
    x, y, z, other = basis[:4]
    step = linalg.align(t(np.stack([x + 1e-8 * z, y])), t(np.stack([z, 2 * other])))
    close(step, np.stack([z, 0 * z]), 1e-6)


def test_the_step_from_or_to_zero_is_zero():
    some, zero = torch.ones(2, 5), torch.zeros(2, 5)
    for A, Z in ((zero, some), (some, zero), (zero, zero)):
        close(linalg.align(A, Z), np.zeros((2, 5)))
    close(linalg.procrustes(some, linalg.stack_factor(zero)) @ linalg.stack_factor(zero), np.zeros((2, 5)))


def test_float32_inputs_are_computed_in_float64():
    random = rng(21)
    A = conditioned(4, 20, 1e3, random).astype(np.float32)
    factors = drifted(A, 3, 0.1, random).astype(np.float32)
    weights = unequal_weights(3, random)
    close(server_step(A, factors, weights), literal_step(A.astype(float), factors.astype(float), weights))


# --- rank r --------------------------------------------------------------------------------------------------------


def test_top_rows_are_the_best_approximation():
    Z = rng(22).standard_normal((9, 7))
    top = linalg.top_rows(linalg.stack_factor(t(Z)), 3)
    U, s, Vh = np.linalg.svd(Z.T @ Z)
    close(top.mT @ top, U[:, :3] * s[:3] @ Vh[:3])


def test_top_rows_are_filled_up_with_zeros():
    factor = rng(23).standard_normal((2, 5))
    close(linalg.top_rows(t(factor), 4), np.vstack([factor, np.zeros((2, 5))]), 0)
    close(linalg.top_rows(t(factor), 2), factor, 0)
    close(linalg.top_rows(torch.zeros(0, 5), 2), np.zeros((2, 5)), 0)


def test_canonical_signs_undo_any_choice_of_signs():
    factor = rng(24).standard_normal((4, 6))
    signed = linalg.canonical_signs(t(factor)).numpy()
    assert (signed[np.arange(4), np.abs(factor).argmax(1)] > 0).all()
    assert np.array_equal(np.abs(signed), np.abs(factor))
    flipped = linalg.canonical_signs(t(factor * np.array([[1], [-1], [-1], [1]])))
    close(flipped, signed, 0)


def test_canonical_signs_keep_zero_rows():
    close(linalg.canonical_signs(torch.tensor([[0.0, 0.0], [-1.0, 0.5]])), [[0.0, 0.0], [1.0, -0.5]], 0)
    assert linalg.canonical_signs(torch.zeros(0, 3)).shape == (0, 3)


# --- errors and diagnostics ----------------------------------------------------------------------------------------


@given(r=st.integers(1, 5), m=st.integers(1, 12), k=st.integers(1, 9), seed=st.integers(0, 999))
@settings(max_examples=40, deadline=None)
def test_gram_error_equals_brute_force(r, m, k, seed):
    random = rng(seed)
    A, Z = random.standard_normal((r, k)), random.standard_normal((m, k))
    expected = np.linalg.norm(A.T @ A - Z.T @ Z) / np.linalg.norm(Z.T @ Z)
    assert float(linalg.gram_error(t(A), t(Z))) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("drift", [1e-3, 1e-6, 1e-9])
def test_gram_error_resolves_tiny_errors(drift):
    """EᵀZ + ZᵀE + EᵀE, A = Z + E, has no difference of near numbers; the identity by traces would give 0 or 1e-8."""
    random = rng(25)
    A = random.standard_normal((4, 50))
    Z = A - drift * random.standard_normal((4, 50))
    E = A - Z
    expected = np.linalg.norm(E.T @ Z + Z.T @ E + E.T @ E) / np.linalg.norm(Z.T @ Z)
    assert float(linalg.gram_error(t(A), t(Z))) == pytest.approx(expected, rel=1e-14 / drift)


def test_gram_error_of_equal_gram_matrices_is_rounding():
    random = rng(26)
    Z = conditioned(4, 30, 1e4, random)
    assert float(linalg.gram_error(t(orthogonal(4, random) @ Z), t(Z))) < 1e-14


def test_errors_relative_to_zero():
    some, zero = torch.ones(2, 5), torch.zeros(2, 5)
    assert float(linalg.gram_error(zero, zero)) == 0
    assert float(linalg.gram_error(some, zero)) == np.inf
    assert float(linalg.gram_error(zero, some)) == pytest.approx(1, rel=1e-12)
    assert float(linalg.best_rank_error(zero, 1)) == 0
    assert float(linalg.relative_change(zero, zero)) == 0
    assert float(linalg.relative_change(zero, some)) == np.inf


@pytest.mark.parametrize("k", [50, 7])
def test_in_a_common_basis_products_and_singular_values_stay(k):
    random = rng(30)
    X, Y = deficient(4, k, 2, random), random.standard_normal((6, k))
    small_X, small_Y = (small.numpy() for small in linalg.in_common_basis(t(X), t(Y)))
    assert small_X.shape == (4, min(10, k))
    np.testing.assert_allclose(small_X @ small_Y.T, X @ Y.T, rtol=0, atol=1e-12)
    np.testing.assert_allclose(np.linalg.svd(small_X)[1], np.linalg.svd(X)[1], rtol=0, atol=1e-12)
    assert linalg.matrix_rank(torch.from_numpy(small_X), k) == 2


@pytest.mark.parametrize("r", [0, 1, 3, 5, 8])
def test_best_rank_error_is_that_of_the_truncated_svd(r):
    Z = rng(27).standard_normal((9, 5))
    Q = Z.T @ Z
    U, s, Vh = np.linalg.svd(Q)
    expected = np.linalg.norm(Q - U[:, :r] * s[:r] @ Vh[:r]) / np.linalg.norm(Q)
    assert float(linalg.best_rank_error(t(Z), r)) == pytest.approx(expected, rel=1e-10, abs=1e-14)


def test_no_step_is_better_than_the_best_rank_r_error():
    random = rng(28)
    A = conditioned(3, 14, 10, random)
    factors, weights = drifted(A, 4, 0.7, random), unequal_weights(4, random)
    Z = linalg.weighted_stack(t(factors), t(weights))
    best = float(linalg.best_rank_error(Z, 3))
    assert float(linalg.gram_error(linalg.top_rows(linalg.stack_factor(Z), 3), Z)) == pytest.approx(best, rel=1e-10)
    assert float(linalg.gram_error(linalg.align(t(A), Z), Z)) > 1.0001 * best


@pytest.mark.parametrize(("m", "p", "n"), [(9, 3, 7), (2, 5, 8), (8, 5, 2), (3, 6, 3)])
def test_product_norm_equals_brute_force(m, p, n):
    random = rng(29)
    U, V = random.standard_normal((m, p)), random.standard_normal((p, n))
    assert float(linalg.product_norm(t(U), t(V))) == pytest.approx(np.linalg.norm(U @ V), rel=1e-12)


def products(random, r=3, s=3, clients=4, d_out=7, d_in=11):
    B, A = random.standard_normal((d_out, r)), random.standard_normal((r, d_in))
    Bs, As = random.standard_normal((clients, d_out, s)), random.standard_normal((clients, s, d_in))
    return B, A, Bs, As, unequal_weights(clients, random)


def test_mean_product_and_distances_equal_brute_force():
    B, A, Bs, As, weights = products(rng(33))
    mean = np.einsum("n,nor,nri->oi", weights, Bs, As)
    left, right = linalg.mean_product(t(Bs), t(As), t(weights))
    close(left @ right, mean, 1e-13)
    expected = np.linalg.norm(B @ A - mean)
    assert float(linalg.product_distance((t(B), t(A)), (left, right))) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("m", "p", "n"), [(7, 3, 11), (11, 3, 7), (7, 20, 11), (5, 5, 5)])
@pytest.mark.parametrize("r", [1, 2, 4])
def test_truncated_svd_is_the_best_approximation_of_a_product(m, p, n, r):
    random = rng(m + p)
    U, V = random.standard_normal((m, p)), random.standard_normal((p, n))
    left, singular, right = linalg.truncated_svd(t(U), t(V), r)
    found = min(r, p, m, n)
    full = np.linalg.svd(U @ V)
    close(singular, full[1][:found], 1e-12)
    close(left * singular @ right, full[0][:, :found] * full[1][:found] @ full[2][:found], 1e-12)
    close(left.mT @ left, np.eye(found), 1e-12)
    close(right @ right.mT, np.eye(found), 1e-12)
    assert (right.gather(1, right.abs().argmax(dim=1, keepdim=True)) > 0).all()


def test_truncated_svd_has_as_many_triplets_as_the_product_has_rank():
    random = rng(4)
    U, V = deficient(7, 3, 1, random), random.standard_normal((3, 11))
    left, singular, right = linalg.truncated_svd(t(U), t(V), 3)
    assert (left.shape, singular.shape, right.shape) == ((7, 1), (1,), (1, 11))
    close(left * singular @ right, U @ V, 1e-12)
    nothing = linalg.truncated_svd(t(0 * U), t(V), 3)
    assert [tuple(part.shape) for part in nothing] == [(7, 0), (0,), (0, 11)]


@pytest.mark.parametrize(("m", "n", "rank"), [(7, 11, 3), (11, 7, 3), (7, 11, 1), (6, 6, 6)])
def test_singular_triplets_are_as_many_as_asked_for_with_values_of_zero_beyond_the_rank(m, n, rank):
    M = deficient(m, n, rank, rng(1))
    left, singular, right = linalg.singular_triplets(t(M), 3)
    expected = np.linalg.svd(M, compute_uv=False)[:3] * (np.arange(3) < rank)
    assert (left.shape, right.shape) == ((m, 3), (3, n))
    np.testing.assert_array_equal(singular.numpy() == 0, expected == 0)
    close(singular, expected, 1e-12)
    U, values, Vh = np.linalg.svd(M, full_matrices=False)
    close(left * singular @ right, U[:, :3] * values[:3] @ Vh[:3], 1e-12)


def test_what_is_made_of_weights_has_shapes_that_do_not_depend_on_them():
    with FakeTensorMode():
        left, singular, right = linalg.singular_triplets(torch.empty(7, 11), 3)
    assert [tuple(x.shape) for x in (left, singular, right)] == [(7, 3), (3,), (3, 11)]


@given(st.integers(1, 8), st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_deviation_basis_is_what_is_orthogonal_to_the_mean(clients, seed):
    weights = unequal_weights(clients, rng(seed))
    C = linalg.deviation_basis(t(weights))
    root = np.sqrt(weights)
    close(C @ C.mT, np.eye(clients - 1), 1e-13)
    assert np.abs(C.numpy() @ root).max(initial=0) < 1e-14
    close(C.mT @ C, np.eye(clients) - np.outer(root, root), 1e-13) if clients > 1 else None


def test_deviations_give_what_the_product_of_means_misses():
    _, _, Bs, As, weights = products(rng(34))
    C = linalg.deviation_basis(t(weights)).numpy() * np.sqrt(weights)
    U, V = (np.einsum("jn,nab->jab", C, stack) for stack in (Bs, As))
    means = [np.einsum("n,nab->ab", weights, stack) for stack in (Bs, As)]
    missed = np.einsum("n,nor,nri->oi", weights, Bs, As) - means[0] @ means[1]
    assert np.linalg.norm(missed) > 0.1
    np.testing.assert_allclose(np.einsum("jor,jri->oi", U, V), missed, atol=1e-13)


@pytest.mark.parametrize(("rows", "cols"), [(4, 9), (9, 4), (5, 5)])
@pytest.mark.parametrize("condition", [1, 30, 1e4, 1e10])
def test_condition_number(rows, cols, condition):
    A = conditioned(rows, cols, condition, rng(33))
    assert float(linalg.condition_number(t(A))) == pytest.approx(condition, rel=1e-14 * condition + 1e-12)


@pytest.mark.parametrize("A", [deficient(4, 9, 3, rng(34)), np.zeros((4, 9))])
def test_condition_number_of_a_deficient_matrix_is_infinite(A):
    assert float(linalg.condition_number(t(A))) == np.inf


def test_relative_change():
    before, after = rng(35).standard_normal((2, 3, 5))
    expected = np.linalg.norm(after - before) / np.linalg.norm(before)
    assert float(linalg.relative_change(t(before), t(after))) == pytest.approx(expected, rel=1e-14)


def test_inputs_are_left_as_they_were():
    random = rng(36)
    A, Z = t(random.standard_normal((3, 6))), t(random.standard_normal((6, 6)))
    copies = A.clone(), Z.clone()
    for function in (linalg.align, linalg.procrustes, linalg.gram_error, linalg.relative_change):
        function(A, Z[:3])
    for function in (linalg.gram, linalg.gram_factor, linalg.stack_factor, linalg.polar, linalg.canonical_signs):
        function(Z)
    assert torch.equal(A, copies[0])
    assert torch.equal(Z, copies[1])


@pytest.mark.parametrize("shape", [(4, 5), (3, 2, 7), (1, 6)])
def test_cosines_are_those_of_every_two(shape):
    X = rng(37).standard_normal(shape)
    rows = X.reshape(len(X), -1)
    norms = np.linalg.norm(rows, axis=1)
    close(linalg.cosines(t(X)), rows @ rows.T / np.outer(norms, norms), 1e-14)
    X[0] = 0
    found = linalg.cosines(t(X))
    assert not found[0].any()
    assert not found[:, 0].any()


@pytest.mark.parametrize("shape", [(4, 3, 3), (3, 5, 2), (2, 2, 6)])
def test_linear_cka_is_that_of_columns_that_are_centred(shape):
    X = rng(38).standard_normal(shape) + 3
    found = linalg.linear_cka(t(X))
    for i, one in enumerate(X):
        for j, other in enumerate(X):
            U, V = one - one.mean(axis=0), other - other.mean(axis=0)
            norms = np.linalg.norm(U.T @ U) * np.linalg.norm(V.T @ V)
            assert float(found[i, j]) == pytest.approx(np.linalg.norm(V.T @ U) ** 2 / norms, rel=1e-12)


def test_linear_cka_does_not_see_rotations_shifts_and_scales_of_columns():
    X = rng(39).standard_normal((1, 6, 3))
    turned = 2.5 * X @ orthogonal(3, rng(40)) + 1.0
    close(linalg.linear_cka(t(np.concatenate([X, turned]))), np.ones((2, 2)), 1e-12)
    assert not linalg.linear_cka(t(np.ones((2, 4, 3)))).any()
