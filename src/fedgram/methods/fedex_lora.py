"""FedEx-LoRA: averaging made exact by a residual (Singhal et al., FedEx-LoRA, ACL 2025, arXiv 2410.09432).

Symbols: ``R: (d_out, d_in)`` the sum of all residuals so far, with the scale s; ``U: (m, d_out)`` and ``V: (m, d_in)``
the factors of the last one, with m = (N-1) r.
"""

from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fedgram.adapters import Adapter, LoraAdapter, lora_start
from fedgram.errors import require_choice
from fedgram.linalg import deviation_basis
from fedgram.methods.base import Paper, RoundInfo
from fedgram.methods.fields import Field, select
from fedgram.methods.lora import LoRAMethod
from fedgram.state import Layer, Layers
from fedgram.uploads import Uploads, average

__all__ = ["FedExLoRA"]

Residual = Literal["dense", "factored"]


class FedExLoRA(LoRAMethod):
    """Ā and B̄ are averaged, and what B̄ Ā misses is added to the frozen weights (arXiv 2410.09432).

    W⁰ ← W⁰ + s (Σ wₙ BₙAₙ - B̄ Ā), so that the aggregation is exact. The sum of the residuals is kept in float32 beside
    weights of a lower precision, which would swallow it. The published code adds the residual transposed where layers
    are ``nn.Linear``, which square layers hide; here it has the shape of the weight, (d_out, d_in).

    Args:
        residual: how the residual travels. "dense": d_out · d_in numbers. "factored": as (N-1) r vectors of each side,
            its true rank, by Σⱼ UⱼᵀVⱼ with U = (C ∘ √w) B, V = (C ∘ √w) A, C √w = 0; the dense sum goes to a client
            that missed a round, and where it is fewer numbers, as for many clients.
        common: the settings of `Method`: rank, alpha, target_modules, head.
    """

    paper = Paper("Singhal et al.", 2024, "ACL 2025", "2410.09432")
    exact = True
    travels = "A and B up; A, B and the residual down"
    variants = {"FedExLoRA": {}, "FedExLoRA-factored": {"residual": "factored"}}  # noqa: RUF012

    def __init__(self, *, residual: Residual = "dense", **common: Any) -> None:
        super().__init__(**common)
        require_choice("method.residual", residual, Residual)
        self.residual = residual
        self.fields = (*LoRAMethod.fields, *(Field(f, up=False, trained=False, shared=True) for f in self._sent))

    @property
    def name(self) -> str:
        return super().name + ("" if self.residual == "dense" else "-factored")

    @property
    def _sent(self) -> tuple[str, ...]:
        return ("residual",) if self.residual == "dense" else ("residual", "U", "V")

    def adapter(self, linear: nn.Module, generator: torch.Generator) -> Adapter:
        start = lora_start(linear, self.rank, generator)
        (_, d_in), (d_out, _) = start["A"].shape, start["B"].shape
        nothing = {"residual": torch.zeros(d_out, d_in), "U": torch.zeros(0, d_out), "V": torch.zeros(0, d_in)}
        return LoraAdapter(linear, self.rank, self.scale, start | {field: nothing[field] for field in self._sent})

    def download(self, layers: Layers, client: int, info: RoundInfo) -> Layers:
        if info.number == 1:  # there is no residual yet
            return select(layers, ("A", "B"))
        factored = self.residual == "factored" and info.is_up_to_date(client)
        return {name: self._with_residual(layer, factored) for name, layer in layers.items()}

    @staticmethod
    def _with_residual(layer: Layer, factored: bool) -> Layer:
        """Return what brings a client to the server's weights: the newest residual's factors, or the sum of all."""
        fewer = factored and layer["U"].numel() + layer["V"].numel() < layer["residual"].numel()
        return {field: layer[field] for field in ("A", "B", *(("U", "V") if fewer else ("residual",)))}

    def aggregate(self, layers: Layers, uploads: Uploads, info: RoundInfo) -> Layers:
        means = average(layers, uploads, {"A", "B"})
        return {name: {**means[name], **self._residual(name, layer, uploads)} for name, layer in layers.items()}

    def _residual(self, name: str, layer: Layer, uploads: Uploads) -> Layer:
        """Return the sum of all residuals of one layer, and the factors of the newest."""
        Bs, As = (uploads.stack(name, field, layer[field]) for field in ("B", "A"))
        U, V = (_deviations(factors, uploads.weights) for factors in (Bs.mT, As))
        total = layer["residual"] + self.scale * (U.mT @ V)  # in float64, rounded once
        found = {"residual": total, "U": U, "V": V}
        return {field: found[field].to(layer[field]) for field in self._sent}


def _deviations(factors: Float[Tensor, "N r d"], weights: Float[Tensor, " N"]) -> Float[Tensor, "m d"]:
    """Return Σₙ Cⱼₙ √wₙ Xₙ for every j, their rows one after another."""
    mix = (deviation_basis(weights) * weights.double().sqrt()).to(factors.device, non_blocking=True)
    return torch.einsum("jn,nrd->jrd", mix, factors.double()).flatten(0, 1)
