"""FLoRG's adapter: ΔW = s L Aᵀ A R, one low-rank matrix and two fixed bases.

Symbols (FLoRG, §3.1): ``A: (r, k)`` with k = min(d_in, d_out); ``L: (d_out, k)`` and ``R: (k, d_in)``, semi-orthogonal,
equal on all clients and never sent: they come from the seed.
"""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fedgram.adapters.base import Adapter
from fedgram.numerics.linalg import canonical_signs, semi_orthogonal
from fedgram.state import Layer

__all__ = ["Basis", "GramAdapter", "make_bases"]

Basis = Literal["orthogonal", "kaiming", "svd", "identity"]


class GramAdapter(Adapter):
    """ΔW = s (L AᵀA R - L A₁ᵀA₁ R), of which A alone is trained and sent (FLoRG, eq. 1).

    A = 0 is a saddle, since the gradient is A (H + Hᵀ) (eq. 2): A₁ starts random and small, and the constant second
    term takes the start back, so that the pretrained function is unchanged. Without ``preserve_start`` it is left out,
    and the first forward is that of W⁰ + s L A₁ᵀA₁ R (Algorithm 1, line 3).

    Args:
        base: the layer to adapt.
        rank: r.
        scale: s.
        bases: (L, R); None stands for an identity and costs nothing.
        start: A₁.
        preserve_start: whether the pretrained function is unchanged at the start.
    """

    def __init__(
        self,
        base: nn.Module,
        rank: int,
        scale: float,
        bases: tuple[Tensor | None, Tensor | None],
        start: Float[Tensor, "r k"],
        preserve_start: bool = True,
    ) -> None:
        super().__init__(base, rank, scale, {"A": start}, preserve_start)
        self.L: Tensor | None
        self.R: Tensor | None
        self.register_buffer("L", bases[0], persistent=False)
        self.register_buffer("R", bases[1], persistent=False)

    def expand(self, tensors: Layer) -> tuple[Float[Tensor, "C r d_in"], Float[Tensor, "C r d_out"]]:
        """Return A R and A Lᵀ: r rows each, where L and R themselves have k."""
        A = tensors["A"]
        down = A if self.R is None else A @ self.R.to(A.dtype)
        up = A if self.L is None else A @ self.L.to(A.dtype).mT
        return down, up


def make_bases(
    kind: Basis, weight: Float[Tensor, "d_out d_in"], generator: torch.Generator
) -> tuple[Tensor | None, Tensor | None]:
    """Return L and R, of shapes (d_out, k) and (k, d_in), or None for an identity.

    - ``orthogonal``: uniformly random semi-orthogonal. The square one of the two (R if d_in <= d_out) is the identity:
      with A' = A R the product L AᵀA R is (L R) A'ᵀA', and L R is as random as L, so nothing is lost and memory halves.
    - ``kaiming``: entries uniform in ±1/√fan_in, as PEFT draws LoRA's A; not orthogonal (Table 6).
    - ``svd``: the singular vectors of the pretrained weight W⁰ = U Σ Vᵀ: L = U, R = Vᵀ (Table 6).
    - ``identity``: the leading columns and rows of the identity.
    """
    d_out, d_in = weight.shape
    k = min(d_out, d_in)
    if kind == "svd":
        U, _, Vh = torch.linalg.svd(weight.double(), full_matrices=False)
        signed = canonical_signs(
            Vh
        )  # L AᵀA R changes with the sign of a pair of vectors, which a solver chooses freely
        return (U * (signed * Vh).sum(dim=1).sign()).float(), signed.float()
    if kind == "kaiming":
        L = torch.empty(d_out, k).uniform_(-(k**-0.5), k**-0.5, generator=generator)
        R = torch.empty(k, d_in).uniform_(-(d_in**-0.5), d_in**-0.5, generator=generator)
        return L, R
    if kind == "identity":
        return (None if d_out == k else torch.eye(d_out, k)), (None if d_in == k else torch.eye(k, d_in))
    if d_in == k:
        return semi_orthogonal(d_out, k, generator).float(), None
    return None, semi_orthogonal(k, d_in, generator).float()
