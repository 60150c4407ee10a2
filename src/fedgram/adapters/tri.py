"""Three matrices: ΔW = s B C A, with a small square one between the factors."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fedgram.adapters.base import Adapter, layer_sizes
from fedgram.state import Layer

__all__ = ["TriAdapter", "tri_start"]


class TriAdapter(Adapter):
    """ΔW = s B C A with ``A: (r, d_in)``, ``C: (r, r)`` and ``B: (d_out, r)``; with C = I it is LoRA's.

    C is multiplied into A once for all tokens: a token costs what it costs with LoRA.
    """

    def expand(self, tensors: Layer) -> tuple[Float[Tensor, "C r d_in"], Float[Tensor, "C r d_out"]]:
        return torch.bmm(tensors["C"], tensors["A"]), tensors["B"].mT


def tri_start(linear: nn.Module, rank: int, std: float, generator: torch.Generator) -> Layer:
    """Return CE-LoRA's start: A normal with a given standard deviation, B zero, and C = I.

    Args:
        linear: the layer to adapt.
        rank: r.
        std: of the entries of A.
        generator: draws A.

    Returns:
        ``A: (r, d_in)``, ``C: (r, r)`` and ``B: (d_out, r)``, float32; ΔW is zero.
    """
    d_in, d_out = layer_sizes(linear)
    A = torch.empty(rank, d_in).normal_(0, std, generator=generator)
    return {"A": A, "C": torch.eye(rank), "B": torch.zeros(d_out, rank)}
