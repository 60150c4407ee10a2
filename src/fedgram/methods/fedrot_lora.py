"""FedRot-LoRA: clients turn their factors towards the server's before these are averaged (Zhang et al., ICML 2026).

Symbols: ``A: (r, d_in)``, ``B: (d_out, r)`` what a client was sent; ``Aₙ, Bₙ`` what it trained; ``R: (r, r)`` its
rotation; λ how much of it is made.
"""

from dataclasses import replace
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from fedgram.distributed.uploads import Uploads, average
from fedgram.errors import ConfigurationError, require_choice
from fedgram.methods.base import Paper
from fedgram.methods.context import ClientContext, RoundContext
from fedgram.methods.lora import LoRAMethod
from fedgram.numerics.linalg import nearest_rotation
from fedgram.state import Layer, Layers, ModelState, Payload

__all__ = ["FedRotLoRA"]

Align = Literal["alternate", "A", "B"]


class FedRotLoRA(LoRAMethod):
    """Every client sends RₙᵀAₙ and BₙRₙ, whose product is BₙAₙ, and the server averages (arXiv 2602.23638).

    R* minimises ‖RᵀAₙ - A‖ over rotations (the orthogonal Procrustes problem, with det R = 1), or ‖BₙR - B‖ in every
    other round; A and B are what the client was sent. R is the rotation nearest to (1 - λ) I + λ R*. Nothing is turned
    in the first round, then A is matched, then B, and so on, as in the published code; where R* is not unique, as for
    B of low rank, the choice nearest to I is taken, while the published code leaves it to the solver. λ = 0 is FedIT.

    Args:
        strength: λ, from 0 (no rotation) to 1 (all of it); the paper found .2 to .8 better than 1, and the best often
            between .4 and .6. It names no default.
        align: what is matched: "alternate" A and B from round to round, as in the paper; or "A" or "B" alone, as in its
            ablations.
        common: the settings of `Method`: rank, alpha, target_modules, head.
    """

    paper = Paper("Zhang et al.", 2026, "ICML 2026", "2602.23638")
    travels = "A and B both ways"

    def __init__(self, *, strength: float = 0.5, align: Align = "alternate", **common: Any) -> None:
        super().__init__(**common)
        if not 0 <= strength <= 1:
            raise ConfigurationError(f"method.strength must be from 0 (none, FedIT) to 1 (all of it), got {strength}")
        require_choice("method.align", align, Align)
        self.strength = strength
        self.align = align

    @property
    def name(self) -> str:
        usual = {"strength": 0.5, "align": "alternate"}
        return "-".join([super().name, *(str(getattr(self, k)) for k, v in usual.items() if getattr(self, k) != v)])

    def upload(self, start: ModelState, trained: ModelState, ctx: ClientContext) -> Payload:
        layers, number = trained.adapter, ctx.round.number
        turned = {name: self._turned(start.adapter[name], layer, number) for name, layer in layers.items()}
        return replace(super().upload(start, trained, ctx), adapter=turned)

    def _turned(self, start: Layer, trained: Layer, number: int) -> Layer:
        """Return RᵀAₙ and BₙR of one layer."""
        if number == 1:
            return {field: trained[field] for field in ("A", "B")}
        A, B = trained["A"].double(), trained["B"].double()
        of_A = self.align == "A" or (self.align == "alternate" and number % 2 == 0)
        R = self._rotation(A @ start["A"].double().mT if of_A else B.mT @ start["B"].double())
        return {"A": (R.mT @ A).to(trained["A"]), "B": (B @ R).to(trained["B"])}

    def _rotation(self, overlap: Float[Tensor, "r r"]) -> Float[Tensor, "r r"]:
        """Return R for the overlap Aₙ Aᵀ, or BₙᵀB: R* maximises its inner product with R."""
        whole = nearest_rotation(overlap)
        return nearest_rotation(torch.lerp(torch.eye(len(whole)).to(whole), whole, self.strength))

    def aggregate(self, layers: Layers, uploads: Uploads, ctx: RoundContext) -> Layers:
        return average(layers, uploads)
