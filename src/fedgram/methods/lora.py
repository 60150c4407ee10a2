"""What the methods with LoRA's adapter have in common."""

import torch
from torch import nn

from fedgram.adapters import Adapter, LoraAdapter, lora_start
from fedgram.linalg import ratio, relative_change, relative_product_error
from fedgram.methods.base import Diagnostics, Field, Method
from fedgram.state import Layer, Layers
from fedgram.uploads import Uploads

__all__ = ["LoRAMethod"]


class LoRAMethod(Method):
    """A method with ΔW = s B A, ``A: (r, d_in)`` and ``B: (d_out, r)``, which start as in PEFT: A random, B zero."""

    fields: tuple[Field, ...] = (Field("A"), Field("B"))

    def adapter(self, linear: nn.Module, generator: torch.Generator) -> Adapter:
        return LoraAdapter(linear, self.rank, self.scale, lora_start(linear, self.rank, generator))

    def product(self, before: Layer, after: Layer) -> tuple[torch.Tensor, torch.Tensor]:
        """Return U and V, of which U V is what stands for Σ wₙ BₙAₙ after an aggregation, without the scale."""
        return after["B"], after["A"]

    def diagnose(self, before: Layers, after: Layers, uploads: Uploads) -> Diagnostics:
        """Return ‖U V - Σ wₙBₙAₙ‖ relative to Σ wₙBₙAₙ and to the mean update, Σ wₙBₙAₙ - BA, and the drift of A."""
        figures: Diagnostics = {}
        for name, layer in before.items():
            Bs, As = (self._all(uploads, name, field, layer) for field in ("B", "A"))
            missed, moved = (
                relative_product_error(*factors, Bs, As, uploads.weights)
                for factors in (self.product(layer, after[name]), (layer["B"], layer["A"]))
            )
            figures[name] = {
                "aggregation_error": float(missed),
                "update_error": float(ratio(missed, moved)),
                "drift": float(relative_change(layer["A"], after[name]["A"])),
            }
        return figures

    def _all(self, uploads: Uploads, name: str, field: str, layer: Layer) -> torch.Tensor:
        """Return a field of all clients: what they sent, or what they hold in common."""
        if any(f.name == field and f.up for f in self.fields):
            return uploads.stack(name, field, layer[field])
        return layer[field].expand(len(uploads.clients), *layer[field].shape)
