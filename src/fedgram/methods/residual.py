"""What a server adds to the frozen weights, and how the clients come to know of it.

Symbols: ``residual: (d_out, d_in)`` the sum of all that was added, with the scale s; ``U: (m, d_out)`` and
``V: (m, d_in)`` the factors of what was added last, s UᵀV.
"""

import torch
from torch import Tensor, nn

from fedgram.adapters.base import layer_sizes
from fedgram.methods.fields import Field
from fedgram.methods.lora import LoRAMethod
from fedgram.state import Layer, Layers

__all__ = ["ResidualMethod"]


class ResidualMethod(LoRAMethod):
    """A method with LoRA's adapter whose server adds to the frozen weights: W⁰ ← W⁰ + s UᵀV.

    The sum is kept in float32 beside weights of a lower precision, which would swallow it.
    """

    @staticmethod
    def residual_fields(factored: bool) -> tuple[Field, ...]:
        """Return the fields that hold what was added: the sum alone, or also the factors of the last."""
        names = ("residual", "U", "V") if factored else ("residual",)
        return tuple(Field(name, up=False, trained=False, shared=True) for name in names)

    def no_residual(self, linear: nn.Module) -> Layer:
        """Return the fields as they are before anything was added to a layer."""
        d_in, d_out = layer_sizes(linear)
        nothing = {"residual": torch.zeros(d_out, d_in), "U": torch.zeros(0, d_out), "V": torch.zeros(0, d_in)}
        return {field: nothing[field] for field in self.shared_fields}

    def with_residual(self, residual: Tensor, U: Tensor, V: Tensor) -> Layer:
        """Return the fields once s UᵀV has been added: computed in float64, and rounded once."""
        total = residual + self.scale * (U.double().mT @ V.double())
        found = {"residual": total, "U": U, "V": V}
        return {field: found[field].to(residual) for field in self.shared_fields}

    def next_residual(self, layers: Layers, rows: int) -> Layers:
        """Return the form of layers once U and V of some rows have been added."""

        def added(residual: Tensor) -> Layer:
            d_out, d_in = residual.shape
            return self.with_residual(residual, residual.new_empty(rows, d_out), residual.new_empty(rows, d_in))

        return {name: {**layer, **added(layer["residual"])} for name, layer in layers.items()}

    @staticmethod
    def news(layer: Layer, up_to_date: bool) -> tuple[str, ...]:
        """Return the fields that bring a client to the server's weights.

        They are the factors of the last for a client that has all before it, and the sum for one that missed a round,
        or where it is fewer numbers.
        """
        fewer = up_to_date and "U" in layer and layer["U"].numel() + layer["V"].numel() < layer["residual"].numel()
        return ("U", "V") if fewer else ("residual",)
