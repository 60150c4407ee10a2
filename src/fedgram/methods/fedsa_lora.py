"""FedSA-LoRA: A is shared, B stays at home (Guo et al., Selective Aggregation for LoRA in Federated Learning, 2025)."""

from typing import Any

from fedgram.distributed.uploads import Uploads
from fedgram.methods.base import Diagnostics, HeadPolicy, Paper
from fedgram.methods.context import RoundContext
from fedgram.methods.fields import Field
from fedgram.methods.lora import LoRAMethod
from fedgram.numerics.linalg import relative_change
from fedgram.state import Layers

__all__ = ["FedSALoRA"]


class FedSALoRA(LoRAMethod):
    """Clients train A and B but share A alone; Bₙ and the head stay with the client (arXiv 2410.01463).

    ΔWₙ = s Bₙ A and Ā = Σ wₙ Aₙ. Every client has its own model, which starts at Bₙ = 0 and the common head and is
    touched by that client's training only; `trainer.personal_evaluation` says on what these models are judged.
    Clients of a lower rank, which the paper has not, hold the first rows of A; each row is the mean over its holders.

    Args:
        head: "local", trained by each client for itself and never sent, as in the paper; "averaged" (trained, and
            averaged by the server); or "frozen".
        common: the settings of `Method`: rank, alpha, target_modules, client_ranks.
    """

    paper = Paper("Guo et al.", 2024, "ICLR 2025", "2410.01463")
    heterogeneous = True
    travels = "A both ways"
    fields = (Field("A", rank_axis=0), Field("B", down=False, up=False, rank_axis=1))

    def __init__(self, *, head: HeadPolicy = "local", **common: Any) -> None:
        super().__init__(head=head, **common)

    def aggregate(self, layers: Layers, uploads: Uploads, ctx: RoundContext) -> Layers:
        return self.average_over_holders(layers, uploads, ("A",), ctx)

    def diagnose(self, before: Layers, after: Layers, uploads: Uploads) -> Diagnostics:
        """Return ‖Aᵗ⁺¹ - Aᵗ‖/‖Aᵗ‖ per layer; there is no global ΔW to be off from."""
        return {name: {"drift": float(relative_change(layer["A"], after[name]["A"]))} for name, layer in before.items()}
