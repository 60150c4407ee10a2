"""FLoRG: one low-rank matrix per layer, aggregated through its Gram matrix, aligned by Procrustes.

Meng, Tang, Wong: FLoRG: Federated Fine-tuning with Low-rank Gram Matrices and Procrustes Alignment (arXiv 2602.17095).
Symbols: ``A: (r, k)`` the server's matrix Aᵗ of one layer; ``Z: (m, k)`` any factor of the aggregated Gram matrix,
ZᵀZ = Q; ``Ã: (r', k)`` the canonical one, Λ^{1/2} P.
"""

import math
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fedgram.adapters import Adapter, GramAdapter, make_bases
from fedgram.adapters.base import frozen_weight
from fedgram.adapters.gram import Basis
from fedgram.distributed.uploads import LayerUploads, Uploads
from fedgram.errors import ConfigurationError, require_choice
from fedgram.methods.base import Diagnostics, Method, Paper
from fedgram.methods.context import RoundContext
from fedgram.methods.fields import Field
from fedgram.numerics import linalg
from fedgram.state import Layer, Layers, ModelState, ServerState

__all__ = ["FLoRG", "Projection"]

Solver = Literal["polar", "eigh"]
Projection = Literal["procrustes", "top_r", "top_r_aligned", "none", "average"]


