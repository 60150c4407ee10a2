"""FedEx-LoRA: averaging made exact by a residual (Singhal et al., FedEx-LoRA, ACL 2025, arXiv 2410.09432).

Symbols: ``R: (d_out, d_in)`` the sum of all residuals so far, with the scale s; ``U: (m, d_out)`` and ``V: (m, d_in)``
the factors of the last one, with m = (N-1) r.
"""

from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fedgram.adapters import Adapter, LoraAdapter, lora_start
from fedgram.distributed.uploads import Uploads
from fedgram.errors import require_choice
from fedgram.methods.base import Paper
from fedgram.methods.context import RoundContext
from fedgram.methods.lora import LoRAMethod
from fedgram.methods.residual import ResidualMethod
from fedgram.numerics.linalg import deviation_basis
from fedgram.state import Layer, Layers, ServerState

__all__ = ["FedExLoRA"]

Residual = Literal["dense", "factored"]


class FedExLoRA(ResidualMethod):
    """Ā and B̄ are averaged, and what B̄ Ā misses is added to the frozen weights (arXiv 2410.09432).

    W⁰ ← W⁰ + s (Σ wₙ BₙAₙ - B̄ Ā), so that the aggregation is exact. The sum of the residuals is kept in float32 beside
    weights of a lower precision, which would swallow it. The published code adds the residual transposed where layers
    are ``nn.Linear``, which square layers hide; here it has the shape of the weight, (d_out, d_in). Ranks that differ
    from client to client are not in the paper; factors filled up with the server's own leave the aggregation exact.

    Args:
        residual: how the residual travels. "dense": d_out · d_in numbers. "factored": as (N-1) r vectors of each side,
            its true rank, by Σⱼ UⱼᵀVⱼ with U = (C ∘ √w) B, V = (C ∘ √w) A, C √w = 0; the dense sum goes to a client
            that missed a round, and where it is fewer numbers, as for many clients.
        common: the settings of `Method`: rank, alpha, target_modules, head, client_ranks.
    """

    paper = Paper("Singhal et al.", 2024, "ACL 2025", "2410.09432")
    exact = True
    heterogeneous = True
    travels = "A and B up; A, B and the residual down"
    variants = {"FedExLoRA": {}, "FedExLoRA-factored": {"residual": "factored"}}  # noqa: RUF012

    def __init__(self, *, residual: Residual = "dense", **common: Any) -> None:
        super().__init__(**common)
        require_choice("method.residual", residual, Residual)
        self.residual = residual
        self.fields = (*LoRAMethod.fields, *self.residual_fields(factored=residual == "factored"))

    @property
    def name(self) -> str:
        return super().name + ("" if self.residual == "dense" else "-factored")

    def adapter(self, linear: nn.Module, generator: torch.Generator) -> Adapter:
        start = lora_start(linear, self.rank, generator)
        return LoraAdapter(linear, self.rank, self.scale, start | self.no_residual(linear))

    def aggregate(self, layers: Layers, uploads: Uploads, ctx: RoundContext) -> Layers:
        means = self.average_changes(layers, uploads, ("A", "B"))
        return {name: {**means[name], **self._residual(name, layer, uploads)} for name, layer in layers.items()}

    def next_form(self, server: ServerState, ctx: RoundContext) -> ServerState:
        rows = (len(ctx.last_rounds) - 1) * self.rank
        return server.with_adapter(self.next_residual(server.adapter, rows))

    def _residual(self, name: str, layer: Layer, uploads: Uploads) -> Layer:
        """Return the sum of all residuals of one layer, and the factors of the newest."""
        Bs, As = (uploads.stack(name, field, layer[field]) for field in ("B", "A"))
        U, V = (_deviations(factors, uploads.weights) for factors in (Bs.mT, As))
        return self.with_residual(layer["residual"], U, V)


def _deviations(factors: Float[Tensor, "N r d"], weights: Float[Tensor, " N"]) -> Float[Tensor, "m d"]:
    """Return Σₙ Cⱼₙ √wₙ Xₙ for every j, their rows one after another."""
    mix = (deviation_basis(weights) * weights.double().sqrt()).to(factors.device, non_blocking=True)
    return torch.einsum("jn,nrd->jrd", mix, factors.double()).flatten(0, 1)
