"""FRLoRA: rounds add to the weights what their factors have moved (Yan et al., ICLR 2025, OpenReview e0rQRMUhs7).

Symbols: W⁰ = U Σ Vᵀ the pretrained weight; ``A₀: (r, d_in)`` and ``B₀: (d_out, r)`` the factors of its best part of
rank r; Ā and B̄ the means of a round.
"""

from typing import Any

import torch
from torch import nn

from fedgram.adapters import Adapter, LoraAdapter
from fedgram.adapters.base import frozen_weight
from fedgram.linalg import singular_triplets
from fedgram.methods.base import Paper, RoundInfo
from fedgram.methods.federa import split_evenly
from fedgram.methods.fields import Field
from fedgram.methods.merging import MergingMethod
from fedgram.state import Layer, Layers, State
from fedgram.uploads import Uploads, average

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
        start = (Field(f, down=False, up=False, trained=False, shared=True) for f in ("A0", "B0"))
        self.fields = (*MergingMethod.fields, *start)
        if freeze_A:
            self.fields = (Field("A", down=False, up=False, trained=False), *self.fields[1:])

    @property
    def name(self) -> str:
        return super().name + ("-freeze_A" if self.freeze_A else "")

    def adapter(self, linear: nn.Module, generator: torch.Generator) -> Adapter:
        left, singular, right = singular_triplets(frozen_weight(linear), self.rank)
        B, A = (factor.float() for factor in split_evenly(left, singular / self.scale, right))
        start = self.with_nothing_merged({"A": A, "B": B}) | {"A0": A, "B0": B}
        return LoraAdapter(linear, self.rank, self.scale, start, preserve_start=True)

    def download(self, layers: Layers, client: int, info: RoundInfo) -> Layers:
        """Return what the client missed of the rounds so far."""
        missed = self.missed_merges(client, info)
        return {name: self._missed(layer, missed) for name, layer in layers.items()}

    def _missed(self, layer: Layer, missed: int) -> Layer:
        if self.freeze_A:  # all steps have the same A₀: the sum of B̄ - B₀ over the rounds is enough
            return {"B": layer["merged_B"]} if missed else {}
        return self.catch_up(layer, missed, present=False)

    def aggregate(self, layers: Layers, uploads: Uploads, info: RoundInfo) -> Layers:
        means = average(layers, uploads, self.trained_fields)
        return {name: self._next(layer, means[name]) for name, layer in layers.items()}

    def next_form(self, server: State, info: RoundInfo) -> State:
        adapters = {name: self._next(layer, layer) for name, layer in server["adapter"].items()}
        return {**server, "adapter": adapters}

    def _next(self, layer: Layer, means: Layer) -> Layer:
        """Return a layer with the round's step in its residual, and its factors where they started."""
        A0, B0 = layer["A0"], layer["B0"]
        added = self.add(layer, means["A"], means["B"], start=B0.double() @ A0.double())
        if self.freeze_A:
            total = layer["merged_B"].double() + means["B"].double() - B0.double()
            added |= {"merged_A": layer["merged_A"], "merged_B": total.to(B0)}
        return {**layer, **added, "A": A0, "B": B0}
