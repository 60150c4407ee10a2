"""LoRA (Hu et al., 2022): ΔW = s B A."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fedgram.adapters.base import Adapter, layer_sizes
from fedgram.state import Layer

__all__ = ["LoraAdapter", "draw_rows", "lora_start"]


class LoraAdapter(Adapter):
    """ΔW = s g B A with ``A: (r, d_in)`` and ``B: (d_out, r)``, and ``g: ()`` a client's own factor; 1 without.

    Methods set g where a client scales its product in its own way: by its rank, or to make up for what it left out.
    """

    def expand(self, tensors: Layer) -> tuple[Float[Tensor, "C r d_in"], Float[Tensor, "C r d_out"]]:
        up = tensors["B"].mT
        return tensors["A"], up * tensors["g"][:, None, None] if "g" in tensors else up


def lora_start(linear: nn.Module, rank: int, generator: torch.Generator) -> Layer:
    """Return LoRA's usual start, as PEFT has it: A uniform in ±1/√d_in (Kaiming with a = √5), and B zero.

    Args:
        linear: the layer to adapt.
        rank: r.
        generator: draws A.

    Returns:
        ``A: (r, d_in)`` and ``B: (d_out, r)``, float32; ΔW is zero.
    """
    d_in, d_out = layer_sizes(linear)
    return {"A": draw_rows(rank, d_in, generator), "B": torch.zeros(d_out, rank)}


def draw_rows(rank: int, d_in: int, generator: torch.Generator) -> Float[Tensor, "r d_in"]:
    """Return LoRA's usual first A, float32: uniform in ±1/√d_in."""
    bound = d_in**-0.5
    return torch.empty(rank, d_in).uniform_(-bound, bound, generator=generator)
