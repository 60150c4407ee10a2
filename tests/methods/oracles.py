"""What the server of each method computes, in NumPy, with every matrix multiplied out."""

from itertools import product

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


def ce_lora(server, clients, weights):
    return {"A": server["A"], "B": server["B"], **fedit({"C": 0}, clients, weights)}


def cosine(x, y):
    norms = np.linalg.norm(x) * np.linalg.norm(y)
    return np.sum(x * y) / norms if norms else 0.0


def cka(X, Y):
    X, Y = X - X.mean(axis=0), Y - Y.mean(axis=0)
    norms = np.linalg.norm(X.T @ X) * np.linalg.norm(Y.T @ Y)
    return np.linalg.norm(Y.T @ X) ** 2 / norms if norms else 0.0


def ce_lora_answers(server, clients, weights, remembered, cohort, beta=0.5, temperature=0.1, measure="cka"):
    """The mean of all C by a softmax of how alike they and their clients' data are, client by client."""
    eye = np.eye(len(server["q"]["C"]))
    alike = cka if measure == "cka" else lambda X, Y: cosine(X - eye, Y - eye)
    distance = remembered[""]["distance"] if beta else np.zeros((20, 20))
    median = np.median([distance[k, j] for k in range(len(distance)) for j in range(k)]) or 1
    answers = []
    for k, own in enumerate(clients):
        S = np.zeros(len(clients))
        for i, other in enumerate(clients):
            of_model = np.mean([alike(own[name]["C"], other[name]["C"]) for name in server])
            S[i] = beta * np.exp(-distance[cohort[k], cohort[i]] / median) + (1 - beta) * of_model
        omega = np.exp(S / temperature) / np.exp(S / temperature).sum()
        answers.append(
            {name: {"C": sum(w * c[name]["C"] for w, c in zip(omega, clients, strict=True))} for name in server}
        )
    return answers


def fl_tac_answers(server, clients, weights, remembered, cohort, clusters=2, fields="AB", weighted=False):
    """The means of the clusters of least spread, of all ways to cut the cohort into them."""
    vectors = np.array([np.concatenate([c[n][f].ravel() for n in server for f in fields]) for c in clients])

    def spread(labels):
        groups = [vectors[np.array(labels) == j] for j in set(labels)]
        return sum(((group - group.mean(axis=0)) ** 2).sum() for group in groups)

    best = min(product(range(clusters), repeat=len(clients)), key=spread)
    w = np.array(weights) if weighted else np.ones(len(clients))
    answers = []
    for label in best:
        members = [i for i, other in enumerate(best) if other == label]
        total = sum(w[i] for i in members)
        answers.append({n: {f: sum(w[i] * clients[i][n][f] for i in members) / total for f in "AB"} for n in server})
    return answers


def ffa_lora(server, clients, weights):
    return {"A": server["A"], **fedit({"B": 0}, clients, weights)}


def fedsa_lora(server, clients, weights):
    return {"B": server["B"], **fedit({"A": 0}, clients, weights)}


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
