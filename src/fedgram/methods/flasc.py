"""FLASC: LoRA of which only the largest numbers travel (Kuo et al., Federated LoRA with Sparse Communication, 2024).

Symbols: ``P``: the n numbers of A and B of all layers, as one vector; ``M``: a mask that keeps the ⌊n d⌋ largest |P|.
"""

from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from fedgram.distributed.uploads import Uploads
from fedgram.errors import ConfigurationError
from fedgram.methods.base import Paper
from fedgram.methods.context import ClientContext, RoundContext
from fedgram.methods.lora import LoRAMethod
from fedgram.methods.server_optimizer import Kind, ServerOptimizer, add_mean_change
from fedgram.methods.sparse import densify, join, part, sparsify
from fedgram.state import Layer, Layers, ModelState, Payload, ServerMemory, ServerState, merge

__all__ = ["FLASC"]


class FLASC(LoRAMethod):
    """LoRA with sparse communication and dense training (arXiv 2406.05233).

    Down goes P ⊙ M, the largest weights of all layers together, with their places. A client trains all of A and B from
    there, and sends of its change Δₙ = Pₙ - P ⊙ M the largest numbers, with their places. The server adds
    Σ wₙ Δₙ to P without a mask: where a client began at 0 in the place of P, its change counts all the same. Nothing of
    what is left out is kept for later. In the first round B = 0, so that what clients start from is a part of A.
    Places are 32-bit indices or a bitmap for all of P, whichever is fewer bytes; the published code counts none. It
    weighs clients equally, has a weight decay in its server's Adam, and sparsifies the head in one of its scripts.

    Args:
        density_down: d, the share of P that is sent to clients in the first round.
        density_up: the share of the change that each sends back.
        decay: by what density_down is multiplied from round to round.
        mask_head: whether the head is a part of P, with an averaged head; it may well crowd out A and B. Its numbers
            are then counted with those of the adapters. Else it travels whole.
        evaluate_masked: judge P ⊙ M, which clients would be sent in the next round, as the published code does, and not
            P.
        server_optimizer: "none" adds the mean change; "adam" takes it for a gradient of Adam, as the published code
            does.
        server_lr: the learning rate of the server's Adam; the published code has 1e-3 and 5e-3.
        common: the settings of `Method`: rank, alpha, target_modules, head.
    """

    paper = Paper("Kuo et al.", 2024, "arXiv", "2406.05233")
    travels = "the largest numbers of A and B, with their places, both ways"

    def __init__(
        self,
        *,
        density_down: float = 0.25,
        density_up: float = 0.25,
        decay: float = 1.0,
        mask_head: bool = False,
        evaluate_masked: bool = True,
        server_optimizer: Kind = "none",
        server_lr: float = 1e-3,
        **common: Any,
    ) -> None:
        super().__init__(**common)
        shares = {"density_down": density_down, "density_up": density_up, "decay": decay}
        for setting, share in shares.items():
            if not 0 < share <= 1:
                raise ConfigurationError(f"method.{setting} must be a share in (0, 1], got {share}; 1 leaves all")
        if mask_head and self.head != "averaged":
            raise ConfigurationError(
                f"method.mask_head is for a head that travels, got method.head: {self.head}; set it to averaged, or "
                "leave mask_head out"
            )
        self.density_down = density_down
        self.density_up = density_up
        self.decay = decay
        self.mask_head = mask_head
        self.evaluate_masked = evaluate_masked
        self.server_optimizer = server_optimizer
        self.server_lr = server_lr
        self._server = ServerOptimizer(server_optimizer, server_lr)

    @property
    def name(self) -> str:
        adam = "" if self.server_optimizer == "none" else f"-{self.server_optimizer}"
        return super().name + ("-head" if self.mask_head else "") + adam

    def _masked(self, state: ModelState) -> ModelState:
        """Return what is masked of a state: P."""
        return ModelState(state.adapter, state.head if self.mask_head else {})

    def _whole(self, head: Layers) -> Layers:
        """Return what is sent of the head beside P."""
        return {} if self.mask_head or self.head != "averaged" else head

    def _largest(self, P: Float[Tensor, " n"], number: int) -> Layer:
        """Return P ⊙ M as it is sent in a round."""
        return sparsify(P, _count(P, self.density_down * self.decay ** (number - 1)))

    def server_start(self, model: ModelState, clients: int) -> ServerMemory:
        return replace(self._server.start(model), globals={"round": torch.tensor(0)})

    def download(self, server: ServerState, ctx: ClientContext) -> Payload:
        sent = self._largest(join(self._masked(server.model)), ctx.round.number)
        return Payload(head=self._whole(server.head), whole=sent)

    def start(self, held: ModelState, payload: Payload, ctx: ClientContext) -> ModelState:
        """Return P ⊙ M; in round 1 P comes from the seed."""
        masked = self._masked(held)
        P = join(masked)
        sent = payload.whole or self._largest(P, ctx.round.number)
        return merge(held, part(densify(sent, len(P)), masked))

    def upload(self, start: ModelState, trained: ModelState, ctx: ClientContext) -> Payload:
        change = join(self._masked(trained)) - join(self._masked(start))
        sent = sparsify(change, _count(change, self.density_up))
        return Payload(head=self._whole(trained.head), whole=sent)

    def receive(self, server: ServerState, payload: Payload, ctx: ClientContext) -> Payload:
        """Return P + Δₙ, with P unmasked."""
        masked = self._masked(server.model)
        P = join(masked)
        moved = part(P + densify(payload.whole, len(P)), masked)
        return Payload(moved.adapter, {**moved.head, **payload.head})

    def aggregate(self, layers: Layers, uploads: Uploads, ctx: RoundContext) -> Layers:
        return add_mean_change(layers, uploads)

    def next_state(self, server: ServerState, adapters: Uploads, heads: Uploads, ctx: RoundContext) -> ServerState:
        after = self._server.step(server, super().next_state(server, adapters, heads, ctx), ctx.number)
        return replace(after, memory=replace(after.memory, globals={"round": torch.tensor(ctx.number)}))

    def model(self, server: ServerState) -> ModelState:
        model = super().model(server)
        if not self.evaluate_masked:
            return model
        masked = self._masked(model)
        P, number = join(masked), int(server.memory.globals["round"]) + 1
        return merge(model, part(densify(self._largest(P, number), len(P)), masked))


def _count(vector: Float[Tensor, " n"], density: float) -> int:
    """Return how many numbers are kept, at least one."""
    return max(1, int(vector.numel() * density))
