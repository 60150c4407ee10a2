"""FLoRA: clients' factors are stacked, which is exact (Wang et al., FLoRA, NeurIPS 2024, arXiv 2409.05976).

Symbols: ``U: (m, d_out)`` the rows wₙ Bₙᵀ of all clients, ``V: (m, d_in)`` the rows Aₙ, with m = Σ rₙ; ``R`` the sum of
all that was added to the frozen weight.
"""

import torch
from torch import nn

from fedgram.adapters import Adapter, LoraAdapter, lora_start, random_rows
from fedgram.methods.base import Paper, RoundInfo
from fedgram.methods.fields import Field, fill_up
from fedgram.methods.residual import ResidualMethod
from fedgram.seeding import torch_generator
from fedgram.state import Layer, Layers, State, send
from fedgram.uploads import Uploads

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

    def download(self, layers: Layers, client: int, info: RoundInfo) -> Layers:
        known = info.is_up_to_date(client)
        return {n: {f: layer[f] for f in self.news(layer, known)} for n, layer in layers.items()}

    def start(self, server: State, held: State, payload: State, client: int, info: RoundInfo) -> State:
        own, rank = super().start(server, held, payload, client, info), self.rank_of(server, client, info)

        def begun(name: str, layer: Layer) -> Layer:
            generator = torch_generator(info.seed, f"FLoRA {name}", info.number, client)
            A = send(random_rows(rank, layer["A"].shape[1], generator), layer["A"].device).to(layer["A"].dtype)
            return {**layer, "A": A, "B": torch.zeros_like(layer["B"])}

        adapters = {name: begun(name, layer) for name, layer in own["adapter"].items()}
        return {**own, "adapter": fill_up(adapters, self.fields, self.rank)}

    def receive(self, server: State, payload: State, client: int, info: RoundInfo) -> State:
        """Return the factors filled up with zeros: the server has none of its own that clients go on from."""
        return {**payload, "adapter": fill_up(payload["adapter"], self.fields, self.rank)}

    def aggregate(self, layers: Layers, uploads: Uploads, info: RoundInfo) -> Layers:
        return {name: self._merged(name, layer, uploads, info) for name, layer in layers.items()}

    def next_form(self, server: State, info: RoundInfo) -> State:
        rows = sum(self.rank_of({}, client, info) for client in info.cohort)
        return {**server, "adapter": self.next_residual(server["adapter"], rows)}

    def _merged(self, name: str, layer: Layer, uploads: Uploads, info: RoundInfo) -> Layer:
        """Return a layer with the stack of all clients added: R + s UᵀV, and no B."""
        ranks = [self.rank_of({}, client, info) for client in uploads.clients]
        Bs, As = (uploads.stack(name, field, layer[field]).double() for field in ("B", "A"))
        weighted = send(uploads.weights, Bs.device)[:, None, None] * Bs.mT
        # What lower ranks were filled up with is zero, and is no part of what a deployment would send.
        U, V = (torch.cat([own[:r] for own, r in zip(rows, ranks, strict=True)]) for rows in (weighted, As))
        return {**layer, "B": torch.zeros_like(layer["B"]), **self.with_residual(layer["residual"], U, V)}
