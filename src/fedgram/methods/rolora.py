"""RoLoRA: A and B take turns (Chen et al., Robust Federated Finetuning of LLMs via Alternating Optimization, 2025)."""

from fedgram.distributed.uploads import Uploads, average
from fedgram.methods.base import Paper, Phase
from fedgram.methods.context import RoundContext
from fedgram.methods.lora import LoRAMethod
from fedgram.state import Layers

__all__ = ["RoLoRA"]


class RoLoRA(LoRAMethod):
    """LoRA whose factors take turns: odd rounds train and send B, even rounds A (arXiv 2502.01755).

    B̄ = Σ wₙ Bₙ with one A for all in odd rounds, Ā = Σ wₙ Aₙ with one B in even ones: both are exact, since
    B̄ A = Σ wₙ BₙA and B Ā = Σ wₙ BAₙ. B goes first, because A has no gradient while B = 0. A client is sent what has
    changed since it last took part: the factor that the last round trained, or both if it missed a round; the start is
    known to all from the seed. The published code counts its turns by calls, three in a round, and freezes the head at
    a random start; here the number of the round decides, and the head is averaged unless ``head`` says otherwise.
    """

    paper = Paper("Chen et al.", 2025, "NeurIPS", "2502.01755")
    exact = True
    travels = "A or B both ways, in turns"

    @staticmethod
    def active(number: int) -> str:
        """Return the factor that a round trains.

        >>> [RoLoRA.active(number) for number in (1, 2, 3)]
        ['B', 'A', 'B']
        """
        return "B" if number % 2 else "A"

    def phases(self, number: int) -> tuple[Phase, ...]:
        field = self.active(number)
        return (Phase(frozenset({field}), name=field),)

    def aggregate(self, layers: Layers, uploads: Uploads, ctx: RoundContext) -> Layers:
        return average(layers, uploads, {self.active(ctx.number)})
