"""HetLoRA: ranks prune themselves, and sparse updates count less (Cho et al., EMNLP 2024, arXiv 2401.06432).

Symbols: ``rₙ`` the rank of client n; its tail are the ranks ⌊γ rₙ⌋ to rₙ; ``pₙ`` its share in the aggregation.
"""

import math
from dataclasses import replace
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fedgram.adapters import Adapter
from fedgram.distributed.uploads import Uploads
from fedgram.errors import ConfigurationError, require_choice
from fedgram.methods.base import Paper
from fedgram.methods.context import ClientContext, RoundContext
from fedgram.methods.fields import Field, cut, fill_up
from fedgram.methods.lora import LoRAMethod
from fedgram.numerics.linalg import product_norm
from fedgram.state import Layer, Layers, ModelState, Payload, ServerMemory, ServerState, send

__all__ = ["HetLoRA"]

Scope = Literal["layer", "client"]


class HetLoRA(LoRAMethod):
    """Clients prune ranks that they do without, and the server weights factors by their products (arXiv 2401.06432).

    A client is sent the first rₙ columns of B and rows of A. It adds λ Σ ‖B_tail‖ ‖A_tail‖, summed over layers, to its
    loss; and where this sum is smaller after training than before, its rank becomes ⌊γ rₙ⌋ for all rounds to come, and
    it sends the rest alone, with its new rank. The server fills up with zeros: B = Σ pₙ Bₙ and A = Σ pₙ Aₙ with
    pₙ ∝ wₙ ‖BₙAₙ‖, which is not exact; where all norms are zero, pₙ = wₙ. Rows of A that nobody of the cohort has stay
    what they were. All clients have the scale alpha / rank, which does not change when ranks do.

    There is no published code: this is a reconstruction. The paper's pₙ has no wₙ, as with uniform client weights.
    Zeros make every round multiply a rank of A, and of B, by the share of its holders, also where nobody trained.

    Args:
        gamma: γ, the share of its ranks that a client is left with when it prunes; 1 for no pruning and no penalty.
        lam: λ, the weight of the penalty; 0 for none, with pruning all the same.
        min_rank: what no client prunes beyond.
        scope: of the norms. "layer": every layer has shares of its own; "client": one norm over all layers.
        common: the settings of `Method`: rank, alpha, target_modules, head, client_ranks.
    """

    paper = Paper("Cho et al.", 2024, "EMNLP 2024", "2401.06432")
    heterogeneous = True
    travels = "A and B both ways, and the rank up"

    def __init__(
        self, *, gamma: float = 0.99, lam: float = 0.01, min_rank: int = 1, scope: Scope = "layer", **common: Any
    ) -> None:
        super().__init__(**common)
        require_choice("method.scope", scope, Scope)
        if not 0 < gamma <= 1:
            raise ConfigurationError(f"method.gamma must be more than 0 and at most 1, got {gamma}; 1 prunes nothing")
        if not 0 <= lam < math.inf:
            raise ConfigurationError(f"method.lam must be a number >= 0, got {lam}; 0 adds no penalty")
        if not 1 <= min_rank <= self.rank:
            raise ConfigurationError(
                f"method.min_rank must lie between 1 and method.rank = {self.rank}, got {min_rank}; 1 is the least rank"
            )
        self.gamma = gamma
        self.lam = lam
        self.min_rank = min_rank
        self.scope = scope
        if self._prunes:
            self.unknown = "which clients prune their ranks, and when"
            # g: one for the ranks that a client has, so that moments which it kept of others have no effect.
            self.fields = (
                *LoRAMethod.fields,
                *(Field(f, down=False, up=False, trained=False, rank_axis=0) for f in ("g", "tail")),
            )

    @property
    def name(self) -> str:
        return "-".join([super().name, *(["client"] * (self.scope == "client")), *(["unpruned"] * (not self._prunes))])

    @property
    def _prunes(self) -> bool:
        return self.gamma < 1

    def _pruned(self, rank: int) -> int:
        """Return what a rank is pruned to: ⌊γ r⌋, and never beyond the least."""
        return min(rank, max(self.min_rank, math.floor(round(self.gamma * rank, 9))))

    def adapter(self, linear: nn.Module, generator: torch.Generator) -> Adapter:
        adapter = super().adapter(linear, generator)
        if self._prunes:
            adapter.start |= {"g": torch.ones(self.rank), "tail": torch.zeros(self.rank)}
        return adapter

    def server_start(self, model: ModelState, clients: int) -> ServerMemory:
        """Return how many ranks each client has pruned: none."""
        return ServerMemory(globals={"pruned": torch.zeros(clients, dtype=torch.int64)} if self._prunes else {})

    def rank_of(self, server: ServerState, client: int, ctx: RoundContext) -> int:
        """Return the rank that a client has been left with."""
        dealt = self.dealt_rank(client, ctx)
        return dealt - int(server.memory.globals["pruned"][client]) if self._prunes else dealt

    def start(self, held: ModelState, payload: Payload, ctx: ClientContext) -> ModelState:
        own = super().start(held, payload, ctx)
        if not self._prunes:
            return own
        masks = {"g": torch.ones(ctx.rank), "tail": (torch.arange(ctx.rank) >= self._pruned(ctx.rank)).float()}
        adapters = {
            name: layer | {field: send(mask, layer["A"].device).to(layer["A"].dtype) for field, mask in masks.items()}
            for name, layer in own.adapter.items()
        }
        return replace(own, adapter=adapters)

    def penalty(self, adapters: Layers) -> Float[Tensor, " C"] | None:
        if not self._prunes or not self.lam:
            return None
        return self.lam * _tail_products(adapters)

    def upload(self, start: ModelState, trained: ModelState, ctx: ClientContext) -> Payload:
        """Return the factors, pruned where their tails have become smaller, and their rank."""
        payload, rank = super().upload(start, trained, ctx), ctx.rank
        if not self._prunes:
            return payload
        if self._has_shrunk(start.adapter, trained.adapter):
            rank = self._pruned(rank)
        device = next(iter(trained.adapter.values()))["A"].device
        own_rank = {"rank": torch.full((), rank, dtype=torch.int64, device=device)}
        return replace(payload, adapter=cut(payload.adapter, self.fields, rank), whole=own_rank)

    def receive(self, server: ServerState, payload: Payload, ctx: ClientContext) -> Payload:
        """Return the factors filled up with zeros, as the paper has it."""
        return replace(payload, adapter=fill_up(payload.adapter, self.fields, self.rank))

    def _has_shrunk(self, start: Layers, trained: Layers) -> bool:
        """Say whether the tails' products are smaller than they were; of tensors without numbers `bound` says so."""
        before, after = _tail_products(start), _tail_products(trained)
        return self.bound == "least" if after.is_meta else bool(after < before)

    def next_state(self, server: ServerState, adapters: Uploads, heads: Uploads, ctx: RoundContext) -> ServerState:
        after = super().next_state(server, adapters, heads, ctx)
        if not self._prunes:
            return self._with_rows_of_nobody(server, after, ctx)
        before = server.memory.globals["pruned"]
        dealt = torch.tensor([self.dealt_rank(client, ctx) for client in ctx.cohort])
        left = adapters.stack("", "rank", torch.zeros((), dtype=torch.int64, device=before.device))
        pruned = before.index_copy(0, torch.tensor(ctx.cohort, device=before.device), dealt.to(left) - left)
        return self._with_rows_of_nobody(server, replace(after, memory=ServerMemory(globals={"pruned": pruned})), ctx)

    def _with_rows_of_nobody(self, before: ServerState, after: ServerState, ctx: RoundContext) -> ServerState:
        """Return the server's next state, with A's rows of ranks that nobody of the cohort has as they were before.

        Zeros in A and in B would stay there, as no gradient would ever move them. Beside the zeros in B any A gives the
        same ΔW.
        """
        largest = max(self.rank_of(after, client, ctx) for client in ctx.cohort)
        if largest == self.rank:
            return after
        old = before.adapter
        kept = {name: _with_rows(layer, old[name]["A"], largest) for name, layer in after.adapter.items()}
        return after.with_adapter(kept)

    def next_form(self, server: ServerState, ctx: RoundContext) -> ServerState:
        """Return how much clients have pruned if none ever does, or each in every round: the bounds of its costs."""
        if not self._prunes or self.bound == "most":
            return server
        pruned = server.memory.globals["pruned"].clone()
        ranks = [self.rank_of(server, client, ctx) for client in ctx.cohort]
        pruned[ctx.cohort] += torch.tensor([rank - self._pruned(rank) for rank in ranks])
        return replace(server, memory=ServerMemory(globals={"pruned": pruned}))

    def aggregate(self, layers: Layers, uploads: Uploads, ctx: RoundContext) -> Layers:
        shares = self._shares(layers, uploads)

        def mean(name: str, field: str, old: Tensor) -> Tensor:
            rows = uploads.stack(name, field, old).double()
            return torch.tensordot(shares[name], rows, dims=1).to(old)

        return {name: layer | {f: mean(name, f, layer[f]) for f in ("A", "B")} for name, layer in layers.items()}

    def _shares(self, layers: Layers, uploads: Uploads) -> dict[str, Float[Tensor, " N"]]:
        """Return pₙ of every layer."""
        norms = {
            name: product_norm(*(uploads.stack(name, field, layer[field]) for field in ("B", "A")))
            for name, layer in layers.items()
        }
        if self.scope == "client":
            norms = dict.fromkeys(layers, torch.linalg.vector_norm(torch.stack(list(norms.values())), dim=0))
        weights = {name: send(uploads.weights, norm.device) for name, norm in norms.items()}
        return {name: _normalised(weights[name] * norm, weights[name]) for name, norm in norms.items()}


def _with_rows(layer: Layer, old_A: Tensor, largest: int) -> Layer:
    """Return a layer with old rows of A beyond a rank, where A and B are both zero."""
    nobody = (layer["A"] == 0).all(dim=1) & (layer["B"] == 0).all(dim=0)
    nobody[:largest] = False
    return {**layer, "A": torch.where(nobody[:, None], old_A, layer["A"])}


def _normalised(shares: Float[Tensor, " N"], otherwise: Float[Tensor, " N"]) -> Float[Tensor, " N"]:
    """Return shares that sum to 1, and what there is otherwise where all are zero."""
    total = shares.sum()
    return torch.where(total > 0, shares / total, otherwise)


def _tail_products(adapters: Layers) -> Float[Tensor, "*C"]:
    """Return Σ ‖B_tail‖ ‖A_tail‖ over layers, of each client where there is a client axis."""

    def norm(factor: Tensor) -> Tensor:
        return torch.linalg.vector_norm(factor, dim=(-2, -1))

    products = [
        norm(layer["B"] * layer["tail"].unsqueeze(-2)) * norm(layer["A"] * layer["tail"].unsqueeze(-1))
        for layer in adapters.values()
    ]
    return torch.stack(products).sum(dim=0)
