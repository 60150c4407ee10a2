"""FedDPA: a global and a local adapter (Yang et al., Dual-Personalizing Adapter, NeurIPS 2024, arXiv 2403.19211).

Symbols: ``A: (r, d_in)`` and ``B: (d_out, r)`` the global pair; ``L: (r, d_in)`` and ``U: (d_out, r)`` a client's own.
"""

from dataclasses import replace
from typing import Any, Literal

import torch
from torch import nn

from fedgram.adapters import Adapter, LoraPairAdapter, lora_start
from fedgram.distributed.uploads import Uploads, average
from fedgram.errors import ConfigurationError, require_choice
from fedgram.methods.base import Diagnostics, Paper, Phase
from fedgram.methods.context import ClientContext, RoundContext
from fedgram.methods.fields import Field
from fedgram.methods.lora import LoRAMethod
from fedgram.numerics.linalg import relative_change
from fedgram.state import Layers, ModelState, Payload

__all__ = ["FedDPA"]

Schedule = Literal["alternating", "sequential"]
_GLOBAL, _LOCAL = frozenset("AB"), frozenset("LU")


class FedDPA(LoRAMethod):
    """Two LoRA pairs: a global one, which is averaged, and a local one, which stays at home (arXiv 2403.19211).

    ΔWₙ = s ((1 - α) B̄ Ā + α Uₙ Lₙ). Uₙ Lₙ is trained with the global pair beside it, held; the global pair is trained
    alone, by s B A. A local pair starts as a copy of the global one that the client has then, so that the mixture
    starts as the global model. The server's own model is the global pair.

    What differs from the paper: α is a fixed number; the paper weighs the local pair anew for every sample that is
    answered, by the cosine similarity of its representation to those of some training samples, for which a layer would
    have to know what the network says of the whole sample. A client divides its local steps between the two pairs,
    where the paper trains each for all epochs: so a round costs what it costs with other methods. Where a local pair
    starts, and that it is trained from the first round on, is a reconstruction.

    Args:
        schedule: "alternating": every round trains the local pair and then the global one (FedDPA-T). "sequential": the
            global pair alone, as in FedIT, before round `local_from`, and from then on the local one alone, when the
            global one is final and adapters travel no more, but once down (FedDPA-F).
        mix: α, between 0 and 1, the weight of the local pair where both are there.
        local_share: the share of the local steps that train the local pair, with "alternating", rounded to whole
            steps. A run in which no client has a step of it, such as half of one, is refused.
        local_from: the first round that trains local pairs, with "sequential", which has no default.
        head: "averaged", so that the global pair makes a model that any client may use, which is what the paper has it
            for; "local"; or "frozen". It is trained in both phases, and averaged in all rounds.
        common: the settings of `Method`: rank, alpha, target_modules.
    """

    paper = Paper("Yang et al.", 2024, "NeurIPS 2024", "2403.19211")
    travels = "the global A and B both ways"
    fields = (Field("A"), Field("B"), Field("L", down=False, up=False), Field("U", down=False, up=False))

    def __init__(
        self,
        *,
        schedule: Schedule = "alternating",
        mix: float = 0.5,
        local_share: float = 0.5,
        local_from: int | None = None,
        **common: Any,
    ) -> None:
        super().__init__(**common)
        require_choice("method.schedule", schedule, Schedule)
        for key, share in (("mix", mix), ("local_share", local_share)):
            if not 0 <= share <= 1:
                raise ConfigurationError(f"method.{key} must be between 0 and 1, got {share}")
        if (schedule == "sequential") != (local_from is not None) or (local_from is not None and local_from < 1):
            raise ConfigurationError(
                "method.local_from must be the first round that trains local adapters with schedule: sequential, and "
                f"be left out with alternating; got {local_from} with {schedule}"
            )
        self.schedule = schedule
        self.mix = mix
        self.local_share = local_share
        self.local_from = local_from

    @property
    def name(self) -> str:
        return super().name + ("" if self.schedule == "alternating" else "-F")

    def adapter(self, linear: nn.Module, generator: torch.Generator) -> Adapter:
        start = lora_start(linear, self.rank, generator)
        return LoraPairAdapter(linear, self.rank, self.scale, start, (1 - self.mix, self.mix))

    def _before_local(self, number: int) -> bool:
        """Say whether a round is one of those that train the global pair alone."""
        return self.local_from is not None and number < self.local_from

    def _is_final(self, number: int) -> bool:
        """Say whether the global pair has been done with before a round."""
        return self.local_from is not None and number >= self.local_from

    def start(self, held: ModelState, payload: Payload, ctx: ClientContext) -> ModelState:
        """Return the global pair, and the client's own, which starts as a copy of it."""
        own = super().start(held, payload, ctx)
        if self._before_local(ctx.round.number):
            return own
        pairs = {name: {"L": layer["A"], "U": layer["B"], **layer} for name, layer in own.adapter.items()}
        return replace(own, adapter=pairs)

    def phases(self, number: int) -> tuple[Phase, ...]:
        if self._before_local(number):
            return (Phase(_GLOBAL, name="global"),)
        if self._is_final(number):
            return (Phase(_LOCAL, name="local"),)
        return (
            Phase(_LOCAL, self.local_share, "local"),
            Phase(_GLOBAL, 1 - self.local_share, "global", absent=_LOCAL),
        )

    def kept(self, trained: ModelState) -> ModelState:
        """Return the local pair, where there is one, and the head where it is local."""
        pairs = {n: {f: t for f, t in layer.items() if f in _LOCAL} for n, layer in trained.adapter.items()}
        return ModelState(pairs, trained.head if self.head == "local" else {})

    def aggregate(self, layers: Layers, uploads: Uploads, ctx: RoundContext) -> Layers:
        return layers if self._is_final(ctx.number) else average(layers, uploads)

    def diagnose(self, before: Layers, after: Layers, uploads: Uploads) -> Diagnostics:
        """Return ‖Aᵗ⁺¹ - Aᵗ‖/‖Aᵗ‖ per layer."""
        return {name: {"drift": float(relative_change(layer["A"], after[name]["A"]))} for name, layer in before.items()}
