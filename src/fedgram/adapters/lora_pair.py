"""Two pairs of low-rank factors on one layer: ΔW = s (β B A + γ U L)."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fedgram.adapters.base import Adapter
from fedgram.adapters.lora import lora_start
from fedgram.state import Layer

__all__ = ["LoraPairAdapter", "lora_pair_start"]


class LoraPairAdapter(Adapter):
    """ΔW = s (β B A + γ U L): LoRA's pair and a second one; s B A alone where the second is not loaded.

    ``A: (r, d_in)`` and ``B: (d_out, r)``, such as all clients share; ``L: (r', d_in)`` and ``U: (d_out, r')``, such as
    each has for itself. The two are one pair of rank r + r' to the layer: [β B, γ U] and [A; L].

    Args:
        base: the layer to adapt.
        rank: r.
        scale: s.
        start: the tensors that the server starts with: A and B, and L and U where it has them.
        weights: (β, γ).
    """

    def __init__(
        self, base: nn.Module, rank: int, scale: float, start: Layer, weights: tuple[float, float] = (1.0, 1.0)
    ) -> None:
        super().__init__(base, rank, scale, start)
        self.weights = weights

    def expand(self, tensors: Layer) -> tuple[Float[Tensor, "C p d_in"], Float[Tensor, "C p d_out"]]:
        if "U" not in tensors:
            return tensors["A"], tensors["B"].mT
        first, second = self.weights
        up = torch.cat([first * tensors["B"], second * tensors["U"]], dim=2).mT
        return torch.cat([tensors["A"], tensors["L"]], dim=1), up


def lora_pair_start(linear: nn.Module, rank: int, second_rank: int, generator: torch.Generator) -> Layer:
    """Return the start of two pairs, each as in `lora_start`: A and L random, B and U zero."""
    second = lora_start(linear, second_rank, generator)
    return {**lora_start(linear, rank, generator), "L": second["A"], "U": second["B"]}
