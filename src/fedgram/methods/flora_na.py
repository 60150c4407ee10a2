"""FLoRA-NA: of all mixtures of the clients' factors, that whose product is nearest to the mean product.

Nguyen et al.: Communication-Efficient and Accurate Approach for Aggregation in Federated Low-Rank Adaptation (2025,
arXiv 2509.26399). Symbols: ``P, Q: (N,)`` the mixtures of A and of B; ``M_ac = BₐᵀB_c`` and ``N_bd = A_bA_dᵀ``, both
(r, r), the blocks of the clients' Gram matrices. As ⟨BₐA_b, B_cA_d⟩ = Σ (M_ac ∘ N_bd), no product of factors is formed.
"""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from fedgram.distributed.uploads import Uploads
from fedgram.errors import require_choice
from fedgram.methods.base import Paper
from fedgram.methods.context import RoundContext
from fedgram.methods.fields import fill_up
from fedgram.methods.lora import LoRAMethod
from fedgram.settings import check
from fedgram.state import Layers

__all__ = ["FLoRANA"]

Scope = Literal["layer", "model"]
Mixture = Float[Tensor, " N"]


class _Grams(NamedTuple):
    """The Gram blocks of one layer, each ``(N, N, r, r)`` in float64."""

    B: Float[Tensor, "N N r r"]
    A: Float[Tensor, "N N r r"]


class FLoRANA(LoRAMethod):
    """Â = Σ Pₙ Aₙ and B̂ = Σ Qₙ Bₙ with the P and Q that minimise ‖Σ wₙ BₙAₙ - B̂ Â‖ (arXiv 2509.26399).

    A reconstruction: the paper names P and Q and the objective, but not how it is solved. Here each is in turn the
    exact solution of its least-squares problem, given the other, from P = Q = w on, where the product is that of the
    means. So the result is never worse than averaging, and at best the truncated SVD of rank r, which no mixture of
    factors of rank r exceeds.

    The objective is the same for (c P, Q/c). c is chosen so that ‖B̂‖/‖Â‖ is that of the means, and ⟨Â, Ā⟩ ≥ 0: else the
    clients' optimizers would see factors of any scale. Clients of a lower rank take part with the server's own rows and
    columns in what they lack; ranks that nobody of the cohort has stay what they were.

    Args:
        scope: "layer" solves for a P and a Q of every layer; "model" for one pair for all layers, which has a larger
            error and no less traffic, as P and Q never leave the server. The paper does not say which it means.
        sweeps: how often P and Q are solved for in turn. For clients that started from one model 5 are enough; for
            random factors that have nothing in common more than 20 would gain about a thousandth.
        common: the settings of `Method`: rank, alpha, target_modules, head, client_ranks.
    """

    paper = Paper("Nguyen et al.", 2025, "arXiv", "2509.26399")
    heterogeneous = True
    travels = "A and B both ways"

    def __init__(self, *, scope: Scope = "layer", sweeps: int = 20, **common: Any) -> None:
        super().__init__(**common)
        require_choice("method.scope", scope, Scope)
        check("method.sweeps", sweeps, at_least=1, hint="FedIT does none")
        self.scope = scope
        self.sweeps = sweeps

    @property
    def name(self) -> str:
        return super().name + ("" if self.scope == "layer" else "-model")

    def aggregate(self, layers: Layers, uploads: Uploads, ctx: RoundContext) -> Layers:
        whole = layers
        layers, uploads = self.held_by_cohort(layers, uploads, ctx)
        groups = [list(layers)] if self.scope == "model" else [[name] for name in layers]
        after: Layers = {}
        for names in groups:
            stacks = {n: {f: uploads.stack(n, f, layers[n][f]).double() for f in ("A", "B")} for n in names}
            grams = [_grams(stacks[n]["B"], stacks[n]["A"]) for n in names]
            P, Q = _mixtures(grams, uploads.weights.to(grams[0].A.device), self.sweeps)
            for n in names:
                mixed = {f: torch.einsum("n,nij->ij", mixture, stacks[n][f]) for f, mixture in (("A", P), ("B", Q))}
                after[n] = {f: mixed[f].to(layers[n][f]) for f in layers[n]}
        return fill_up(after, self.fields, self.rank, whole)


def _grams(Bs: Float[Tensor, "N d_out r"], As: Float[Tensor, "N r d_in"]) -> _Grams:
    def blocks(columns: Float[Tensor, "N r d"]) -> Float[Tensor, "N N r r"]:
        flat = columns.flatten(0, 1)
        return (flat @ flat.mT).reshape(*columns.shape[:2], *columns.shape[:2]).transpose(1, 2)

    return _Grams(blocks(Bs.mT), blocks(As))


def _mixtures(grams: Sequence[_Grams], weights: Mixture, sweeps: int) -> tuple[Mixture, Mixture]:
    """Return P and Q for layers that share them."""
    P = Q = weights
    turned = [_Grams(B=g.A, A=g.B) for g in grams]
    for _ in range(sweeps):
        P = _solved(P, Q, grams, weights)
        Q = _solved(Q, P, turned, weights)
    return _in_gauge(P, Q, grams, weights)


def _solved(P: Mixture, Q: Mixture, grams: Sequence[_Grams], weights: Mixture) -> Mixture:
    """Return the P that is best for a Q: G P = h with G_bd = ⟨B̂A_b, B̂A_d⟩ and h_d = ⟨Σ wₙ BₙAₙ, B̂A_d⟩.

    It is solved for the change of P, G Δ = h - G P, held back where G says next to nothing: (G + ε Tr(G) I) Δ. So no
    step makes the objective larger, and where clients sent the same, or zeros, P stays what it was.
    """
    G, h = torch.zeros(len(P), len(P)).to(P), torch.zeros_like(P)
    for M, N in grams:
        mixed = torch.einsum("c,acxy->axy", Q, M)  # BₐᵀB̂
        G += torch.einsum("xy,bdxy->bd", torch.einsum("a,axy->xy", Q, mixed), N)
        h += torch.einsum("axy,adxy->d", weights[:, None, None] * mixed, N)
    trace = G.trace()
    ridge = torch.where(trace > 0, 1e-12 * trace, 1.0)
    return P + torch.linalg.solve(G + ridge * torch.eye(len(P)).to(P), h - G @ P)


def _in_gauge(P: Mixture, Q: Mixture, grams: Sequence[_Grams], weights: Mixture) -> tuple[Mixture, Mixture]:
    """Return (c P, Q/c) with ‖B̂‖/‖Â‖ = ‖B̄‖/‖Ā‖ and ⟨Â, Ā⟩ ≥ 0; c = 1 where a norm, over all layers, is zero."""
    M, N = (sum(g[i].diagonal(dim1=-2, dim2=-1).sum(-1) for g in grams) for i in range(2))  # ⟨Bₐ, B_c⟩ and ⟨A_b, A_d⟩
    ratio = (Q @ M @ Q) * (weights @ N @ weights) / ((P @ N @ P) * (weights @ M @ weights))
    c = torch.where(torch.isfinite(ratio) & (ratio > 0), ratio, 1.0) ** 0.25
    c = torch.where(P @ N @ weights < 0, -c, c)
    return c * P, Q / c
