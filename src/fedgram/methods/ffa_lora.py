"""FFA-LoRA: one half of LoRA is frozen (Sun et al., Improving LoRA in Privacy-preserving Federated Learning, 2024)."""

from typing import Any

from fedgram.methods.base import Field, HeadPolicy, RoundInfo
from fedgram.methods.lora import LoRAMethod
from fedgram.state import Layers
from fedgram.uploads import Uploads

__all__ = ["FFALoRA"]


class FFALoRA(LoRAMethod):
    """LoRA with A frozen at one random start, common to all clients (arXiv 2403.12313).

    Clients train and send B alone, and B̄ = Σ wₙ Bₙ is exact, since B̄ A = Σ wₙ BₙA. A comes from the seed of the run
    and is never sent. B wants some ten times the learning rate of LoRA: the paper searched {.1, .2, .5, 1} for it with
    SGD, and {.01, .02, .05, .1} for LoRA.

    Args:
        head: the paper freezes the head at its random start; other implementations train and average it, which alone
            moves accuracies by much.
        common: the settings of `Method`: rank, alpha, target_modules.
    """

    fields = (Field("A", down=False, up=False, trained=False), Field("B"))

    def __init__(self, *, head: HeadPolicy = "frozen", **common: Any) -> None:
        super().__init__(head=head, **common)

    def aggregate(self, layers: Layers, uploads: Uploads, info: RoundInfo) -> Layers:
        return {
            name: {"A": layer["A"], "B": uploads.mean(name, lambda sent: sent["B"], layer["B"]).to(layer["B"])}
            for name, layer in layers.items()
        }
