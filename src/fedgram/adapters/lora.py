"""LoRA (Hu et al., 2022): ΔW = s B A."""

import torch
from jaxtyping import Float
from torch import Tensor

from fedgram.adapters.base import Adapter
from fedgram.state import Layer

__all__ = ["LoraAdapter"]


class LoraAdapter(Adapter):
    """ΔW = s B A with ``A: (r, d_in)`` and ``B: (d_out, r)``, both trained.

    As in PEFT, A starts uniform in ±1/√d_in (Kaiming with a = √5) and B at zero, so that the pretrained function is
    unchanged at the start.
    """

    def initial(self, generator: torch.Generator) -> Layer:
        bound = self.d_in**-0.5
        A = torch.empty(self.rank, self.d_in).uniform_(-bound, bound, generator=generator)
        return {"A": A, "B": torch.zeros(self.d_out, self.rank)}

    def factors(self) -> tuple[Float[Tensor, "C r d_in"], Float[Tensor, "C r d_out"]]:
        return self.clients["A"], self.clients["B"].mT
