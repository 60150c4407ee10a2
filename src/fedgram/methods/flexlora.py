"""FlexLoRA: the mean product is decomposed anew for every rank (Bai et al., NeurIPS 2024, arXiv 2402.11505).

Symbols: ``T = Σ wₙ sₙ BₙAₙ = U Σ Vᵀ`` the mean update of one layer; ``sₙ`` the scale of client n, s that of the server.
"""

from dataclasses import replace
from typing import Any, Literal

import torch
from torch import nn

from fedgram.adapters import Adapter
from fedgram.distributed.uploads import LayerUploads
from fedgram.errors import require_choice
from fedgram.methods.base import Paper
from fedgram.methods.context import ClientContext, RoundContext
from fedgram.methods.fields import Field, fill_up
from fedgram.methods.lora import LoRAMethod
from fedgram.numerics.linalg import mean_product, truncated_svd
from fedgram.state import Layer, Layers, ModelState, Payload, ServerState

__all__ = ["FlexLoRA"]

Scaling = Literal["own", "global"]


class FlexLoRA(LoRAMethod):
    """The server cuts the mean update to each client's rank by a singular value decomposition (arXiv 2402.11505).

    T = Σ wₙ sₙ BₙAₙ = U Σ Vᵀ, and a client of rank r' is sent A = V_r'ᵀ, whose rows are orthonormal, and
    B = U_r' Σ_r' / s', which holds all of Σ: the best approximation of T of its rank, by its own scale s'. Where T has
    a lower rank than r, the rows of A that are left over stay what they were, beside columns of zeros in B.

    The published aggregation has alpha = 16 written into it, and nothing in it gives clients ranks of their own, so
    that what it calls homogeneous is FedIT; here T is formed and cut with the scales that clients train with.

    Args:
        scaling: of clients with ranks rₙ of their own. "own": sₙ = alpha / rₙ, as in the paper, so that a lower rank
            counts for more; "global": alpha / rank for all.
        common: the settings of `Method`: rank, alpha, target_modules, head, client_ranks.
    """

    paper = Paper("Bai et al.", 2024, "NeurIPS 2024", "2402.11505")
    heterogeneous = True
    travels = "A and B both ways"

    def __init__(self, *, scaling: Scaling = "own", **common: Any) -> None:
        super().__init__(**common)
        require_choice("method.scaling", scaling, Scaling)
        self.scaling = scaling
        if self._scales:
            self.fields = (*LoRAMethod.fields, Field("g", down=False, up=False, trained=False))

    @property
    def name(self) -> str:
        return super().name + ("" if self.scaling == "own" else "-global")

    @property
    def _scales(self) -> bool:
        """Whether clients have scales of their own: g = sₙ / s in their adapters."""
        return self.scaling == "own" and self.client_ranks is not None

    def _relative_scale(self, ctx: ClientContext) -> float:
        """Return sₙ / s."""
        return self.rank / ctx.rank if self._scales else 1.0

    def adapter(self, linear: nn.Module, generator: torch.Generator) -> Adapter:
        adapter = super().adapter(linear, generator)
        if self._scales:
            adapter.start["g"] = torch.ones(())
        return adapter

    def download(self, server: ServerState, ctx: ClientContext) -> Payload:
        """Return A, and B by the client's own scale."""
        payload = super().download(server, ctx)
        return replace(payload, adapter=_rescaled(payload.adapter, 1 / self._relative_scale(ctx)))

    def start(self, held: ModelState, payload: Payload, ctx: ClientContext) -> ModelState:
        own = super().start(held, payload, ctx)
        if not self._scales:
            return own
        g = self._relative_scale(ctx)
        adapters = {n: {**layer, "g": torch.full_like(layer["g"], g)} for n, layer in own.adapter.items()}
        return replace(own, adapter=adapters)

    def receive(self, server: ServerState, payload: Payload, ctx: ClientContext) -> Payload:
        """Return A, and B by the server's scale, filled up with zeros: the paper's mean is of the clients' products."""
        own = fill_up(payload.adapter, self.fields, self.rank)
        return replace(payload, adapter=_rescaled(own, self._relative_scale(ctx)))

    def aggregate_layer(self, layer: Layer, sent: LayerUploads, ctx: RoundContext) -> Layer:
        """Return the factors of the best rank-r approximation of T / s, the singular values in B."""
        product = mean_product(sent.stack("B"), sent.stack("A"), sent.weights)
        left, singular, right = truncated_svd(*product, self.rank)
        A, B = layer["A"].clone(), torch.zeros_like(layer["B"])
        A[: len(right)] = right.to(A)
        B[:, : len(right)] = (left * singular).to(B)
        return {"A": A, "B": B}


def _rescaled(layers: Layers, factor: float) -> Layers:
    """Return the layers with B times a factor."""
    return layers if factor == 1 else {n: {**layer, "B": layer["B"] * factor} for n, layer in layers.items()}
