"""FeDeRA: LoRA with singular value decompositions (Yan et al., FeDeRA, arXiv 2404.18848).

Symbols: W⁰ = U Σ Vᵀ the pretrained weight; ``B: (d_out, r)``, ``A: (r, d_in)``.
"""

from typing import Any, Literal

import torch
from torch import Tensor, nn

from fedgram.adapters import Adapter, LoraAdapter, lora_start
from fedgram.adapters.base import frozen_weight
from fedgram.errors import require_choice
from fedgram.linalg import mean_product, truncated_svd
from fedgram.methods.base import Field, RoundInfo
from fedgram.methods.lora import LoRAMethod
from fedgram.state import Layer, Layers
from fedgram.uploads import Uploads, average

__all__ = ["FeDeRA"]

When = Literal["init", "round"]


class FeDeRA(LoRAMethod):
    """Two readings of FeDeRA, told apart by when the singular value decomposition takes place (arXiv 2404.18848).

    - ``when: init``, the method's own paper: s B₀A₀ is the best rank-r part of W⁰, B₀ = U_r (Σ_r/s)^½ and
      A₀ = (Σ_r/s)^½ V_rᵀ (the split is PiSSA's; the paper's was not to be had), and training starts at
      W⁰ - s B₀A₀ + s B A. The server averages A and B.
    - ``when: round``, as FLoRG's paper tells it: LoRA's usual start, and the server takes the best rank-r part of the
      mean product, Σ wₙ BₙAₙ ≈ U_r Σ_r V_rᵀ, with B = U_r Σ_r^½ and A = Σ_r^½ V_rᵀ.

    Args:
        when: "init" or "round".
        common: the settings of `Method`: rank, alpha, target_modules, head.
    """

    def __init__(self, *, when: When = "init", **common: Any) -> None:
        super().__init__(**common)
        require_choice("method.when", when, When)
        self.when = when
        if when == "init":
            self.fields = (*LoRAMethod.fields, *(Field(f, up=False, trained=False, shared=True) for f in ("A0", "B0")))

    def adapter(self, linear: nn.Module, generator: torch.Generator) -> Adapter:
        if self.when == "round":
            return LoraAdapter(linear, self.rank, self.scale, lora_start(linear, self.rank, generator))
        weight = frozen_weight(linear).double()
        eye = torch.eye(weight.shape[1], dtype=weight.dtype)
        left, singular, right = truncated_svd(weight, eye, self.rank)
        B, A = (factor.float() for factor in split_evenly(left, singular / self.scale, right))
        return LoraAdapter(linear, self.rank, self.scale, {"A": A, "B": B, "A0": A, "B0": B}, preserve_start=True)

    def download(self, layers: Layers, client: int, info: RoundInfo) -> Layers:
        """Return A and B, and the start of both for a client that comes later than in the first round."""
        late = self.when == "init" and info.number > 1 and info.is_new(client)
        fields = ("A", "B", "A0", "B0") if late else ("A", "B")
        return {name: {field: layer[field] for field in fields} for name, layer in layers.items()}

    def aggregate(self, layers: Layers, uploads: Uploads, info: RoundInfo) -> Layers:
        if self.when == "round":
            return {name: self._best(name, layer, uploads) for name, layer in layers.items()}
        means = average({name: {f: layer[f] for f in ("A", "B")} for name, layer in layers.items()}, uploads)
        return {name: {**layer, **means[name]} for name, layer in layers.items()}

    def _best(self, name: str, layer: Layer, uploads: Uploads) -> Layer:
        """Return the balanced factors of the best rank-r approximation of the mean product of one layer.

        Where that has a lower rank, the rows of A that are left over stay what they were, beside columns of zeros in
        B: zeros in both would be a saddle that training never leaves.
        """
        Bs, As = (uploads.stack(name, field, layer[field]) for field in ("B", "A"))
        B, A = split_evenly(*truncated_svd(*mean_product(Bs, As, uploads.weights), self.rank))
        found = B.shape[1]
        return {
            "A": torch.cat([A, layer["A"][found:].to(A)]).to(layer["A"]),
            "B": torch.cat([B, B.new_zeros(B.shape[0], self.rank - found)], dim=1).to(layer["B"]),
        }


def split_evenly(left: Tensor, singular: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """Return U Σ^½ and Σ^½ Vᵀ."""
    root = singular.sqrt()
    return left * root, root[:, None] * right
