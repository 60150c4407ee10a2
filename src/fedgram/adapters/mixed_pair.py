"""A common pair of low-rank factors and a client's own, mixed: ΔW = s ((1 - α) B A + α U L)."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fedgram.adapters.base import Adapter
from fedgram.state import Layer

__all__ = ["MixedPairAdapter"]


class MixedPairAdapter(Adapter):
    """ΔW = s ((1 - α) B A + α U L), and s B A for a client that has no pair of its own.

    ``A: (r, d_in)`` and ``B: (d_out, r)``, which all clients share; ``L: (r, d_in)`` and ``U: (d_out, r)``, a client's.

    Args:
        base: the layer to adapt.
        rank: r.
        scale: s.
        start: A and B that the server starts with.
        mix: α, the weight of a client's own pair.
    """

    def __init__(self, base: nn.Module, rank: int, scale: float, start: Layer, mix: float) -> None:
        super().__init__(base, rank, scale, start)
        self.mix = mix

    def expand(self, tensors: Layer) -> tuple[Float[Tensor, "C 2r d_in"], Float[Tensor, "C 2r d_out"]]:
        if "U" not in tensors:
            return tensors["A"], tensors["B"].mT
        up = torch.cat([(1 - self.mix) * tensors["B"], self.mix * tensors["U"]], dim=2).mT
        return torch.cat([tensors["A"], tensors["L"]], dim=1), up
