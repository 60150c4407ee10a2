"""RAVAN's adapter: ΔW = s Σᵢ sᵢ Bᵢ Hᵢ Aᵢ, several small matrices between bases that stay what they are.

Symbols (RAVAN, §3): ``H: (h, r, r)`` and ``s: (h,)`` of the h heads; ``A: (h, r, d_in)`` and ``B: (h, d_out, r)``,
equal on all clients and never sent: they come from the seed.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fedgram.adapters.base import Adapter
from fedgram.state import Layer

__all__ = ["MultiHeadAdapter"]


class MultiHeadAdapter(Adapter):
    """ΔW = s Σᵢ sᵢ Bᵢ Hᵢ Aᵢ, of which Hᵢ and sᵢ are trained; it starts at Hᵢ = 0 and sᵢ = 1.

    Args:
        base: the layer to adapt.
        scale: s.
        A: the heads' bases towards the input, (h, r, d_in).
        B: the heads' bases towards the output, (h, d_out, r).
    """

    def __init__(
        self, base: nn.Module, scale: float, A: Float[Tensor, "h r d_in"], B: Float[Tensor, "h d_out r"]
    ) -> None:
        heads, rank = A.shape[:2]
        super().__init__(base, rank, scale, {"H": torch.zeros(heads, rank, rank), "s": torch.ones(heads)})
        self.A: Tensor
        self.B: Tensor
        self.register_buffer("A", A.float(), persistent=False)
        self.register_buffer("B", B.float(), persistent=False)

    def expand(self, tensors: Layer) -> tuple[Float[Tensor, "C hr d_in"], Float[Tensor, "C hr d_out"]]:
        """Return the heads' sᵢ Hᵢ Aᵢ and Bᵢᵀ, one under the other."""
        scaled = tensors["s"][..., None, None] * tensors["H"]
        down = torch.einsum("chij,hjd->chid", scaled, self.A.to(scaled.dtype)).flatten(1, 2)
        up = self.B.to(scaled.dtype).mT.flatten(0, 1)
        return down, up.expand(len(scaled), *up.shape)
