"""What the methods have in common that add products of LoRA's factors to the frozen weights, round after round.

Symbols: ``A: (r, d_in)`` and ``B: (d_out, r)``, q = r (d_in + d_out) numbers; ``residual: (d_out, d_in)`` the sum of
all that was added, with the scale; ``merged_A: (m, r, d_in)`` and ``merged_B: (m, d_out, r)`` the m newest products.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from fedgram.methods.fields import Field
from fedgram.methods.lora import LoRAMethod
from fedgram.state import Layer

__all__ = ["MergingMethod"]


class MergingMethod(LoRAMethod):
    """A method whose server adds a product of factors to the frozen weights in every round, or in some.

    The sum is kept in float32 beside weights of a lower precision, which would swallow it. A client is sent the factors
    of the products that it missed, q numbers each, or the sum of all where that is fewer numbers. So the server keeps
    the newest products, as many as may be fewer numbers than that.

    Attributes:
        merge_every: rounds from one product to the next.
    """

    fields: tuple[Field, ...] = (
        Field("A"),
        Field("B"),
        Field("residual", up=False, trained=False, shared=True, increments=("merged_A", "merged_B")),
        Field("merged_A", down=False, up=False, trained=False, shared=True),
        Field("merged_B", down=False, up=False, trained=False, shared=True),
    )
    merge_every: int = 1

    def with_nothing_merged(self, start: Layer) -> Layer:
        """Return the start of a layer with no residual, and no product."""
        A, B = start["A"], start["B"]
        none = {"merged_A": A.new_zeros(0, *A.shape), "merged_B": B.new_zeros(0, *B.shape)}
        return {**start, "residual": A.new_zeros(B.shape[0], A.shape[1]), **none}

    def changes(self, number: int) -> frozenset[str]:
        """Return the factors, and the residual in the rounds that add a product to it."""
        return super().changes(number) - ({"residual"} if number % self.merge_every else frozenset())

    def derived(self, held: Layer, sent: Layer) -> Mapping[str, Callable[[], Tensor]]:
        """Return the sum with the products added whose factors were sent, one after the other."""
        return {"residual": lambda: self._caught_up(held, sent)} if "merged_A" in sent else {}

    def _caught_up(self, held: Layer, sent: Layer) -> Tensor:
        for A, B in zip(sent["merged_A"], sent["merged_B"], strict=True):
            held = {**held, "residual": self._added(held, A, B)}
        return held["residual"]

    def replaced(self, layer: Layer) -> Tensor | None:
        """Return the product, float64, that every added one replaces as it was a part of the weights; None by default.

        Args:
            layer: the server's, or what a client holds of it.
        """
        return None

    def _added(self, layer: Layer, A: Tensor, B: Tensor) -> Tensor:
        """Return R + s (B A - start), computed in float64 and rounded once."""
        start, product = self.replaced(layer), B.double() @ A.double()
        return (layer["residual"] + self.scale * (product if start is None else product - start)).to(layer["residual"])

    def add(self, layer: Layer, A: Tensor, B: Tensor) -> Layer:
        """Return the fields of a layer once a product is in the residual.

        Args:
            layer: the server's.
            A: as it is sent.
            B: as it is sent.
        """
        most = 1 + layer["residual"].numel() // (A.numel() + B.numel())  # of more, the sum is fewer numbers
        return {
            "residual": self._added(layer, A, B),
            "merged_A": torch.cat([layer["merged_A"], A.unsqueeze(0)])[-most:],
            "merged_B": torch.cat([layer["merged_B"], B.unsqueeze(0)])[-most:],
        }
