"""What the methods with LoRA's adapter have in common."""

from collections.abc import Collection, Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fedgram.adapters import Adapter, LoraAdapter, lora_start
from fedgram.distributed.uploads import Uploads, average
from fedgram.methods.base import Diagnostics, Method
from fedgram.methods.context import RoundContext
from fedgram.methods.fields import CutUploads, Field, cut
from fedgram.numerics.linalg import Product, mean_product, product_distance, product_norm, ratio, relative_change
from fedgram.state import Layer, Layers, send

__all__ = ["LoRAMethod"]


class LoRAMethod(Method):
    """A method with ΔW = s B A, ``A: (r, d_in)`` and ``B: (d_out, r)``, which start as in PEFT: A random, B zero."""

    fields: tuple[Field, ...] = (Field("A", rank_axis=0), Field("B", rank_axis=1))

    def adapter(self, linear: nn.Module, generator: torch.Generator) -> Adapter:
        return LoraAdapter(linear, self.rank, self.scale, lora_start(linear, self.rank, generator))

    def average_changes(self, layers: Layers, uploads: Uploads, fields: Collection[str]) -> Layers:
        """Return the weighted mean of the clients' factors, in which what a client lacks counts as the server's.

        Where clients have ranks of their own it is computed as A + Σ wₙ (Aₙ - A), so that ranks that nobody of the
        cohort has are bit by bit what they were.
        """
        if self.client_ranks is None:
            return average(layers, uploads, fields)
        return _with_changes(layers, uploads, {field: torch.ones(()) for field in fields})

    def average_over_holders(
        self, layers: Layers, uploads: Uploads, fields: Collection[str], ctx: RoundContext
    ) -> Layers:
        """Return the weighted mean of each rank over those clients of the cohort that have it.

        A + Σ wₙ (Aₙ - A) / Σ wₙ, both sums over the holders of a row; a rank that nobody has stays what it was.
        """
        if self.client_ranks is None:
            return average(layers, uploads, fields)
        ranks = torch.tensor([self.dealt_rank(client, ctx) for client in uploads.clients])
        held = uploads.weights @ (ranks[:, None] > torch.arange(self.rank)).double()
        factors = {f.name: _along(held.reciprocal(), f.rank_axis) for f in self.fields if f.name in fields}
        return _with_changes(layers, uploads, factors)

    def held_by_cohort(self, layers: Layers, uploads: Uploads, ctx: RoundContext) -> tuple[Layers, Uploads]:
        """Return the server's tensors and the uploads without those ranks that nobody of the cohort has."""
        if self.client_ranks is None:
            return layers, uploads
        largest = max(self.dealt_rank(client, ctx) for client in uploads.clients)
        return cut(layers, self.fields, largest), CutUploads(uploads, layers, self.fields, largest)

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


def _with_changes(layers: Layers, uploads: Uploads, factors: Mapping[str, Tensor]) -> Layers:
    """Return x + c Σ wₙ (xₙ - x) for the fields that have a factor c, and x bit by bit where no client moved it."""

    def moved(name: str, field: str, x: Tensor) -> Tensor:
        if field not in factors:
            return x
        old = x.double()
        change = uploads.mean(name, lambda sent: sent[field].double() - old, x)
        return torch.where(change == 0, old, old + send(factors[field], change.device) * change).to(x.dtype)

    return {name: {field: moved(name, field, x) for field, x in layer.items()} for name, layer in layers.items()}


def _along(values: Float[Tensor, " r"], axis: int | None) -> Tensor:
    """Return one number for each rank in the form that multiplies a factor whose rank is along an axis."""
    return values[:, None] if axis == 0 else values
