"""RAVAN: many small heads between fixed bases (Raje et al., Ravan, NeurIPS 2025, arXiv 2506.05568)."""

from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fedgram.adapters import Adapter, MultiHeadAdapter
from fedgram.adapters.base import layer_sizes
from fedgram.distributed.uploads import Uploads, average
from fedgram.errors import ConfigurationError, require_choice
from fedgram.methods.base import Diagnostics, Method, Paper
from fedgram.methods.context import ClientContext, RoundContext
from fedgram.methods.fields import Field
from fedgram.numerics.linalg import relative_change, semi_orthogonal
from fedgram.settings import check
from fedgram.state import Layers, ModelState, Payload

__all__ = ["RAVAN"]

Bases = Literal["orthogonal", "normal"]


class RAVAN(Method):
    """ΔW = s Σᵢ sᵢ Bᵢ Hᵢ Aᵢ over h heads; only Hᵢ (r x r) and sᵢ are trained, from 0 and 1 (arXiv 2506.05568).

    Clients send the products sᵢ Hᵢ, and the server takes H̄ᵢ = Σ wₙ sᵢₙ Hᵢₙ, which is exact, since Aᵢ and Bᵢ are the
    same for all and never travel. Every client starts each round at sᵢ = 1, as sᵢ is in H̄ᵢ already. ΔW has rank h r by
    h r² numbers. The paper has no factor s = alpha / rank; alpha = rank is the paper's. That clients with less compute
    train a part of the heads is left out; so are ranks of their own, for which the paper has no rule.

    Args:
        heads: h, how many heads there are.
        bases: how Aᵢ and Bᵢ are drawn: "orthogonal", all rows of all Aᵢ orthonormal, and all columns of all Bᵢ, the
            paper's Gram-Schmidt start, which needs h r <= min(d_in, d_out); or "normal", independent entries of
            variance 1 / d, so that rows and columns have the same length on average.
        common: the settings of `Method`: rank (r, that of each head), alpha, target_modules, head.
    """

    paper = Paper("Raje et al.", 2025, "NeurIPS 2025", "2506.05568")
    exact = True
    travels = "the h matrices sᵢHᵢ both ways"
    fields = (Field("H"), Field("s", down=False, up=False, fresh=True))

    def __init__(self, *, heads: int = 4, bases: Bases = "orthogonal", **common: Any) -> None:
        super().__init__(**common)
        check("method.heads", heads, at_least=1)
        require_choice("method.bases", bases, Bases)
        self.heads = heads
        self.bases = bases

    @property
    def name(self) -> str:
        return super().name + ("" if self.bases == "orthogonal" else f"-{self.bases}")

    @property
    def least_side(self) -> int:
        return self.heads * self.rank if self.bases == "orthogonal" else self.rank

    def check_sides(self, name: str, narrowest: nn.Module) -> None:
        super().check_sides(name, narrowest)
        k = min(layer_sizes(narrowest))
        if k < self.least_side:
            raise ConfigurationError(
                f"method.heads * method.rank must be at most min(d_in, d_out) = {k} of {name}, the narrowest adapted "
                f"layer, for orthogonal bases; got {self.heads} * {self.rank}; take fewer heads, a lower rank, or "
                "bases: normal"
            )

    def adapter(self, linear: nn.Module, generator: torch.Generator) -> Adapter:
        d_in, d_out = layer_sizes(linear)
        rows = self.heads * self.rank
        A, B = self._draw(rows, d_in, generator), self._draw(rows, d_out, generator)
        shape = self.heads, self.rank, -1
        return MultiHeadAdapter(linear, self.scale, A.reshape(shape), B.reshape(shape).mT)

    def _draw(self, rows: int, length: int, generator: torch.Generator) -> Tensor:
        """Return the rows of all heads, one under the other."""
        if self.bases == "orthogonal":
            return semi_orthogonal(rows, length, generator)
        return torch.empty(rows, length).normal_(0, length**-0.5, generator=generator)

    def upload(self, start: ModelState, trained: ModelState, ctx: ClientContext) -> Payload:
        sent = {name: {"H": layer["s"][:, None, None] * layer["H"]} for name, layer in trained.adapter.items()}
        return replace(super().upload(start, trained, ctx), adapter=sent)

    def aggregate(self, layers: Layers, uploads: Uploads, ctx: RoundContext) -> Layers:
        return average(layers, uploads, {"H"})

    def diagnose(self, before: Layers, after: Layers, uploads: Uploads) -> Diagnostics:
        """Return ‖H̄ᵗ⁺¹ - H̄ᵗ‖/‖H̄ᵗ‖ per layer; 1 in the first round, whose H̄ is zero. Nothing is missed of the mean."""
        return {name: {"drift": _drift(layer["H"], after[name]["H"])} for name, layer in before.items()}


def _drift(before: Tensor, after: Tensor) -> float:
    return float(relative_change(before, after)) if before.any() else float(after.any())
