"""FedIT: LoRA's A and B, each averaged (Zhang et al., Towards Building the Federated GPT, arXiv 2305.05644)."""

import torch
from torch import nn

from fedgram.adapters import Adapter, LoraAdapter
from fedgram.linalg import relative_change, relative_product_error
from fedgram.methods.base import Diagnostics, Field, Method
from fedgram.state import Layers
from fedgram.uploads import Uploads, average

__all__ = ["FedIT"]


class FedIT(Method):
    """LoRA by federated averaging: the server averages A and B separately (arXiv 2305.05644).

    ΔW = s B A and Ā = Σ wₙ Aₙ, B̄ = Σ wₙ Bₙ. The mean of the products is not the product of the means: B̄ Ā misses
    Σ wₙ (Bₙ - B̄)(Aₙ - Ā), which is logged as ``aggregation_error``.
    """

    fields = (Field("A"), Field("B"))

    def adapter(self, linear: nn.Module, generator: torch.Generator) -> Adapter:
        return LoraAdapter(linear, self.rank, self.scale, generator)

    def aggregate(self, layers: Layers, uploads: Uploads) -> Layers:
        return average(layers, uploads)

    def diagnose(self, before: Layers, after: Layers, uploads: Uploads) -> Diagnostics:
        figures: Diagnostics = {}
        for name, layer in before.items():
            stacks = {field: uploads.stack(name, field, layer[field]) for field in ("A", "B")}
            figures[name] = {
                "aggregation_error": float(
                    relative_product_error(
                        after[name]["B"], after[name]["A"], stacks["B"], stacks["A"], uploads.weights
                    )
                ),
                "drift": float(relative_change(layer["A"], after[name]["A"])),
            }
        return figures
