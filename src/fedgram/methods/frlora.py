"""FRLoRA: rounds add to the weights what their factors have moved (Yan et al., ICLR 2025, OpenReview e0rQRMUhs7).

Symbols: W⁰ = U Σ Vᵀ the pretrained weight; ``A₀: (r, d_in)`` and ``B₀: (d_out, r)`` the factors of its best part of
rank r; Ā and B̄ the means of a round.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fedgram.adapters import Adapter, LoraAdapter
from fedgram.adapters.base import frozen_weight
from fedgram.distributed.uploads import LayerUploads
from fedgram.methods.base import Paper
from fedgram.methods.context import RoundContext
from fedgram.methods.federa import split_evenly
from fedgram.methods.fields import Field
from fedgram.methods.merging import MergingMethod
from fedgram.numerics.linalg import singular_triplets
from fedgram.state import Layer, ServerState

__all__ = ["FRLoRA"]


class FRLoRA(MergingMethod):
    """Every round starts from the principal part of W⁰, and adds its step to the weights (OpenReview e0rQRMUhs7).

    s B₀A₀ is the best rank-r part of W⁰, B₀ = U_r (Σ_r/s)^½ and A₀ = (Σ_r/s)^½ V_rᵀ, and W = W⁰ - s B₀A₀. In every
    round clients train A and B from A₀ and B₀ on; then W ← W + s (B̄Ā - B₀A₀), which leaves the mean model as it is when
    the factors go back to A₀ and B₀. A round's step has a rank of up to 2r, and the rank of their sum grows.

    Clients make A₀ and B₀ themselves, as they have W⁰, and are sent the last Ā and B̄. Means are weighted as
    `trainer.client_weights` says; the published code has all weights equal. It also holds A at A₀, unlike the paper
    (see freeze_A), and goes on with an optimizer's moments of factors that were reset; here `optimizer.keep_state`
    says, and is off by default.

    Args:
        freeze_A: train B alone, as the published code does: then s (B̄ - B₀) A₀ is exact, but of rank r over all rounds.
        common: the settings of `Method`: rank, alpha, target_modules, head.
    """

    paper = Paper("Yan et al.", 2025, "ICLR 2025", "")
    travels = "A and B up; the last means of A and B down"
    variants = {"FRLoRA": {}, "FRLoRA-freeze_A": {"freeze_A": True}}  # noqa: RUF012

    def __init__(self, *, freeze_A: bool = False, **common: Any) -> None:
        super().__init__(**common)
        self.freeze_A = freeze_A
        factors = (Field("A", down=False, fresh=True), Field("B", down=False, fresh=True))
        self.fields = (*factors, *MergingMethod.fields[2:], *_held("A0", "B0"))
        if freeze_A:
            frozen_A = Field("A", down=False, up=False, trained=False)
            steps = Field("steps", up=False, trained=False, shared=True)
            self.fields = (frozen_A, factors[1], *_held("residual", "A0", "B0"), steps)

    @property
    def name(self) -> str:
        return super().name + ("-freeze_A" if self.freeze_A else "")

    def adapter(self, linear: nn.Module, generator: torch.Generator) -> Adapter:
        left, singular, right = singular_triplets(frozen_weight(linear), self.rank)
        B, A = (factor.float() for factor in split_evenly(left, singular / self.scale, right))
        start = self.with_nothing_merged({"A": A, "B": B}) | {"A0": A, "B0": B, "steps": torch.zeros_like(B)}
        named = {field.name: start[field.name] for field in self.fields}
        return LoraAdapter(linear, self.rank, self.scale, named, preserve_start=True)

    def changes(self, number: int) -> frozenset[str]:
        return super().changes(number) | {"residual"}

    def replaced(self, layer: Layer) -> Tensor:
        return layer["B0"].double() @ layer["A0"].double()

    def derived(self, held: Layer, sent: Layer) -> Mapping[str, Callable[[], Tensor]]:
        """Return the sum of all steps; where A is held, all of them have the same A₀."""
        if "steps" in sent:
            return {"residual": lambda: self._sum(held["A0"], sent["steps"])}
        return super().derived(held, sent)

    def _sum(self, A0: Tensor, steps: Tensor) -> Tensor:
        """Return s Σ (B̄ - B₀) A₀, computed in float64 and rounded once."""
        return (self.scale * (steps.double() @ A0.double())).to(A0)

    def aggregate_layer(self, layer: Layer, sent: LayerUploads, ctx: RoundContext) -> Layer:
        means = {field: sent.mean(field).to(layer[field]) for field in self.trained_fields}
        return self._next(layer, layer | means)

    def next_form(self, server: ServerState, ctx: RoundContext) -> ServerState:
        adapters = {name: self._next(layer, layer) for name, layer in server.adapter.items()}
        return server.with_adapter(adapters)

    def _next(self, layer: Layer, means: Layer) -> Layer:
        """Return a layer with the round's step in its residual, and its factors where they started."""
        if not self.freeze_A:
            return {**layer, **self.add(layer, means["A"], means["B"])}
        steps = (layer["steps"].double() + means["B"].double() - layer["B0"].double()).to(layer["B0"])
        return {**layer, "residual": self._sum(layer["A0"], steps), "steps": steps}


def _held(*names: str) -> tuple[Field, ...]:
    """Return fields that all clients hold and that do not travel."""
    return tuple(Field(name, down=False, up=False, trained=False, shared=True) for name in names)
