"""FSLoRA: clients train a few columns of B and rows of A (Fang et al., Federated Sketching LoRA, 2025).

Symbols: ``I``: the κ indices of a layer that a client trains in a round, of r; ``S = (r/κ) Σ_{j∈I} e_j e_jᵀ``, (r, r).
"""

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedgram.distributed.uploads import Uploads
from fedgram.errors import ConfigurationError
from fedgram.methods.base import Paper
from fedgram.methods.client_ranks import deal_ranks
from fedgram.methods.context import ClientContext, RoundContext
from fedgram.methods.fields import fill_up
from fedgram.methods.lora import LoRAMethod
from fedgram.methods.server_optimizer import Kind, ServerOptimizer, add_mean_change
from fedgram.seeding import numpy_generator
from fedgram.state import Layer, Layers, ModelState, Payload, ServerMemory, ServerState, send

__all__ = ["FSLoRA"]


class FSLoRA(LoRAMethod):
    """LoRA of which clients train random parts, κ of r columns of B and rows of A in a round (arXiv 2501.19389).

    A client trains W⁰ + s B S A, with E[S] = I: the small pair (B[:, I], A[I, :]) with the factor s r/κ. I is drawn
    anew for every client, round and layer, one for A and B. Down goes the small pair, and up what has become of it:
    the server has drawn I, so that no indices travel. It adds the mean change over clients, zero outside of their I,
    Σ wₙ ΔBₙ and Σ wₙ ΔAₙ, or leaves it to an optimizer of its own. The model that is judged is W⁰ + s B A.
    The paper counts the whole of A and B down. In the published code sketches never come into effect: a test of names
    never holds, so that all clients train all of A and B; and A and B of a layer would have different I. It scales by
    alpha/√r, and its server's Adam has a weight decay.

    Args:
        sketch: κ/r, the share of the rank that each client trains in a round, where client_ranks does not say; κ is at
            least 1. The smaller, the larger the factor r/κ: a lower learning rate or clipping may be needed.
        server_optimizer: "none" adds the mean change, as in the paper; "adam" takes it for a gradient of Adam, as the
            published code does.
        server_lr: the learning rate of the server's Adam; the published code has 3e-4 and 5e-4.
        common: the settings of `Method`: rank, alpha, target_modules, head, client_ranks; the last means κ here.
    """

    paper = Paper("Fang et al.", 2025, "arXiv", "2501.19389")
    heterogeneous = True
    travels = "κ columns of B and rows of A both ways"

    def __init__(
        self, *, sketch: float = 0.5, server_optimizer: Kind = "none", server_lr: float = 5e-4, **common: Any
    ) -> None:
        super().__init__(**common)
        if not 0 < sketch <= 1:
            raise ConfigurationError(f"method.sketch must be a share of the rank in (0, 1], got {sketch}")
        self.sketch = sketch
        self.server_optimizer = server_optimizer
        self.server_lr = server_lr
        self._server = ServerOptimizer(server_optimizer, server_lr)

    @property
    def name(self) -> str:
        return super().name + ("" if self.server_optimizer == "none" else f"-{self.server_optimizer}")

    def dealt_rank(self, client: int, ctx: RoundContext) -> int:
        """Return κ of one client."""
        return self._equal if self.client_ranks is None else super().dealt_rank(client, ctx)

    @property
    def _equal(self) -> int:
        """κ, where it is that of all clients."""
        return max(1, round(self.sketch * self.rank))

    def _widest(self, ctx: RoundContext) -> int:
        """Return the largest κ of all clients."""
        if self.client_ranks is None:
            return self._equal
        return int(deal_ranks(self.client_ranks, self.rank, ctx.clients, ctx.seed).max())

    def indices(self, layer: str, ctx: ClientContext) -> np.ndarray:
        """Return I of one client, round and layer, ascending: κ of 0 to r-1, drawn without replacement."""
        generator = numpy_generator(ctx.round.seed, f"sketch of {layer}", ctx.round.number, ctx.client)
        return np.sort(generator.choice(self.rank, ctx.rank, replace=False))

    def server_start(self, model: ModelState, clients: int) -> ServerMemory:
        return self._server.start(model)

    def download(self, server: ServerState, ctx: ClientContext) -> Payload:
        """Return B[:, I] and A[I, :]."""
        return replace(super().download(server, ctx), adapter=self._parts(server.adapter, ctx))

    def _parts(self, layers: Layers, ctx: ClientContext) -> Layers:
        return {name: self._part(layer, self.indices(name, ctx)) for name, layer in layers.items()}

    @staticmethod
    def _part(layer: Layer, chosen: np.ndarray) -> Layer:
        rows = _on(layer["A"], chosen)
        return {"A": layer["A"].index_select(0, rows), "B": layer["B"].index_select(1, rows)}

    def start(self, held: ModelState, payload: Payload, ctx: ClientContext) -> ModelState:
        """Return the small pair with its factor g = r/κ."""
        pairs = payload.adapter or self._parts(held.adapter, ctx)
        g = self.rank / ctx.rank
        return replace(held, adapter={n: {**pair, "g": pair["A"].new_full((), g)} for n, pair in pairs.items()})

    def pad(self, start: ModelState, server: ServerState, ctx: RoundContext) -> ModelState:
        """Return the small pair filled up with zeros to the largest κ of all clients."""
        return replace(start, adapter=fill_up(start.adapter, self.fields, self._widest(ctx)))

    def receive(self, server: ServerState, payload: Payload, ctx: ClientContext) -> Payload:
        """Return the server's A and B with what a client has trained in its place."""
        placed = {
            name: self._placed(server.adapter[name], pair, self.indices(name, ctx))
            for name, pair in payload.adapter.items()
        }
        return replace(payload, adapter=placed)

    @staticmethod
    def _placed(layer: Layer, pair: Layer, chosen: np.ndarray) -> Layer:
        rows = _on(layer["A"], chosen)
        return {"A": layer["A"].index_copy(0, rows, pair["A"]), "B": layer["B"].index_copy(1, rows, pair["B"])}

    def aggregate(self, layers: Layers, uploads: Uploads, ctx: RoundContext) -> Layers:
        return add_mean_change(layers, uploads)

    def next_state(self, server: ServerState, adapters: Uploads, heads: Uploads, ctx: RoundContext) -> ServerState:
        return self._server.step(server, super().next_state(server, adapters, heads, ctx), ctx.number)


def _on(like: Tensor, indices: np.ndarray) -> Tensor:
    return send(torch.from_numpy(indices), like.device)
