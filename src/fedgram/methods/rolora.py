"""RoLoRA: A and B take turns (Chen et al., Robust Federated Finetuning of LLMs via Alternating Optimization, 2025)."""

from fedgram.methods.base import Paper, Phase, RoundInfo
from fedgram.methods.fields import select
from fedgram.methods.lora import LoRAMethod
from fedgram.state import Layers, State, merge
from fedgram.uploads import Uploads, average

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

    def phases(self, info: RoundInfo) -> tuple[Phase, ...]:
        field = self.active(info.number)
        return (Phase(frozenset({field}), name=field),)

    def download(self, layers: Layers, client: int, info: RoundInfo) -> Layers:
        """Return what was aggregated since the client was last sent something; it knew all that was before."""
        since = range(max(1, info.last[client]), info.number)
        return select(layers, sorted({self.active(number) for number in since}))

    def start(self, server: State, held: State, payload: State, client: int, info: RoundInfo) -> State:
        """Return A and B as the server has them: what was not sent, the client has known since it was sent that."""
        known = merge(held, {"adapter": server["adapter"], "head": {}})
        return super().start(server, known, payload, client, info)

    def upload(self, start: Layers, trained: Layers, client: int, info: RoundInfo) -> Layers:
        return select(trained, [self.active(info.number)])

    def aggregate(self, layers: Layers, uploads: Uploads, info: RoundInfo) -> Layers:
        return average(layers, uploads, {self.active(info.number)})
