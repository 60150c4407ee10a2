"""What the methods with LoRA's adapter have in common."""

import torch
from torch import Tensor, nn

from fedgram.adapters import Adapter, LoraAdapter, lora_start
from fedgram.linalg import Product, mean_product, product_distance, product_norm, ratio, relative_change
from fedgram.methods.base import Diagnostics, Method, RoundInfo
from fedgram.methods.fields import Field
from fedgram.state import Layer, Layers, State
from fedgram.uploads import Uploads

__all__ = ["LoRAMethod"]


class LoRAMethod(Method):
    """A method with ΔW = s B A, ``A: (r, d_in)`` and ``B: (d_out, r)``, which start as in PEFT: A random, B zero."""

    fields: tuple[Field, ...] = (Field("A", rank_axis=0), Field("B", rank_axis=1))

    def adapter(self, linear: nn.Module, generator: torch.Generator) -> Adapter:
        return LoraAdapter(linear, self.rank, self.scale, lora_start(linear, self.rank, generator))

    def next_state(self, server: State, adapters: Uploads, heads: Uploads, info: RoundInfo) -> State:
        after = super().next_state(server, adapters, heads, info)
        return self.with_rows_of_nobody(server, after, info)

    def with_rows_of_nobody(self, before: State, after: State, info: RoundInfo) -> State:
        """Return the server's next state, with A's rows of ranks that nobody of the cohort has as they were before.

        Averages leave zeros there, in A and in B, and with both zero no gradient would ever move them. Beside the zeros
        in B any A gives the same ΔW.
        """
        widest = max(self.rank_of(after, client, info) for client in info.cohort)
        if widest == self.rank:
            return after
        old = before["adapter"]
        kept = {name: _with_rows(layer, old[name]["A"], widest) for name, layer in after["adapter"].items()}
        return {**after, "adapter": kept}

    def missed(self, before: Layer, after: Layer, ideal: Product) -> Tensor:
        """Return how far what an aggregation put in the place of Σ wₙ BₙAₙ is from it, without the scale.

        What it added to the frozen weights, by a field ``residual``, is a part of what it put there.
        """
        if after.get("residual") is before.get("residual"):
            return product_distance((after["B"], after["A"]), ideal)
        added = (after["residual"].double() - before["residual"].double()) / self.scale
        return torch.linalg.matrix_norm(after["B"].double() @ after["A"].double() + added - ideal[0] @ ideal[1])

    def diagnose(self, before: Layers, after: Layers, uploads: Uploads) -> Diagnostics:
        """Return what is missed of Σ wₙBₙAₙ, relative to it and to the mean update, Σ wₙBₙAₙ - BA; and A's drift."""
        figures: Diagnostics = {}
        for name, layer in before.items():
            Bs, As = (self.all_clients(uploads, name, field, layer) for field in ("B", "A"))
            ideal = mean_product(Bs, As, uploads.weights)
            missed = self.missed(layer, after[name], ideal)
            figures[name] = {
                "aggregation_error": float(ratio(missed, product_norm(*ideal))),
                "update_error": float(ratio(missed, product_distance(ideal, (layer["B"], layer["A"])))),
                "drift": float(relative_change(layer["A"], after[name]["A"])),
            }
        return figures

    def all_clients(self, uploads: Uploads, name: str, field: str, layer: Layer) -> Tensor:
        """Return a field of all clients: what they sent, or what they hold in common."""
        if field in uploads.fields(name):
            return uploads.stack(name, field, layer[field])
        return layer[field].expand(len(uploads.clients), *layer[field].shape)


def _with_rows(layer: Layer, old_A: Tensor, widest: int) -> Layer:
    """Return a layer with old rows of A beyond a rank, where A and B are both zero."""
    nobody = (layer["A"] == 0).all(dim=1) & (layer["B"] == 0).all(dim=0)
    nobody[:widest] = False
    return {**layer, "A": torch.where(nobody[:, None], old_A, layer["A"])}
