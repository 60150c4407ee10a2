"""LoRA (Hu et al., 2022): ΔW = s B A."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fedgram.adapters.base import Adapter
from fedgram.state import Layer

__all__ = ["LoraAdapter"]


class LoraAdapter(Adapter):
    """ΔW = s B A with ``A: (r, d_in)`` and ``B: (d_out, r)``, both trained.

    As in PEFT, A starts uniform in ±1/√d_in (Kaiming with a = √5) and B at zero, so that the pretrained function is
    unchanged at the start.

    Args:
        base: the layer to adapt.
        rank: r.
        scale: s.
        generator: draws A.
    """

    def __init__(self, base: nn.Module, rank: int, scale: float, generator: torch.Generator) -> None:
        super().__init__(base, rank, scale)
        bound = self.d_in**-0.5
        self._start = torch.empty(rank, self.d_in).uniform_(-bound, bound, generator=generator)

    def initial(self) -> Layer:
        return {"A": self._start.clone(), "B": torch.zeros(self.d_out, self.rank)}

    def factors(self) -> tuple[Float[Tensor, "C r d_in"], Float[Tensor, "C r d_out"]]:
        return self.clients["A"], self.clients["B"].mT
