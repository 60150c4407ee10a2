"""FLoRA: clients' factors are stacked, which is exact (Wang et al., FLoRA, NeurIPS 2024, arXiv 2409.05976).

Symbols: ``U: (m, d_out)`` the rows wₙ Bₙᵀ of all clients, ``V: (m, d_in)`` the rows Aₙ, with m = Σ rₙ; ``R`` the sum of
all that was added to the frozen weight.
"""

from dataclasses import replace

import torch
from torch import nn

from fedgram.adapters import Adapter, LoraAdapter, lora_start, random_rows
from fedgram.distributed.uploads import LayerUploads
from fedgram.methods.base import Paper
from fedgram.methods.context import ClientContext, RoundContext
from fedgram.methods.fields import Field, fill_up
from fedgram.methods.residual import ResidualMethod
from fedgram.seeding import torch_generator
from fedgram.state import Layer, ModelState, Payload, ServerState, send

__all__ = ["FLoRA"]


class FLoRA(ResidualMethod):
    """The clients' factors are stacked and merged into the frozen weights, and training starts anew (arXiv 2409.05976).

    W⁰ ← W⁰ + s Σ wₙ BₙAₙ = W⁰ + s [w₁B₁, w₂B₂, …] [A₁; A₂; …], which is exact for any ranks. In every round each client
    draws a new Aₙ from the seed of the run, and Bₙ starts at zero: the server's model is W⁰ and no more. What goes down
    is the stack of the last round; a client that missed one is sent the sum of all, as is every client where that is
    fewer numbers, as for many clients. Moments of the optimizer that a client keeps mean nothing here.

    All clients have the scale s = alpha / rank, as with the paper's alphaₙ = 2 rₙ. The stack takes the weights wₙ once,
    on one of its sides. The sum is kept in float32 beside weights of a lower precision, which would swallow it.
    """

    paper = Paper("Wang et al.", 2024, "NeurIPS 2024", "2409.05976")
    exact = True
    heterogeneous = True
    travels = "A and B up; the stack of all clients' down"
    fields = (
        Field("A", down=False, rank_axis=0, fresh=True),
        Field("B", down=False, rank_axis=1, fresh=True),
        *ResidualMethod.residual_fields(factored=True),
    )

    def adapter(self, linear: nn.Module, generator: torch.Generator) -> Adapter:
        start = lora_start(linear, self.rank, generator)
        return LoraAdapter(linear, self.rank, self.scale, start | self.no_residual(linear))

    def start(self, held: ModelState, payload: Payload, ctx: ClientContext) -> ModelState:
        """Return a new A, which the seed gives this client in this round, and B = 0."""

        def begun(name: str, layer: Layer) -> Layer:
            generator = torch_generator(ctx.round.seed, f"FLoRA {name}", ctx.round.number, ctx.client)
            drawn = random_rows(ctx.rank, layer["A"].shape[1], generator)
            return {"A": send(drawn, layer["A"].device).to(layer["A"].dtype), "B": torch.zeros_like(layer["B"])}

        adapters = {name: layer | begun(name, layer) for name, layer in held.adapter.items()}
        return super().start(replace(held, adapter=adapters), payload, ctx)

    def receive(self, server: ServerState, payload: Payload, ctx: ClientContext) -> Payload:
        """Return the factors filled up with zeros: the server has none of its own that clients go on from."""
        return replace(payload, adapter=fill_up(payload.adapter, self.fields, self.rank))

    def aggregate_layer(self, layer: Layer, sent: LayerUploads, ctx: RoundContext) -> Layer:
        """Return R + s UᵀV, the stack of all clients added, and no B."""
        ranks = [self.dealt_rank(client, ctx) for client in sent.clients]
        Bs, As = sent.stack("B").double(), sent.stack("A").double()
        weighted = send(sent.weights, Bs.device)[:, None, None] * Bs.mT
        # What lower ranks were filled up with is zero, and is no part of what a deployment would send.
        U, V = (torch.cat([own[:r] for own, r in zip(rows, ranks, strict=True)]) for rows in (weighted, As))
        return {"B": torch.zeros_like(layer["B"]), **self.with_residual(layer["residual"], U, V)}

    def next_form(self, server: ServerState, ctx: RoundContext) -> ServerState:
        rows = sum(self.dealt_rank(client, ctx) for client in ctx.cohort)
        return server.with_adapter(self.next_residual(server.adapter, rows))
