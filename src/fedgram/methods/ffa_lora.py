"""FFA-LoRA: one half of LoRA is frozen (Sun et al., Improving LoRA in Privacy-preserving Federated Learning, 2024)."""

from typing import Any

from fedgram.distributed.uploads import Uploads
from fedgram.methods.base import HeadPolicy, Paper
from fedgram.methods.context import RoundContext
from fedgram.methods.fields import Field
from fedgram.methods.lora import LoRAMethod
from fedgram.state import Layers

__all__ = ["FFALoRA"]


class FFALoRA(LoRAMethod):
    """LoRA with A frozen at one random start; B wants some ten times LoRA's learning rate (arXiv 2403.12313).

    Clients train and send B alone, and B̄ = Σ wₙ Bₙ is exact, since B̄ A = Σ wₙ BₙA. A comes from the seed of the run
    and is never sent. With SGD the paper searched learning rates of {.1, .2, .5, 1}, and {.01, .02, .05, .1} for LoRA.
    A client of a lower rank has the first rows of A, and counts with the server's other columns of B: not in the paper,
    and exact as well, B̄ A = BA + Σ wₙ (Bₙ - B)A over the ranks that each has.

    Args:
        head: "frozen" at its random start, as in the paper; "averaged" (trained, and averaged by the server), as other
            implementations have it, which alone moves accuracies by much; or "local" to each client.
        common: the settings of `Method`: rank, alpha, target_modules, client_ranks.
    """

    paper = Paper("Sun et al.", 2024, "ICLR", "2403.12313")
    exact = True
    heterogeneous = True
    travels = "B both ways"
    fields = (Field("A", down=False, up=False, trained=False, rank_axis=0), Field("B", rank_axis=1))

    def __init__(self, *, head: HeadPolicy = "frozen", **common: Any) -> None:
        super().__init__(head=head, **common)

    def aggregate(self, layers: Layers, uploads: Uploads, ctx: RoundContext) -> Layers:
        return self.average_changes(layers, uploads, ("B",))
