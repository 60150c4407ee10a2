"""FedIT: LoRA's A and B, each averaged (Zhang et al., Towards Building the Federated GPT, arXiv 2305.05644)."""

from fedgram.distributed.uploads import Uploads
from fedgram.methods.base import Paper
from fedgram.methods.context import RoundContext
from fedgram.methods.lora import LoRAMethod
from fedgram.state import Layers

__all__ = ["FedIT"]


class FedIT(LoRAMethod):
    """LoRA by federated averaging: the server averages A and B separately (arXiv 2305.05644).

    ΔW = s B A and Ā = Σ wₙ Aₙ, B̄ = Σ wₙ Bₙ. The mean of the products is not the product of the means: B̄ Ā misses
    Σ wₙ (Bₙ - B̄)(Aₙ - Ā), which is logged as ``aggregation_error``.

    The paper has one rank for all. Of clients with ranks of their own, each row of A and column of B is the mean over
    those that have it. With zeros for the others, as is common, a rank that few clients have would fade away.
    """

    paper = Paper("Zhang et al.", 2023, "ICASSP 2024", "2305.05644")
    heterogeneous = True
    travels = "A and B both ways"

    def aggregate(self, layers: Layers, uploads: Uploads, ctx: RoundContext) -> Layers:
        return self.average_over_holders(layers, uploads, ("A", "B"), ctx)
