"""Low-rank factors of low-rank factors: ΔW = s (B + a Bd Bu) (A + a Ad Au)."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fedgram.adapters.base import Adapter
from fedgram.adapters.lora import random_rows
from fedgram.state import Layer

__all__ = ["NestedLoraAdapter", "nested_start", "outer_factors"]


class NestedLoraAdapter(Adapter):
    """ΔW = s (B + a Bd Bu) (A + a Ad Au), where all clients share ``A: (r, d_in)`` and ``B: (d_out, r)``.

    A client's own are ``Ad: (r, r')``, ``Au: (r', d_in)``, ``Bd: (d_out, r')`` and ``Bu: (r', r)``.

    Args:
        base: the layer to adapt.
        rank: r.
        scale: s.
        start: the tensors that the server starts with.
        inner_scale: a.
    """

    def __init__(self, base: nn.Module, rank: int, scale: float, start: Layer, inner_scale: float) -> None:
        super().__init__(base, rank, scale, start)
        self.inner_scale = inner_scale

    def expand(self, tensors: Layer) -> tuple[Float[Tensor, "C r d_in"], Float[Tensor, "C r d_out"]]:
        own = {**self.shared, **tensors}
        A, B = outer_factors(own, self.inner_scale)
        return A, B.mT


def outer_factors(own: Layer, inner_scale: float) -> tuple[Float[Tensor, "... r d_in"], Float[Tensor, "... d_out r"]]:
    """Return A + a Ad Au and B + a Bd Bu, also of tensors with a leading client axis."""
    return own["A"] + inner_scale * own["Ad"] @ own["Au"], own["B"] + inner_scale * own["Bd"] @ own["Bu"]


def nested_start(A: Tensor, B: Tensor, inner_rank: int, generator: torch.Generator) -> Layer:
    """Return Ad, Au, Bd and Bu, float32, whose products are zero: Au and Bu are random, Ad and Bd zero.

    Args:
        A: (r, d_in), of which the shape matters alone.
        B: (d_out, r), likewise.
        inner_rank: r'.
        generator: draws Au and Bu.
    """
    (r, d_in), d_out = A.shape, B.shape[0]
    Au, Bu = random_rows(inner_rank, d_in, generator), random_rows(inner_rank, r, generator)
    return {"Ad": torch.zeros(r, inner_rank), "Au": Au, "Bd": torch.zeros(d_out, inner_rank), "Bu": Bu}
