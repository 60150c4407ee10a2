"""What the server of each method computes, in NumPy, with every matrix multiplied out."""

import numpy as np

EPS = np.finfo(float).eps


def fedit(server, clients, weights):
    return {field: sum(w * c[field] for w, c in zip(weights, clients, strict=True)) for field in server}


def mean_product(clients, weights):
    return sum(w * c["B"] @ c["A"] for w, c in zip(weights, clients, strict=True))


def federa_init(server, clients, weights):
    return {**server, **fedit({"A": 0, "B": 0}, clients, weights)}


def federa_round(server, clients, weights):
    """The best rank-r part of the mean product, its singular values split evenly."""
    U, values, Vh = np.linalg.svd(mean_product(clients, weights))
    r = len(server["A"])
    found = int((values[:r] > EPS * max(server["A"].shape[1], len(server["B"])) * values[0]).sum())
    root = np.sqrt(values[:found])
    A = np.concatenate([root[:, None] * Vh[:found], server["A"][found:]])
    return {"A": A, "B": np.concatenate([U[:, :found] * root, np.zeros((len(U), r - found))], axis=1)}


def ffa_lora(server, clients, weights):
    return {"A": server["A"], **fedit({"B": 0}, clients, weights)}


def fedsa_lora(server, clients, weights):
    return {"B": server["B"], **fedit({"A": 0}, clients, weights)}


def rolora(server, clients, weights):
    """A third round, which is B's."""
    return {"A": server["A"], **fedit({"B": 0}, clients, weights)}


def slora_sparse(server, clients, weights):
    return {**server, **fedit({"delta": 0}, clients, weights)}


def slora_low_rank(server, clients, weights):
    return {**server, **fedit({"A": 0, "B": 0}, clients, weights)}


def fedex_lora(server, clients, weights, scale=8.0):
    """FedIT's means, and W0 += s (mean of products - product of means)."""
    means = fedit({"A": 0, "B": 0}, clients, weights)
    missed = scale * (mean_product(clients, weights) - means["B"] @ means["A"])
    return {**means, "residual": server["residual"] + missed, "U": np.eye(len(missed)), "V": missed / scale}


def factor_of(clients, weights):
    """Ã = Λ^{1/2} P of Q = Σ wₙ AₙᵀAₙ, the largest eigenvalue first (eqs. 4, 6, 7)."""
    Q = sum(w * c["A"].T @ c["A"] for w, c in zip(weights, clients, strict=True))
    values, vectors = np.linalg.eigh(Q)
    values, vectors = values[::-1], vectors[:, ::-1]
    keep = values > EPS * len(Q) * values[0]
    return np.sqrt(values[keep])[:, None] * vectors[:, keep].T


def align(A, factor):
    """S Ã with S = U Vᵀ of A Ãᵀ = U Σ Vᵀ (eqs. 8 to 12)."""
    U, _, Vh = np.linalg.svd(A @ factor.T, full_matrices=False)
    return U @ Vh @ factor


def florg(server, clients, weights):
    return {"A": align(server["A"], factor_of(clients, weights))}


def florg_top(server, clients, weights):
    """The best rank-r factor; its signs are the solver's, so only its Gram matrix can be compared."""
    return {"A": factor_of(clients, weights)[: len(server["A"])]}


def florg_top_aligned(server, clients, weights):
    return {"A": align(server["A"], florg_top(server, clients, weights)["A"])}
