"""What a server adds to the frozen weights, and how the clients come to know of it.

Symbols: ``residual: (d_out, d_in)`` the sum of all that was added, with the scale s; ``U: (1, m, d_out)``
and ``V: (1, m, d_in)`` the factors of what was added last, s UᵀV.
"""

from collections.abc import Callable, Mapping

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
        """Return the fields that hold what was added: the sum, and the factors of the last where these may travel."""
        names = ("U", "V") if factored else ()
        total = Field("residual", up=False, trained=False, shared=True, increments=names)
        return (total, *(Field(name, down=False, up=False, trained=False, shared=True) for name in names))

    def no_residual(self, linear: nn.Module) -> Layer:
        """Return the fields as they are before anything was added to a layer."""
        d_in, d_out = layer_sizes(linear)
        nothing = {"residual": torch.zeros(d_out, d_in), "U": torch.zeros(1, 0, d_out), "V": torch.zeros(1, 0, d_in)}
        return {field: nothing[field] for field in self.shared_fields}

    def with_residual(self, residual: Tensor, U: Tensor, V: Tensor) -> Layer:
        """Return the fields once s UᵀV has been added, of U and V as they are sent."""
        if self.increments:  # a client computes the sum of what it is sent, and must come to the same bits
            U, V = U.to(residual), V.to(residual)
        found = {"residual": self._added(residual, U, V), "U": U.unsqueeze(0), "V": V.unsqueeze(0)}
        return {field: found[field] for field in self.shared_fields}

    def _added(self, residual: Tensor, U: Tensor, V: Tensor) -> Tensor:
        """Return R + s UᵀV, computed in float64 and rounded once."""
        return (residual + self.scale * (U.double().mT @ V.double())).to(residual)

    def derived(self, held: Layer, sent: Layer) -> Mapping[str, Callable[[], Tensor]]:
        """Return the sum with the newest product added, where its factors were sent."""
        return {"residual": lambda: self._added(held["residual"], sent["U"][0], sent["V"][0])} if "U" in sent else {}

    def next_residual(self, layers: Layers, rows: int) -> Layers:
        """Return the form of layers once U and V of some rows have been added."""

        def added(residual: Tensor) -> Layer:
            d_out, d_in = residual.shape
            return self.with_residual(residual, residual.new_empty(rows, d_out), residual.new_empty(rows, d_in))

        return {name: {**layer, **added(layer["residual"])} for name, layer in layers.items()}
