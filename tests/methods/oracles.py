"""What the server of each method computes, in NumPy, with every matrix multiplied out."""

from itertools import product

import numpy as np

EPS = np.finfo(float).eps


def fedit(server, clients, weights):
    return {field: sum(w * c[field] for w, c in zip(weights, clients, strict=True)) for field in server}


def fedit_of_holders(server, clients, weights):
    """Each rank's mean over those that have it: what the others count with are the server's own numbers."""

    def mean(old, factors, axis):
        new = old.copy()
        for rank in range(old.shape[axis]):
            row = [np.take(X, rank, axis) for X in (old, *factors)]
            holders = [(w, own) for w, own in zip(weights, row[1:], strict=True) if (own != row[0]).any()]
            if holders:
                value = sum(w * own for w, own in holders) / sum(w for w, _ in holders)
                np.moveaxis(new, axis, 0)[rank] = value
        return new

    return {f: mean(server[f], [c[f] for c in clients], axis) for f, axis in (("A", 0), ("B", 1))}


def fedsa_of_holders(server, clients, weights):
    return server | {"A": fedit_of_holders(server, [{"B": server["B"], **c} for c in clients], weights)["A"]}


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


def fedlease_answers(server, clients, weights, remembered, cohort):
    """The one expert that there is: the mean of all clients."""
    means = {n: {f: sum(w * c[n][f] for w, c in zip(weights, clients, strict=True)) for f in "AB"} for n in server}
    return [means] * len(clients)


def ffa_lora(server, clients, weights):
    return {"A": server["A"], **fedit({"B": 0}, clients, weights)}


def fedsa_lora(server, clients, weights):
    return {"B": server["B"], **fedit({"A": 0}, clients, weights)}


def ravan(server, clients, weights):
    return {"s": server["s"], **fedit({"H": 0}, clients, weights)}


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
    return {**means, "residual": server["residual"] + missed, **factors(missed / scale)}


def factors(added):
    """Some U and V, a stack of one each, of what is added to W0."""
    return {"U": np.eye(len(added))[None], "V": added[None]}


def flora(server, clients, weights, scale=8.0):
    """All of the mean product goes to W0, and B is zero again."""
    added = mean_product(clients, weights)
    residual = server["residual"] + scale * added
    return {"A": server["A"], "B": 0 * server["B"], "residual": residual, **factors(added)}


def flexlora(server, clients, weights):
    """The best rank-r part of the mean product, all of its singular values in B."""
    U, values, Vh = np.linalg.svd(mean_product(clients, weights))
    r = len(server["A"])
    found = int((values[:r] > EPS * max(server["A"].shape[1], len(server["B"])) * values[0]).sum())
    B = np.concatenate([U[:, :found] * values[:found], np.zeros((len(U), r - found))], axis=1)
    return server | {"A": np.concatenate([Vh[:found], server["A"][found:]]), "B": B}


def hetlora(server, clients, weights):
    """Means of A and of B, each client by its weight and the norm of its product; old rows of A that nobody has."""
    shares = np.array([w * np.linalg.norm(c["B"] @ c["A"]) for w, c in zip(weights, clients, strict=True)])
    shares = shares / shares.sum() if shares.any() else weights
    means = fedit({"A": 0, "B": 0}, clients, shares)
    nobody = ~means["A"].any(axis=1) & ~means["B"].any(axis=0)
    return server | means | {"A": np.where(nobody[:, None], server["A"], means["A"])}


def merged(server, A, B, added, scale=8.0):
    """W0 += s added, and the factors of the newest products, no more than are fewer numbers than the sum of all."""
    most = 1 + B.shape[0] * A.shape[1] // (A.size + B.size)
    As, Bs = ([*server[f"merged_{f}"], factor][-most:] for f, factor in (("A", A), ("B", B)))
    newest = {"merged_A": np.array(As), "merged_B": np.array(Bs)}
    return {**server, **newest, "residual": server["residual"] + scale * added}


def frlora(server, clients, weights):
    """W0 += s (product of means - start), and the factors stay at their start."""
    A, B = fedit({"A": 0, "B": 0}, clients, weights).values()
    A0, B0 = server["A0"], server["B0"]
    return {**merged(server, A, B, B @ A - B0 @ A0), "A": A0, "B": B0}


