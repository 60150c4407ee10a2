"""FedSVD: B is trained, and A is made orthonormal by a singular value decomposition (Lee et al., NeurIPS 2025).

Symbols: ``A: (r, d_in)`` the server's, ``B̄: (d_out, r)`` the mean of the clients'; Aᵀ = O R a QR decomposition.
"""

from typing import Any

import torch
from torch import Tensor

from fedgram.distributed.uploads import Uploads, average
from fedgram.methods.base import HeadPolicy, Paper
from fedgram.methods.context import RoundContext
from fedgram.methods.fields import Field
from fedgram.methods.lora import LoRAMethod
from fedgram.numerics.linalg import canonical_signs
from fedgram.settings import check
from fedgram.state import Layer, Layers

__all__ = ["FedSVD"]


class FedSVD(LoRAMethod):
    """Clients train B alone; the server rewrites B̄ A = U Σ Vᵀ as B = U Σ and A = Vᵀ (arXiv 2505.12805).

    ΔW = s B A. B̄ = Σ wₙ Bₙ is exact, since all clients hold one A; and the decomposition changes the factors, not ΔW.
    A starts as LoRA's, as in the published code, and has orthonormal rows from the first decomposition on, which bounds
    the gradient of B by that of the layer's output. The paper's aim is privacy, which is not simulated here.

    The rows of Vᵀ are combinations of those of A: so their span is that of the random A of the first round for ever,
    and with plain SGD the method is FFA-LoRA with an orthonormal A. What A gains is its condition, and under Adam its
    axes. Hence U, Σ and V come from the small matrix B̄ Rᵀ with Aᵀ = O R, d_out x r, and not from the whole product; and
    where Σ has zeros, A keeps that span, while the published code takes whatever vectors its solver completes V with.

    Args:
        every: rounds from one decomposition to the next; A travels down only to clients that don't have the newest.
        head: "frozen" at its random start, as in the published code; "averaged" (trained, and averaged by the server);
            or "local" to each client.
        common: the settings of `Method`: rank, alpha, target_modules.
    """

    paper = Paper("Lee et al.", 2025, "NeurIPS 2025", "2505.12805")
    exact = True
    travels = "B up; A and B down"
    fields = (Field("A", up=False, trained=False), Field("B"))

    def __init__(self, *, every: int = 1, head: HeadPolicy = "frozen", **common: Any) -> None:
        super().__init__(head=head, **common)
        check("method.every", every, at_least=1, hint="1 decomposes in every round")
        self.every = every

    @property
    def name(self) -> str:
        return super().name + ("" if self.every == 1 else f"-{self.every}")

    def changes(self, number: int) -> frozenset[str]:
        """Return B, and A in the rounds that end with a decomposition."""
        return frozenset("AB") if number % self.every == 0 else frozenset("B")

    def aggregate(self, layers: Layers, uploads: Uploads, ctx: RoundContext) -> Layers:
        means = average(layers, uploads, {"B"})
        if ctx.number % self.every:
            return means
        return {name: _rewritten(layer) for name, layer in means.items()}


def _rewritten(layer: Layer) -> Layer:
    """Return U Σ and Vᵀ of B A = U Σ Vᵀ."""
    A, B = layer["A"].double(), layer["B"].double()
    basis, R = torch.linalg.qr(A.mT)
    rotation: Tensor = torch.linalg.svd(B @ R.mT, full_matrices=False)[2]
    orthonormal = canonical_signs(rotation @ basis.mT)
    return {"A": orthonormal.to(layer["A"]), "B": (B @ (A @ orthonormal.mT)).to(layer["B"])}