class FLoRG(Method):
    """Low-rank Gram matrices with Procrustes alignment (arXiv 2602.17095).

    ΔW = s L AᵀA R; clients train and send A alone; the server forms Q = Σ wₙ AₙᵀAₙ (eq. 4), factors it (eqs. 6, 7) and
    rotates the factor towards the last A (eqs. 8-11).

    The paper has one rank for all. A client of a lower rank rₙ is given A₍ᵣₙ₎, the first rows of A, and the server
    counts what it changed in them: Q = AᵀA + Σ wₙ (AₙᵀAₙ - A₍ᵣₙ₎ᵀA₍ᵣₙ₎). So the rows that only some have are not shrunk
    by the others. While it trains, its model is without the other rows.

    Args:
        solver: "polar" gives Aᵗ⁺¹ = polar(Aᵗ Zᵀ) Z without forming Q; "eigh" is the paper's literal path: all_reduce of
            the k x k Gram matrices, eigendecomposition, SVD. Both give the same A, up to rounding.
        projection: how Q's factor of rank r' becomes one of rank r. "procrustes": the paper's (eq. 11).
            "top_r_aligned": the best rank-r factor, rotated towards the last A. "top_r": the best rank-r factor, its
            signs fixed by a rule. "none": the same rows as the eigensolver happens to return them, the paper's ablation
            without alignment. "average": Σ wₙ Aₙ, no Gram matrix at all, as a baseline.
        basis: how L and R are made (the paper's Table 6): "orthogonal" (random), "kaiming" (random, not orthogonal),
            "svd" (the singular vectors of the pretrained weight) or "identity".
        init_std: standard deviation of the entries of the first A; zero would be a saddle.
        preserve_start: take s L A₁ᵀA₁ R out of the frozen side, so that training starts at the pretrained function.
        common: the settings of `Method`: rank, alpha, target_modules, head, client_ranks.
    """

    paper = Paper("Meng et al.", 2026, "arXiv", "2602.17095")
    heterogeneous = True
    travels = "A both ways"
    variants = {"FLoRG": {}, "FLoRG-eigh": {"solver": "eigh"}}  # noqa: RUF012
    fields = (Field("A", rank_axis=0),)

    def __init__(
        self,
        *,
        solver: Solver = "polar",
        projection: Projection = "procrustes",
        basis: Basis = "orthogonal",
        init_std: float = 0.02,
        preserve_start: bool = True,
        **common: Any,
    ) -> None:
        super().__init__(**common)
        if not 0 < init_std < math.inf:
            raise ConfigurationError(f"method.init_std must be positive (A = 0 is a saddle), got {init_std}")
        require_choice("method.solver", solver, Solver)
        require_choice("method.projection", projection, Projection)
        require_choice("method.basis", basis, Basis)
        self.solver = solver
        self.projection = projection
        self.basis = basis
        self.init_std = init_std
        self.preserve_start = preserve_start

    @property
    def keeps_start(self) -> bool:
        return self.preserve_start

    @property
    def name(self) -> str:
        usual = {"projection": "procrustes", "basis": "orthogonal"}
        return "-".join(
            [super().name, *(getattr(self, key) for key, value in usual.items() if getattr(self, key) != value)]
        )

    def adapter(self, linear: nn.Module, generator: torch.Generator) -> Adapter:
        weight = frozen_weight(linear)
        A = torch.empty(self.rank, min(weight.shape)).normal_(0, self.init_std, generator=generator)
        bases = make_bases(self.basis, weight, generator)
        return GramAdapter(linear, self.rank, self.scale, bases, A, self.preserve_start)

    def origin(self, server: ServerState, initial: ModelState) -> ServerState:
        """Return the factor of A₁ᵀA₁ that is nearest to the present A: all have the product that the run began with.

        The step gives A other rows with every round, all of them where it does not align.
        """
        found = super().origin(server, initial)
        layers = {
            name: {"A": linalg.align(server.adapter[name]["A"], layer["A"]).to(layer["A"])}
            for name, layer in found.adapter.items()
        }
        return found.with_adapter(layers)

    def aggregate_layer(self, layer: Layer, sent: LayerUploads, ctx: RoundContext) -> Layer:
        A = layer["A"]
        if self.projection == "average":
            return {"A": sent.mean("A")}
        if self.projection == "procrustes" and self.solver == "polar":
            Z = self.gram_stack(sent)  # ZᵀZ = Q = Σ wₙ AₙᵀAₙ, eq. (4)
            return {"A": linalg.align(A, Z)}  # polar(A Zᵀ) Z = S Ã, eqs. (6)-(12)
        factor = self._canonical_factor(A, sent)  # Ã, eqs. (6), (7)
        if self.projection == "procrustes":
            return {"A": linalg.procrustes(A, factor) @ factor}  # S Ã, eqs. (8)-(12)
        top = linalg.top_rows(factor, self.rank)
        if self.projection == "top_r_aligned":
            return {"A": linalg.procrustes(A, top) @ top}
        return {"A": linalg.canonical_signs(top) if self.projection == "top_r" else top}

    @staticmethod
    def gram_stack(sent: LayerUploads) -> Float[Tensor, "m k"]:
        """Return Z = [√wₙ Aₙ], for which ZᵀZ = Q: an all_gather of N r k numbers.

        Where a client has a lower rank, Aₙ here is [Aₙ; A₍>ᵣₙ₎], what it sent above the server's other rows, put
        together by `receive`. With AᵀA = A₍ᵣₙ₎ᵀA₍ᵣₙ₎ + A₍>ᵣₙ₎ᵀA₍>ᵣₙ₎ and Σ wₙ = 1,
        Q = AᵀA + Σ wₙ (AₙᵀAₙ - A₍ᵣₙ₎ᵀA₍ᵣₙ₎) = Σ wₙ (AₙᵀAₙ + A₍>ᵣₙ₎ᵀA₍>ᵣₙ₎) = Σ wₙ [Aₙ; A₍>ᵣₙ₎]ᵀ[Aₙ; A₍>ᵣₙ₎]:
        Q is positive semi-definite, no difference is ever taken, and both solvers and all projections go on from there.

        Q itself is fewer from N = 2k/r clients on. But its eigenvectors take longer than to send these, until devices
        and clients are thousands (docs/performance.md), and `diagnose` asks for these in any case.
        """
        return linalg.weighted_stack(sent.stack("A"), sent.weights)

    def _canonical_factor(self, A: Float[Tensor, "r k"], sent: LayerUploads) -> Float[Tensor, "r2 k"]:
        """Return Ã = Λ^{1/2} P (eq. 7), by the eigenvectors of Q (eq. 4) or by the thin SVD of the stack."""
        if self.solver == "eigh":  # an all_reduce of k² numbers
            Q = sent.mean_of(lambda own: linalg.gram(own["A"]), A.new_empty(A.shape[1], A.shape[1]))
            return linalg.gram_factor(Q)
        return linalg.stack_factor(self.gram_stack(sent))

    def diagnose(self, before: Layers, after: Layers, uploads: Uploads) -> Diagnostics:
        """Return, per layer: ‖AᵀA - Q‖ relative to Q and to Q - AᵗᵀAᵗ, best rank-r error, κ(A), drift of A, and r'."""
        return {
            name: self._figures(layer["A"], after[name]["A"], self.gram_stack(LayerUploads(name, layer, uploads)))
            for name, layer in before.items()
        }

    def _figures(
        self, before: Float[Tensor, "r k"], after: Float[Tensor, "r k"], Z: Float[Tensor, "m k"]
    ) -> dict[str, float]:
        """Return the figures of one layer."""
        old, A, factor = linalg.in_common_basis(before, after, Z)
        missed, moved = linalg.gram_error(A, factor), linalg.gram_error(old, factor)
        return {
            "aggregation_error": float(missed),
            "update_error": float(linalg.ratio(missed, moved)),
            "best_rank_error": float(linalg.best_rank_error(factor, self.rank)),
            "condition_number": float(linalg.condition_number(A)),
            "drift": float(linalg.relative_change(before, after)),
            "rank_of_q": float(linalg.matrix_rank(factor, max(Z.shape))),
        }