def frlora_frozen(server, clients, weights):
    """The same with one A for all, and B's steps summed."""
    B = fedit({"B": 0}, clients, weights)["B"]
    A0, B0 = server["A0"], server["B0"]
    residual = server["residual"] + 8.0 * (B @ server["A"] - B0 @ A0)
    return {**server, "A": A0, "B": B0, "residual": residual, "steps": server["steps"] + B - B0}


def fedloru(server, clients, weights):
    """FedIT's means between two products."""
    return {**server, **fedit({"A": 0, "B": 0}, clients, weights)}


def fedloru_reset(server, clients, weights):
    """The product of the means is added, and B is zero again."""
    A, B = fedit({"A": 0, "B": 0}, clients, weights).values()
    return {**merged(server, A, B, B @ A), "A": None, "B": np.zeros_like(B)}


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


def fedsvd(server, clients, weights):
    """The singular value decomposition of the mean product, A with orthonormal rows."""
    U, values, Vh = np.linalg.svd(mean_product(clients, weights), full_matrices=False)
    r = len(server["A"])
    return {"A": Vh[:r], "B": U[:, :r] * values[:r]}


def nearest_mixtures(layers, weights, sweeps):
    """P and Q of alternating least squares on products that are multiplied out, for layers that share them."""
    P = Q = np.array(weights)

    def change(of_P, P, Q):
        columns, missed = [], []
        for clients in layers:
            Bs, As = (np.array([c[f] for c in clients]) for f in ("B", "A"))
            B, A = (np.tensordot(Q if of_P else P, Bs, 1), np.tensordot(P if of_P else Q, As, 1))
            parts = [B @ own for own in As] if of_P else [own @ A for own in Bs]
            columns.append(np.array([part.ravel() for part in parts]))
            missed.append((mean_product(clients, weights) - B @ A).ravel())
        return np.linalg.lstsq(np.concatenate(columns, axis=1).T, np.concatenate(missed), rcond=1e-12)[0]

    for _ in range(sweeps):
        P = P + change(True, P, Q)
        Q = Q + change(False, Q, P)
    return P, Q


def mixed(clients, weights, field):
    return np.tensordot(weights, np.array([c[field] for c in clients]), 1)


def flora_na_of(layers, weights, sweeps):
    """B̂ and Â of several layers, of the lengths that the means have."""
    P, Q = nearest_mixtures(layers, weights, sweeps)
    found = [{"A": mixed(clients, P, "A"), "B": mixed(clients, Q, "B")} for clients in layers]
    means = [{f: mixed(clients, weights, f) for f in ("A", "B")} for clients in layers]
    (a, b), (a_mean, b_mean) = (
        [np.sqrt(sum(np.sum(own[f] ** 2) for own in each)) for f in ("A", "B")] for each in (found, means)
    )
    c = np.sqrt(b * a_mean / (a * b_mean)) if a * b * a_mean * b_mean > 0 else 1.0
    if sum(np.sum(own["A"] * mean["A"]) for own, mean in zip(found, means, strict=True)) < 0:
        c = -c
    return [{"A": c * own["A"], "B": own["B"] / c} for own in found]


def flora_na(server, clients, weights, sweeps=20):
    return flora_na_of([clients], weights, sweeps)[0]


def lora_fair_l2(server, clients, weights, lam=0.01):
    """Ridge regression of what the means miss on the rows of the mean of A."""
    means = fedit({"A": 0, "B": 0}, clients, weights)
    A = means["A"]
    missed = mean_product(clients, weights) - means["B"] @ A
    return {"A": A, "B": means["B"] + missed @ A.T @ np.linalg.inv(A @ A.T + lam * np.eye(len(A)))}


def lora_fair(server, clients, weights, lam=0.01, lr=0.05, steps=40, relative=True, start=0.0):
    """Descent on 1 - cos(T, X) + lam ||D||^2 with X = (B + D) A, by gradients on products that are multiplied out."""
    means = fedit({"A": 0, "B": 0}, clients, weights)
    A, B, T = means["A"], means["B"], mean_product(clients, weights)
    unit = np.linalg.norm(B @ A) if relative and np.linalg.norm(B @ A) > 0 else 1.0
    D = start / unit + np.zeros_like(B)
    for _ in range(steps):
        X = (B / unit + D) @ A
        t, x = np.linalg.norm(T), np.linalg.norm(X)
        slope = (np.sum(T * X) / (t * x**3) * X - T / (t * x)) @ A.T if t * x > 0 else 0.0
        D = D - lr * (slope + 2 * lam * D)
    return {"A": A, "B": B + unit * D}
