"""FeDeRA: LoRA with singular value decompositions (Yan et al., FeDeRA, arXiv 2404.18848).

Symbols: W⁰ = U Σ Vᵀ the pretrained weight; ``B: (d_out, r)``, ``A: (r, d_in)``.
"""

from typing import Any, Literal

import torch
from torch import Tensor, nn

from fedgram.adapters import Adapter, LoraAdapter, lora_start
from fedgram.adapters.base import frozen_weight
from fedgram.distributed.uploads import LayerUploads
from fedgram.errors import require_choice
from fedgram.methods.base import Paper
from fedgram.methods.context import RoundContext
from fedgram.methods.fields import Field
from fedgram.methods.lora import LoRAMethod
from fedgram.numerics.linalg import mean_product, singular_triplets, truncated_svd
from fedgram.state import Layer

__all__ = ["FeDeRA"]

When = Literal["init", "round"]


class FeDeRA(LoRAMethod):
    """Two readings of FeDeRA, told apart by when the singular value decomposition takes place (arXiv 2404.18848).

    - ``when: init``, the method's own paper: s B₀A₀ is the best rank-r part of W⁰, B₀ = U_r (Σ_r/s)^½ and
      A₀ = (Σ_r/s)^½ V_rᵀ (the split is PiSSA's; the paper's was not to be had), and training starts at
      W⁰ - s B₀A₀ + s B A. The server averages A and B. Clients make A₀ and B₀ themselves, as they have W⁰.
    - ``when: round``, as FLoRG's paper tells it: LoRA's usual start, and the server takes the best rank-r part of the
      mean product, Σ wₙ BₙAₙ ≈ U_r Σ_r V_rᵀ, with B = U_r Σ_r^½ and A = Σ_r^½ V_rᵀ.

    Args:
        when: "init" starts from the leading singular triplets of the pretrained weight, W⁰ - s B₀A₀ + s B A, and the
            server averages A and B, as the method's own paper has it; "round" starts as LoRA does, and the server cuts
            the mean product to rank r by an SVD in every round, as FLoRG's paper tells it.
        common: the settings of `Method`: rank, alpha, target_modules, head.
    """

    paper = Paper("Yan et al.", 2024, "arXiv", "2404.18848")
    travels = "A and B both ways"
    variants = {"FeDeRA": {}, "FeDeRA-round": {"when": "round"}}  # noqa: RUF012

    def __init__(self, *, when: When = "init", **common: Any) -> None:
        super().__init__(**common)
        require_choice("method.when", when, When)
        self.when = when
        if when == "init":
            start = (Field(f, down=False, up=False, trained=False, shared=True) for f in ("A0", "B0"))
            self.fields = (*LoRAMethod.fields, *start)

    @property
    def name(self) -> str:
        return super().name + ("" if self.when == "init" else "-round")

    def adapter(self, linear: nn.Module, generator: torch.Generator) -> Adapter:
        if self.when == "round":
            return LoraAdapter(linear, self.rank, self.scale, lora_start(linear, self.rank, generator))
        left, singular, right = singular_triplets(frozen_weight(linear), self.rank)
        B, A = (factor.float() for factor in split_evenly(left, singular / self.scale, right))
        return LoraAdapter(linear, self.rank, self.scale, {"A": A, "B": B, "A0": A, "B0": B}, preserve_start=True)

    def aggregate_layer(self, layer: Layer, sent: LayerUploads, ctx: RoundContext) -> Layer:
        """Return Ā and B̄, or the balanced factors of the best rank-r approximation of the mean product.

        Where that has a lower rank, the rows of A that are left over stay what they were, beside columns of zeros in
        B: zeros in both would be a saddle that training never leaves.
        """
        if self.when == "init":
            return {"A": sent.mean("A"), "B": sent.mean("B")}
        product = mean_product(sent.stack("B"), sent.stack("A"), sent.weights)
        B, A = split_evenly(*truncated_svd(*product, self.rank))
        found = B.shape[1]
        return {
            "A": torch.cat([A, layer["A"][found:].to(A)]),
            "B": torch.cat([B, B.new_zeros(B.shape[0], self.rank - found)], dim=1),
        }


def split_evenly(left: Tensor, singular: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """Return U Σ^½ and Σ^½ Vᵀ."""
    root = singular.sqrt()
    return left * root, root[:, None] * right
