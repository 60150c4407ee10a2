"""SLoRA: LoRA starts from what sparse fine-tuning has found (Babakniya et al., SLoRA, 2023).

Symbols: ``M``: (d_out, d_in), a fixed random mask with nnz ones; ``Δ``: what is trained there, ``delta: (nnz,)``.
"""

from dataclasses import replace
from operator import itemgetter
from typing import Any

import torch
from torch import nn

from fedgram.adapters import Adapter, SparseLoraAdapter, draw_positions, lora_start
from fedgram.adapters.base import layer_sizes
from fedgram.adapters.sparse import scatter
from fedgram.distributed.uploads import Uploads, average
from fedgram.errors import ConfigurationError
from fedgram.methods.base import Diagnostics, Paper, Phase, generator_of
from fedgram.methods.context import ClientContext, RoundContext
from fedgram.methods.federa import split_evenly
from fedgram.methods.fields import Field, select
from fedgram.methods.lora import LoRAMethod
from fedgram.numerics.linalg import product_norm, ratio, relative_change, singular_triplets
from fedgram.settings import check
from fedgram.state import Layer, Layers, ModelState, Payload

__all__ = ["SLoRA"]


class SLoRA(LoRAMethod):
    """Sparse fine-tuning first, then LoRA from the best rank-r part of what it has found (arXiv 2308.06522).

    Stage 1: W⁰ + M ⊙ Δ, and the server averages Δ; M comes from the seed, one for all clients and rounds, so that only
    nnz values travel. At its end M ⊙ Δ ≈ U_r Σ_r V_rᵀ, and the base goes back to W⁰: what the rank leaves out is lost,
    and the loss may jump. Stage 2: LoRA, W⁰ + s B A with A and B averaged, from B = U_r (Σ_r/s)^½ and
    A = (Σ_r/s)^½ V_rᵀ. A random sparse matrix is nearly noise of full rank: of its energy at the switch r singular
    values may hold little, which is logged as ``captured_energy``.
    A reconstruction: there is no published code, and the paper's abstract alone was at hand. Where masks are drawn, how
    singular values are split between A and B, and that the rest is dropped are choices made here.

    Args:
        sparse_rounds: how many rounds stage 1 has; the last of them ends with the switch. Give it about half of the
            run's.
        density: the share of the weights that stage 1 trains; the paper has about 0.01.
        common: the settings of `Method`: rank, alpha, target_modules, head.
    """

    paper = Paper("Babakniya et al.", 2023, "FL@FM-NeurIPS", "2308.06522")
    travels = "first a sparse ΔW, then A and B, both ways"
    fields = (Field("delta"), Field("A"), Field("B"))

    def __init__(self, *, sparse_rounds: int = 5, density: float = 0.01, **common: Any) -> None:
        super().__init__(**common)
        check("method.sparse_rounds", sparse_rounds, at_least=1, hint="without a sparse stage it is FedIT")
        if not 0 < density <= 1:
            raise ConfigurationError(f"method.density must be a share of the weights in (0, 1], got {density}")
        self.sparse_rounds = sparse_rounds
        self.density = density

    def active(self, number: int) -> tuple[str, ...]:
        """Return the fields that a round trains: those of its stage."""
        return ("delta",) if number <= self.sparse_rounds else ("A", "B")

    def adapter(self, linear: nn.Module, generator: torch.Generator) -> Adapter:
        d_in, d_out = layer_sizes(linear)
        positions = draw_positions(d_out * d_in, self.density, generator)  # first, as the server draws them again
        start = {"delta": torch.zeros(len(positions)), **lora_start(linear, self.rank, generator)}
        return SparseLoraAdapter(linear, self.rank, self.scale, start, positions)

    def phases(self, number: int) -> tuple[Phase, ...]:
        fields = self.active(number)
        return (Phase(frozenset(fields), name="-".join(fields)),)

    def changes(self, number: int) -> frozenset[str]:
        """Return the fields of the round's stage, but LoRA's factors at the switch, which they come out of."""
        return frozenset("AB") if number == self.sparse_rounds else super().changes(number)

    def redrawn(self, number: int) -> frozenset[str]:
        """Return Δ at the switch, when all of it becomes zero."""
        return frozenset({"delta"}) if number == self.sparse_rounds else frozenset()

    def redraw(self, name: str, layer: Layer, number: int, seed: int) -> Layer:
        return {"delta": torch.zeros_like(layer["delta"])}

    def start(self, held: ModelState, payload: Payload, ctx: ClientContext) -> ModelState:
        """Return the tensors of the round's stage alone: those of the other add nothing to W⁰."""
        return replace(held, adapter=select(held.adapter, self.active(ctx.round.number)))

    def aggregate(self, layers: Layers, uploads: Uploads, ctx: RoundContext) -> Layers:
        after = average(layers, uploads, self.active(ctx.number))
        if ctx.number != self.sparse_rounds:
            return after
        return {name: self._switched(layer, generator_of(name, ctx.seed)) for name, layer in after.items()}

    def _switched(self, layer: Layer, generator: torch.Generator) -> Layer:
        """Return LoRA's start, s B A the best rank-r part of M ⊙ Δ.

        Where M ⊙ Δ has a lower rank, the rows of A that are left over stay random, beside columns of zeros in B.
        """
        A, B, delta = layer["A"], layer["B"], layer["delta"]
        shape = B.shape[0], A.shape[1]
        positions = draw_positions(shape[0] * shape[1], self.density, generator).to(delta.device)
        left, singular, right = singular_triplets(scatter(delta.double(), positions, shape), self.rank)
        new_B, new_A = split_evenly(left, singular / self.scale, right)
        return {
            "delta": torch.zeros_like(delta),
            "A": torch.where(singular[:, None] > 0, new_A, A.double()).to(A),
            "B": new_B.to(B),
        }

    def diagnose(self, before: Layers, after: Layers, uploads: Uploads) -> Diagnostics:
        """Return what the switch keeps of the mean update; in stage 1 its drift, and in stage 2 LoRA's figures."""
        if any("delta" not in uploads.fields(name) for name in before):
            return super().diagnose(before, after, uploads)
        return {name: self._figures(name, layer, after[name], uploads) for name, layer in before.items()}

    def _figures(self, name: str, before: Layer, after: Layer, uploads: Uploads) -> dict[str, float]:
        mean = uploads.mean(name, itemgetter("delta"), before["delta"])
        if after["delta"].any():
            return {"aggregation_error": float(relative_change(mean, after["delta"]))}
        kept = self.scale * product_norm(after["B"], after["A"])
        captured = ratio(kept, torch.linalg.vector_norm(mean)).square()
        missed = (1 - captured).clamp(min=0).sqrt()  # the rest is orthogonal to the best rank-r part
        return {"aggregation_error": float(missed), "captured_energy": float(captured)}
