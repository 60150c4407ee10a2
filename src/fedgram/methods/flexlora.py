"""FlexLoRA: the mean product is decomposed anew for every rank (Bai et al., NeurIPS 2024, arXiv 2402.11505).

Symbols: ``T = Σ wₙ sₙ BₙAₙ = U Σ Vᵀ`` the mean update of one layer; ``sₙ`` the scale of client n, s that of the server.
"""

from typing import Any, Literal

import torch
from torch import nn

from fedgram.adapters import Adapter
from fedgram.errors import require_choice
from fedgram.linalg import mean_product, truncated_svd
from fedgram.methods.base import Paper, RoundInfo
from fedgram.methods.fields import Field, fill_up
from fedgram.methods.lora import LoRAMethod
from fedgram.state import Layer, Layers, State
from fedgram.uploads import Uploads

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

    def _relative_scale(self, client: int, info: RoundInfo) -> float:
        """Return sₙ / s."""
        return self.rank / self.rank_of({}, client, info) if self._scales else 1.0

    def adapter(self, linear: nn.Module, generator: torch.Generator) -> Adapter:
        adapter = super().adapter(linear, generator)
        if self._scales:
            adapter.start["g"] = torch.ones(())
        return adapter

    def download(self, layers: Layers, client: int, info: RoundInfo) -> Layers:
        """Return A, and B by the client's own scale."""
        return _rescaled(super().download(layers, client, info), 1 / self._relative_scale(client, info))

    def start(self, server: State, held: State, payload: State, client: int, info: RoundInfo) -> State:
        own = super().start(server, held, payload, client, info)
        if not self._scales:
            return own
        g = self._relative_scale(client, info)
        adapters = {n: {**layer, "g": torch.full_like(layer["g"], g)} for n, layer in own["adapter"].items()}
        return {**own, "adapter": adapters}

    def receive(self, server: State, payload: State, client: int, info: RoundInfo) -> State:
        """Return A, and B by the server's scale, filled up with zeros: the paper's mean is of the clients' products."""
        own = fill_up(payload["adapter"], self.fields, self.rank)
        return {**payload, "adapter": _rescaled(own, self._relative_scale(client, info))}

    def aggregate(self, layers: Layers, uploads: Uploads, info: RoundInfo) -> Layers:
        return {name: {**layer, **self._best(name, layer, uploads)} for name, layer in layers.items()}

    def _best(self, name: str, layer: Layer, uploads: Uploads) -> Layer:
        """Return the factors of the best rank-r approximation of T / s of one layer, the singular values in B."""
        Bs, As = (uploads.stack(name, field, layer[field]) for field in ("B", "A"))
        left, singular, right = truncated_svd(*mean_product(Bs, As, uploads.weights), self.rank)
        A, B = layer["A"].clone(), torch.zeros_like(layer["B"])
        A[: len(right)] = right.to(A)
        B[:, : len(right)] = (left * singular).to(B)
        return {"A": A, "B": B}


def _rescaled(layers: Layers, factor: float) -> Layers:
    """Return the layers with B times a factor."""
    return layers if factor == 1 else {n: {**layer, "B": layer["B"] * factor} for n, layer in layers.items()}
