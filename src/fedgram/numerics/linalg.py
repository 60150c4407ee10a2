"""Linear algebra of low-rank factors: Gram matrices, polar factors, Procrustes, errors of products.

Symbols, after the paper (FLoRG, arXiv 2602.17095):
    ``A: (r, k)``: the server's factor Aᵗ of one layer, of rank at most r; ``A_n`` the one of client n.
    ``w: (N,)``: the weights of the N clients, which sum to 1.
    ``Q: (k, k)``: the aggregated Gram matrix Σ wₙ AₙᵀAₙ (eq. 4), of rank r'.
    ``Z: (m, k)``: any factor of Q, ZᵀZ = Q; the stack of √wₙ Aₙ is one, with m = N r.
    ``Ã: (r', k)``: the canonical factor Λ^{1/2} P of Q (eq. 7).
    ``S: (r, r')``: the alignment matrix (eq. 11).
    ``B: (d_out, r)``: the second factor of LoRA's product B A.

All functions are pure, take real matrices of any float type, compute in float64 and return float64; the caller casts
back. Rank decisions are made at rounding level, so a singular value dropped is one that holds no information.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

__all__ = [
    "align",
    "best_rank_error",
    "canonical_signs",
    "condition_number",
    "cosines",
    "deviation_basis",
    "gram",
    "gram_error",
    "gram_factor",
    "in_common_basis",
    "linear_cka",
    "matrix_rank",
    "mean_product",
    "nearest_rotation",
    "nonzero",
    "polar",
    "procrustes",
    "product_distance",
    "product_norm",
    "ratio",
    "relative_change",
    "semi_orthogonal",
    "singular_triplets",
    "stack_factor",
    "top_rows",
    "truncated_svd",
    "weighted_stack",
]

_EPS = torch.finfo(torch.float64).eps


def nonzero(values: Float[Tensor, " n"], size: int) -> Bool[Tensor, " n"]:
    """Tell which singular values, or eigenvalues, are above rounding: s > ε · size · s_max.

    The rule of NumPy's and LAPACK's rank decisions.

    Args:
        values: (n,) in descending order; n may be 0.
        size: the larger dimension of the matrix that they belong to.

    >>> nonzero(torch.tensor([2.0, 1.0, 1e-17]), 3)
    tensor([ True,  True, False])
    """
    # Not >=, or the zeros of an all-zero matrix would count; [:1], as an empty matrix has no largest value.
    return values > _EPS * size * values[:1]


def semi_orthogonal(rows: int, cols: int, generator: torch.Generator) -> Float[Tensor, "rows cols"]:
    """Draw a matrix with orthonormal columns (rows >= cols) or orthonormal rows, uniform in Haar measure.

    The bases L: (d_out, k), LᵀL = I, and R: (k, d_in), R Rᵀ = I, of FLoRG, eq. (1).

    Args:
        rows: number of rows.
        cols: number of columns.
        generator: the source of randomness; the result is on its device.

    Raises:
        ValueError: a dimension is not positive.

    References:
        Mezzadri: How to generate random matrices from the classical compact groups (Notices of the AMS 54, 2007).

    >>> L = semi_orthogonal(5, 3, torch.Generator().manual_seed(0))
    >>> torch.allclose(L.mT @ L, torch.eye(3, dtype=torch.float64))
    True
    """
    if rows < 1 or cols < 1:
        raise ValueError(f"expected positive dimensions, got {rows} x {cols}; check the shape of the layer")
    shape = (max(rows, cols), min(rows, cols))
    normal = torch.randn(shape, dtype=torch.float64, device=generator.device, generator=generator)
    Q, R = torch.linalg.qr(normal)
    # A QR routine chooses the signs of R's diagonal. With a positive one the factorisation is unique and Q is Haar.
    Q = Q * torch.where(R.diagonal() < 0, -1.0, 1.0)
    return Q if rows >= cols else Q.mT.contiguous()


def gram(A: Float[Tensor, "r k"]) -> Float[Tensor, "k k"]:
    """Return the Gram matrix AᵀA of the columns of A (FLoRG, section 3.1).

    >>> gram(torch.tensor([[1.0, 2.0]]))
    tensor([[1., 2.],
            [2., 4.]], dtype=torch.float64)
    """
    A = A.double()
    return A.mT @ A


def weighted_stack(factors: Float[Tensor, "N r k"], weights: Float[Tensor, " N"]) -> Float[Tensor, "N*r k"]:
    """Stack the clients' factors to a factor Z = [√w₁ A₁; …; √w_N A_N] of Q: ZᵀZ = Σ wₙ AₙᵀAₙ (FLoRG, eq. (4)).

    Args:
        factors: (N, r, k), in client order.
        weights: (N,), not negative.

    Raises:
        ValueError: not one weight per factor, or a negative weight.

    >>> weighted_stack(torch.ones(2, 1, 3), torch.tensor([0.25, 4.0]))
    tensor([[0.5000, 0.5000, 0.5000],
            [2.0000, 2.0000, 2.0000]], dtype=torch.float64)
    """
    if factors.ndim != 3 or weights.shape != factors.shape[:1]:
        raise ValueError(
            f"expected factors (N, r, k) and weights (N,), got {tuple(factors.shape)} and {tuple(weights.shape)}; "
            "give one weight per client"
        )
    if bool((weights < 0).any()):
        raise ValueError(f"expected weights >= 0, got {weights.tolist()}; Q would not be positive semi-definite")
    roots = weights.to(factors.device, torch.float64, non_blocking=True).sqrt()
    return (roots[:, None, None] * factors).flatten(0, 1)  # in float64, as the roots are


def gram_factor(Q: Float[Tensor, "k k"]) -> Float[Tensor, "r2 k"]:
    """Factor a Gram matrix canonically: Q = PᵀΛP, Ã = Λ^{1/2} P, so that ÃᵀÃ = Q (FLoRG, eqs. (6), (7)).

    Args:
        Q: (k, k), symmetric positive semi-definite; only its lower triangle is read.

    Returns:
        Ã (r', k), rows in descending order of eigenvalue, their signs as the solver gives them; r' is the rank of Q.
        An eigenvalue of Q is the square of a singular value of its factor, so singular values below √(ε k) of the
        largest are lost here; `stack_factor` keeps them down to ε.

    Raises:
        ValueError: Q is not square.

    >>> gram_factor(torch.diag(torch.tensor([0.0, 4.0]))).abs()
    tensor([[0., 2.]], dtype=torch.float64)
    """
    if Q.ndim != 2 or Q.shape[0] != Q.shape[1]:
        raise ValueError(f"expected a square Gram matrix, got {tuple(Q.shape)}; for a factor of it use stack_factor")
    eigenvalues, vectors = torch.linalg.eigh(Q.double())
    eigenvalues, vectors = eigenvalues.flip(0), vectors.flip(1)
    keep = nonzero(eigenvalues, Q.shape[0])
    return eigenvalues[keep].sqrt()[:, None] * vectors[:, keep].mT


def stack_factor(Z: Float[Tensor, "m k"]) -> Float[Tensor, "r2 k"]:
    """Factor ZᵀZ canonically without forming it: Z = U Σ Vᵀ, Ã = Σ Vᵀ, so that ÃᵀÃ = ZᵀZ (FLoRG, eqs. (6), (7)).

    Args:
        Z: (m, k).

    Returns:
        Ã (r', k), rows in descending order of norm, their signs as the solver gives them; r' is the rank of Z.

    >>> stack_factor(torch.tensor([[0.0, 3.0], [0.0, 4.0]])).abs()
    tensor([[0., 5.]], dtype=torch.float64)
    """
    _, singular, Vh = torch.linalg.svd(Z.double(), full_matrices=False)
    keep = nonzero(singular, max(Z.shape))
    return singular[keep, None] * Vh[keep]


def polar(M: Float[Tensor, "m n"], floor: Float[Tensor, ""] | float = 0.0) -> Float[Tensor, "m n"]:
    """Return the polar factor U Vᵀ of M = U Σ Vᵀ: of all matrices with orthonormal rows or columns the nearest to M.

    Zero singular values are dropped, as their vectors are arbitrary: for a rank-deficient M the factor is a partial
    isometry, and for M = 0 it is 0.

    Args:
        M: (m, n).
        floor: what M is known to be uncertain by; singular values up to it count as zero.

    References:
        Higham: Functions of Matrices (SIAM, 2008), theorems 8.1 and 8.4.

    >>> polar(torch.diag(torch.tensor([-3.0, 0.5, 0.0])))
    tensor([[-1.,  0.,  0.],
            [ 0.,  1.,  0.],
            [ 0.,  0.,  0.]], dtype=torch.float64)
    """
    U, singular, Vh = torch.linalg.svd(M.double(), full_matrices=False)
    keep = nonzero(singular, max(M.shape)) & (singular > floor)
    # Multiplied rather than indexed: U Vᵀ has the same shape whatever the rank, and no device has to wait for it.
    return (U * keep) @ Vh


def nearest_rotation(M: Float[Tensor, "r r"]) -> Float[Tensor, "r r"]:
    """Return the rotation R, RᵀR = I and det R = 1, that is nearest to M, and so maximises Tr(RᵀM).

    With M = U Σ Vᵀ, σ in descending order, R = U diag(1, …, 1, det(U Vᵀ)) Vᵀ. Where that is not unique, as for a
    singular M, the one nearest to the identity is taken: a solver's choice of vectors would be an arbitrary rotation.

    Args:
        M: (r, r), also of zeros, for which R = I.

    References:
        Kabsch: A solution for the best rotation to relate two sets of vectors (Acta Crystallographica A 32, 1976),
        doi:10.1107/S0567739476001873.

    >>> nearest_rotation(torch.diag(torch.tensor([-3.0, 2.0, 1.0])))
    tensor([[-1.,  0.,  0.],
            [ 0.,  1.,  0.],
            [ 0.,  0., -1.]], dtype=torch.float64)
    """
    M = M.double()
    # Far above rounding, so that it decides where M does not; far below anything that M does decide.
    hint = _EPS ** (3 / 4) * torch.linalg.matrix_norm(M)
    hint = torch.where(hint == 0, 1.0, hint)
    U, _, Vh = torch.linalg.svd(M + hint * torch.eye(M.shape[0], dtype=M.dtype, device=M.device))
    proper = torch.linalg.det(U @ Vh).sign()
    return torch.cat([U[:, :-1], U[:, -1:] * proper], dim=1) @ Vh


def procrustes(target: Float[Tensor, "r k"], factor: Float[Tensor, "r2 k"]) -> Float[Tensor, "r r2"]:
    """Compute the alignment of a factor with a target, S = U Vᵀ of target · factorᵀ = U Σ Vᵀ (FLoRG, eq. (11)).

    S maximises Tr(target · factorᵀ Sᵀ) over all matrices of singular values <= 1 (eq. (10a)). For r = r', and for
    r' < r, it is hence the minimiser of ‖S · factor − target‖_F subject to SᵀS = I (eqs. (8a), (8b)), unique if
    target · factorᵀ has full rank.

    Args:
        target: (r, k), Aᵗ.
        factor: (r', k), Ã.

    Returns:
        S (r, r'). Zero singular values of target · factorᵀ are dropped (see `polar`).

    Raises:
        ValueError: target and factor are not matrices with the same number of columns.

    Notes:
        For r' > r the constraint (8b) cannot be met by an r x r' matrix; S has orthonormal rows instead and is not in
        general the minimiser of (8a). No scaling and no translation, unlike ``scipy.spatial.procrustes``; and S acts
        from the left, unlike in ``scipy.linalg.orthogonal_procrustes``.

    References:
        Schönemann: A generalized solution of the orthogonal Procrustes problem (Psychometrika 31, 1966),
        doi:10.1007/BF02289451.

    >>> A = torch.tensor([[2.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    >>> procrustes(A, A.flip(0))
    tensor([[0., 1.],
            [1., 0.]], dtype=torch.float64)
    """
    if target.ndim != 2 or factor.ndim != 2 or target.shape[1] != factor.shape[1]:
        raise ValueError(
            f"expected target (r, k) and factor (r', k) with one k, got {tuple(target.shape)} and "
            f"{tuple(factor.shape)}; both must be factors of the same layer"
        )
    target, factor = target.double(), factor.double()
    # Rounding of the product: ‖fl(X Yᵀ) − X Yᵀ‖_F <= k ε ‖X‖_F ‖Y‖_F. Singular values below it are those of noise, also
    # where the product is small because the rows of the two are nearly orthogonal.
    noise = _EPS * target.shape[1] * torch.linalg.matrix_norm(target) * torch.linalg.matrix_norm(factor)
    return polar(target @ factor.mT, floor=noise)


def align(A: Float[Tensor, "r k"], Z: Float[Tensor, "m k"]) -> Float[Tensor, "r k"]:
    """Take FLoRG's server step from any factor of Q: Aᵗ⁺¹ = polar(A Zᵀ) Z, ZᵀZ = Q (FLoRG, eqs. (4)-(11)).

    It equals the literal path S Ã, S = polar(A Ãᵀ), without the k x k matrix and its eigenvectors:
    1. Z and Ã are both factors of Q, and Ã has full row rank, so Z = W Ã with WᵀW = I.
    2. Hence A Zᵀ = (A Ãᵀ) Wᵀ = U Σ (W V)ᵀ, of the same Σ, and polar(A Zᵀ) = U Vᵀ Wᵀ = S Wᵀ.
    3. Hence polar(A Zᵀ) Z = S WᵀW Ã = S Ã.

    Where A Q Aᵀ is invertible this is (A Q Aᵀ)^{-1/2} A Q, of Gram matrix Q Aᵀ(A Q Aᵀ)⁻¹A Q, the Nyström approximation
    of Q on the rows of A. Never code that inverse root: with Aₙ near A the condition number of A Q Aᵀ is κ(A)⁴, so that
    float64 is lost at κ(A) = 10⁴, while the singular values of A Zᵀ only spread over κ(A)².

    Args:
        A: (r, k), Aᵗ.
        Z: (m, k), such as `weighted_stack` returns.

    Returns:
        Aᵗ⁺¹ (r, k). Directions of Q that are orthogonal to all rows of A do not enter; A = 0 stays 0.

    Raises:
        ValueError: as for `procrustes`.

    >>> align(torch.tensor([[1.0, 0.0]]), torch.tensor([[-3.0, 4.0]]))
    tensor([[ 3., -4.]], dtype=torch.float64)
    """
    return procrustes(A, Z) @ Z.double()


def top_rows(factor: Float[Tensor, "r2 k"], r: int) -> Float[Tensor, "r k"]:
    """Return the first r rows of a factor, filled up with zero rows if it has fewer.

    Of Ã these are the factor of the best rank-r approximation of Q (Eckart and Young, 1936).

    >>> top_rows(torch.tensor([[3.0, 0.0]]), 2)
    tensor([[3., 0.],
            [0., 0.]], dtype=torch.float64)
    """
    rows = factor.double()[:r]
    return torch.cat([rows, rows.new_zeros(r - rows.shape[0], rows.shape[1])])


def canonical_signs(factor: Float[Tensor, "r k"]) -> Float[Tensor, "r k"]:
    """Flip the sign of rows so that the entry of largest magnitude of each is positive.

    The rows of Ã are eigenvectors, whose signs a solver chooses freely; ÃᵀÃ does not depend on them.

    >>> canonical_signs(torch.tensor([[1.0, -2.0], [3.0, 0.0]]))
    tensor([[-1.,  2.],
            [ 3.,  0.]], dtype=torch.float64)
    """
    factor = factor.double()
    largest = factor.gather(1, factor.abs().argmax(dim=1, keepdim=True))
    return factor * largest.sign()


def gram_error(A: Float[Tensor, "r k"], Z: Float[Tensor, "m k"]) -> Float[Tensor, ""]:
    """Return how far the Gram matrix of A is from that of Z: ‖AᵀA − ZᵀZ‖_F / ‖ZᵀZ‖_F.

    With F = [A; Z] and D = diag(I_r, −I_m), AᵀA − ZᵀZ = FᵀD F; and with Fᵀ = O R, OᵀO = I, its norm is ‖R D Rᵀ‖_F.
    No k x k matrix is formed, and the result is good to about ε, where the identity by traces,
    ‖AAᵀ‖² + ‖ZZᵀ‖² − 2‖AZᵀ‖², is good to √ε only.

    Args:
        A: (r, k).
        Z: (m, k).

    Returns:
        A float64 scalar; 0 if both are zero, inf if only Z is.

    >>> gram_error(torch.tensor([[3.0, 0.0]]), torch.tensor([[1.0, 0.0]]))
    tensor(8., dtype=torch.float64)
    """
    R = torch.linalg.qr(torch.cat([A.double(), Z.double()]).mT, mode="r").R
    of_A, of_Z = R[:, : A.shape[0]], R[:, A.shape[0] :]
    gram_Z = of_Z @ of_Z.mT
    return ratio(torch.linalg.matrix_norm(of_A @ of_A.mT - gram_Z), torch.linalg.matrix_norm(gram_Z))


def best_rank_error(Z: Float[Tensor, "m k"], r: int) -> Float[Tensor, ""]:
    """Return the least `gram_error` that a factor with r rows can have: √(Σ_{i>r} σᵢ⁴ / Σ σᵢ⁴), σ of Z.

    Args:
        Z: (m, k).
        r: the rank allowed.

    Returns:
        A float64 scalar; 0 if Z is zero.

    References:
        Eckart and Young: The approximation of one matrix by another of lower rank (Psychometrika 1, 1936).

    >>> best_rank_error(torch.diag(torch.tensor([2.0, 1.0])), 2)
    tensor(0., dtype=torch.float64)
    """
    eigenvalues = torch.linalg.svdvals(Z.double()).square()
    return ratio(torch.linalg.vector_norm(eigenvalues[r:]), torch.linalg.vector_norm(eigenvalues))


def in_common_basis(*factors: Float[Tensor, "m k"]) -> list[Float[Tensor, "m p"]]:
    """Return factors in coordinates of one orthonormal basis of all their rows: what is left has p <= Σ m columns.

    With F = [X; Y; …] and Fᵀ = O R, OᵀO = I, the factor X is X' Oᵀ, where X' are its columns of R, transposed. So X'
    has the singular values of X, and X'Y'ᵀ = X Yᵀ: where only these matter, k = 1024 columns need not be carried along.

    Args:
        factors: matrices with one number of columns.

    >>> X, Y = in_common_basis(torch.tensor([[3.0, 0.0, 4.0]]), torch.tensor([[0.0, 2.0, 0.0]]))
    >>> (X @ X.mT).round(decimals=9), X.shape
    (tensor([[25.]], dtype=torch.float64), torch.Size([1, 2]))
    """
    R = torch.linalg.qr(torch.cat([factor.double() for factor in factors]).mT, mode="r").R
    return [columns.mT for columns in R.split([factor.shape[0] for factor in factors], dim=1)]


def matrix_rank(M: Float[Tensor, "m n"], size: int) -> int:
    """Return how many singular values of M are above rounding.

    Args:
        M: (m, n).
        size: as for `nonzero`.

    >>> matrix_rank(torch.tensor([[1.0, 2.0], [2.0, 4.0]]), 2)
    1
    """
    return int(nonzero(torch.linalg.svdvals(M.double()), size).sum())


def product_norm(U: Float[Tensor, "m p"], V: Float[Tensor, "p n"]) -> Float[Tensor, ""]:
    """Return ‖U V‖_F without forming the m x n product: ‖R_U R_Vᵀ‖_F with U = O_U R_U and Vᵀ = O_V R_V.

    Args:
        U: (m, p).
        V: (p, n).

    >>> product_norm(torch.ones(4, 1), torch.ones(1, 9)).round(decimals=9)
    tensor(6., dtype=torch.float64)
    """
    R_U = torch.linalg.qr(U.double(), mode="r").R
    R_V = torch.linalg.qr(V.double().mT, mode="r").R
    return torch.linalg.matrix_norm(R_U @ R_V.mT)


Product = tuple[Float[Tensor, "d_out m"], Float[Tensor, "m d_in"]]
"""A matrix U V that is never multiplied out, as the pair of its factors."""


def mean_product(
    Bs: Float[Tensor, "N d_out s"], As: Float[Tensor, "N s d_in"], weights: Float[Tensor, " N"]
) -> Product:
    """Return the mean product of the clients, Σ wₙ Bₙ Aₙ = [w₁B₁, w₂B₂, …] [A₁; A₂; …].

    Args:
        Bs: (N, d_out, s), the clients'.
        As: (N, s, d_in), the clients'.
        weights: (N,).

    Returns:
        Factors (d_out, N s) and (N s, d_in), float64.
    """
    weighted = weights.to(Bs.device, torch.float64, non_blocking=True)[:, None, None] * Bs.double()
    return weighted.transpose(0, 1).flatten(1), As.double().flatten(0, 1)


def product_distance(first: Product, second: Product) -> Float[Tensor, ""]:
    """Return ‖U V − U' V'‖_F, the norm of [U, −U'] [V; V']."""
    U = torch.cat([first[0].double(), -second[0].double()], dim=1)
    return product_norm(U, torch.cat([first[1].double(), second[1].double()]))


def truncated_svd(U: Float[Tensor, "m p"], V: Float[Tensor, "p n"], r: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the r leading singular triplets of U V without forming the m x n product.

    With U = O_U R_U and Vᵀ = O_V R_V the product is O_U (R_U R_Vᵀ) O_Vᵀ, and R_U R_Vᵀ is at most p x p.

    Args:
        U: (m, p).
        V: (p, n).
        r: how many, at most min(m, n).

    Returns:
        Left vectors (m, r'), singular values (r',) above rounding in descending order, and right vectors (r', n), in
        float64; r' <= r is the rank if that is less. The entry of largest magnitude of a right vector is positive.

    >>> left, singular, right = truncated_svd(torch.ones(4, 2), torch.ones(2, 9), 1)
    >>> singular.round(decimals=9)
    tensor([12.], dtype=torch.float64)
    """
    O_U, R_U = torch.linalg.qr(U.double())
    O_V, R_V = torch.linalg.qr(V.double().mT)
    left, singular, right = torch.linalg.svd(R_U @ R_V.mT, full_matrices=False)
    found = int(nonzero(singular, max(O_U.shape[0], O_V.shape[0])).sum())
    return _leading(O_U @ left, singular, right @ O_V.mT, min(r, found))


def singular_triplets(M: Float[Tensor, "m n"], r: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the r leading singular triplets of M, in the form of `truncated_svd`, but always r.

    Singular values at rounding level are 0. What shape the result has does not depend on the values of M, so that what
    is made of weights can be told without them.

    Args:
        M: (m, n).
        r: how many, at most min(m, n).

    >>> singular_triplets(torch.diag(torch.tensor([-3.0, 0.0])), 2)[1]
    tensor([3., 0.], dtype=torch.float64)
    """
    left, singular, right = torch.linalg.svd(M.double(), full_matrices=False)
    return _leading(left, singular * nonzero(singular, max(M.shape)), right, r)


def _leading(left: Tensor, singular: Tensor, right: Tensor, r: int) -> tuple[Tensor, Tensor, Tensor]:
    """Keep the r first triplets, and fix their signs by the right vectors."""
    signed = canonical_signs(right[:r])
    flips = torch.where((signed == right[:r]).all(dim=1), 1.0, -1.0).to(right)
    return left[:, :r] * flips, singular[:r], signed


def deviation_basis(weights: Float[Tensor, " N"]) -> Float[Tensor, "N-1 N"]:
    """Return C with C Cᵀ = I and C √w = 0: what is left of N clients when their mean is taken out.

    The rows of a Householder reflection that maps √w, of norm 1, to the first axis, without the first. Hence
    Σ wₙ Bₙ Aₙ − B̄ Ā = Σⱼ (Σₙ Cⱼₙ √wₙ Bₙ)(Σₙ Cⱼₙ √wₙ Aₙ), a product of rank (N−1) r, since CᵀC = I − √w √wᵀ.

    Args:
        weights: (N,), not negative, summing to 1.

    >>> deviation_basis(torch.tensor([0.5, 0.5])).abs().round(decimals=4)
    tensor([[0.7071, 0.7071]], dtype=torch.float64)
    """
    root = weights.double().sqrt()
    v = root.clone()
    v[0] += torch.linalg.vector_norm(root)  # both are >= 0: no cancellation
    reflection = torch.eye(len(root), dtype=torch.float64, device=root.device) - 2 * torch.outer(v, v) / (v @ v)
    return reflection[1:]


def cosines(X: Float[Tensor, "N ..."]) -> Float[Tensor, "N N"]:
    """Return the cosine of the angle between every two of N tensors, as vectors; 0 to and from one that is zero.

    >>> cosines(torch.tensor([[3.0, 0.0], [1.0, 1.0]])).round(decimals=4)
    tensor([[1.0000, 0.7071],
            [0.7071, 1.0000]], dtype=torch.float64)
    """
    rows = X.double().flatten(1)
    lengths = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    units = torch.where(lengths > 0, rows / lengths, 0.0)
    return units @ units.mT


def linear_cka(X: Float[Tensor, "N m p"]) -> Float[Tensor, "N N"]:
    """Return the linear centred kernel alignment of every two of N matrices, whose rows are m samples.

    ‖ỸᵀX̃‖² / (‖X̃ᵀX̃‖ ‖ỸᵀỸ‖) with columns centred, which is the cosine of X̃X̃ᵀ and ỸỸᵀ; 0 where one is constant.

    References:
        Kornblith et al.: Similarity of neural network representations revisited (ICML 2019), arXiv 1905.00414.

    >>> linear_cka(torch.tensor([[[1.0], [3.0]], [[5.0], [1.0]]])).round(decimals=9)  # one pattern, other units
    tensor([[1., 1.],
            [1., 1.]], dtype=torch.float64)
    """
    centred = X.double() - X.double().mean(dim=1, keepdim=True)
    return cosines(centred @ centred.mT)


def condition_number(A: Float[Tensor, "r k"]) -> Float[Tensor, ""]:
    """Return κ(A) = σ_max / σ_min over the singular values of A; inf if A has not full rank.

    >>> condition_number(torch.tensor([[4.0, 0.0, 0.0], [0.0, 2.0, 0.0]]))
    tensor(2., dtype=torch.float64)
    """
    singular = torch.linalg.svdvals(A.double())
    full = nonzero(singular, max(A.shape))[-1]
    return torch.where(full, singular[0] / singular[-1], torch.inf)


def relative_change(before: Float[Tensor, "..."], after: Float[Tensor, "..."]) -> Float[Tensor, ""]:
    """Return ‖after − before‖_F / ‖before‖_F; 0 if both are zero, inf if only the first is.

    >>> relative_change(torch.tensor([3.0, 4.0]), torch.tensor([3.0, 9.0]))
    tensor(1., dtype=torch.float64)
    """
    before, after = before.double(), after.double()
    return ratio(torch.linalg.vector_norm(after - before), torch.linalg.vector_norm(before))


def ratio(numerator: Float[Tensor, ""], denominator: Float[Tensor, ""]) -> Float[Tensor, ""]:
    """Divide norms, with 0 / 0 = 0: nothing is missed of nothing."""
    return torch.where(numerator == 0, 0.0, numerator / denominator)
