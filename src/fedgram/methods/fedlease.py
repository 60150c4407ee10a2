"""FedLEASE: as many LoRA experts as there are kinds of clients (Wang et al., NeurIPS 2025, arXiv 2509.15087).

Symbols: M experts of pairs ``A: (r, d_in)``, ``B: (d_out, r)``; ``R: (2M-1, d_in)`` a cluster's router; N clients.
"""

from dataclasses import replace
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fedgram.adapters import Adapter, ExpertsAdapter, lora_start
from fedgram.distributed.uploads import Uploads
from fedgram.errors import ConfigurationError, require_choice
from fedgram.methods.base import Diagnostics, HeadPolicy, Paper, Phase
from fedgram.methods.context import ClientContext, RoundContext
from fedgram.methods.fields import Field
from fedgram.methods.lora import LoRAMethod
from fedgram.numerics.clustering import cosine_distances, find_clusters
from fedgram.numerics.linalg import relative_change
from fedgram.seeding import torch_generator
from fedgram.state import Layer, Layers, ModelState, Payload, ServerMemory, ServerState

__all__ = ["FedLEASE"]

Mean = Literal["plain", "weighted"]


class FedLEASE(LoRAMethod):
    """Clusters of clients share a LoRA expert each, and use the others' by a router (arXiv 2509.15087).

    Warm-up: every client trains a LoRA of its own; that of its last round is sent, and the server clusters the clients
    by the cosine distance of B, averaged over layers (average linkage, the number by silhouette). Each cluster's expert
    starts as the mean of its members' A and B. From then on a client of cluster j has all M experts, but trains expert
    j and its cluster's router alone: ΔW x = s Σₚ ωₚ B_π(p) A_π(p) x over the M largest of ω = softmax(R x), 2M-1 slots,
    of which M are expert j, so that it always takes part. The server takes the means of both within each cluster.

    A client that is in no cluster, as it was not in the last round of the warm-up, trains its own LoRA once more when
    it next takes part, sends it, and joins the cluster whose expert has the nearest B (a reconstruction; the paper has
    all clients in all rounds). The server's own model, for clients that were never there, is the mean of the experts,
    each counted as often as it has clients. The published code starts each expert from a client's own LoRA and its
    siblings' from B = 0, where the paper has the mean, as here; its classifier stays at its random start, frozen and
    the client's own. A run counts operations of clients as those of the warm-up's LoRA.

    Args:
        warmup_rounds: how many rounds are purely local; 1 in the paper, 5 in its code.
        max_experts: the largest number of clusters that is looked at.
        experts: M, instead of the number with the best silhouette.
        mean: of a cluster: "plain", as in the paper, or "weighted" by the clients' weights.
        renormalise: divide the weights of the chosen slots by their sum, as the published code does, unlike the paper.
        head: "local", the client's own, as in the published code, but trained; "averaged", over all clusters; "frozen".
        common: the settings of `Method`: rank, alpha, target_modules.
    """

    paper = Paper("Wang et al.", 2025, "NeurIPS 2025", "2509.15087")
    travels = "one expert and a router up; all experts and a router down"
    fields = (Field("A", down=False), Field("B", down=False))

    def __init__(
        self,
        *,
        warmup_rounds: int = 1,
        max_experts: int = 4,
        experts: int | None = None,
        mean: Mean = "plain",
        renormalise: bool = False,
        head: HeadPolicy = "local",
        **common: Any,
    ) -> None:
        super().__init__(head=head, **common)
        require_choice("method.mean", mean, Mean)
        for key, value, least in (("warmup_rounds", warmup_rounds, 1), ("max_experts", max_experts, 2)):
            if value < least:
                raise ConfigurationError(f"method.{key} must be at least {least}, got {value}")
        if experts is not None and experts < 1:
            raise ConfigurationError(f"method.experts must be at least 1, or left out, got {experts}")
        self.warmup_rounds = self.settled = warmup_rounds
        self.max_experts = max_experts
        self.experts = experts
        self.unknown = "how many experts there will be" if experts is None else ""
        self.mean = mean
        self.renormalise = renormalise

    @property
    def name(self) -> str:
        marks = ("-weighted" * (self.mean == "weighted"), "-renormalised" * self.renormalise)
        return super().name + "".join(marks)

    def adapter(self, linear: nn.Module, generator: torch.Generator) -> Adapter:
        start = lora_start(linear, self.rank, generator)
        return ExpertsAdapter(linear, self.rank, self.scale, start, self.renormalise)

    def server_start(self, model: ModelState, clients: int) -> ServerMemory:
        """Return the cluster of every client, -1 for none; the experts of each layer follow after the warm-up."""
        return ServerMemory(globals={"cluster": torch.full((clients,), -1)})

    def download(self, server: ServerState, ctx: ClientContext) -> Payload:
        """Return the experts and the router for a client of a cluster, if it did not get them in the last round."""
        common, own = super().download(server, ctx), int(server.memory.globals["cluster"][ctx.client])
        is_sent = own >= 0 and 0 < ctx.last_round < ctx.round.number - 1
        return replace(common, adapter=_experts_of(server.memory.layers, own) if is_sent else {})

    def start(self, held: ModelState, payload: Payload, ctx: ClientContext) -> ModelState:
        """Return all experts and the router, once the client has them; else its LoRA alone."""
        adapters = {
            name: layer | ({"routes": torch.ones_like(layer["A"][0, 0])} if "R" in layer else {})
            for name, layer in held.adapter.items()
        }
        return replace(held, adapter=adapters)

    def pad(self, start: ModelState, server: ServerState, ctx: RoundContext) -> ModelState:
        """Return a client of no cluster with experts and a router of zeros, which its model does without."""
        layers = _experts_of(server.memory.layers, 0)
        if not layers:
            return start
        none = {n: {f: torch.zeros_like(layer[f]) for f in ("As", "Bs", "R")} for n, layer in layers.items()}
        adapters = {
            name: {"routes": torch.zeros_like(layer["A"][0, 0]), **none[name], **layer}
            for name, layer in start.adapter.items()
        }
        return replace(start, adapter=adapters)

    def phases(self, number: int) -> tuple[Phase, ...]:
        if number <= self.warmup_rounds:
            return (Phase(frozenset("AB"), name="warm-up"),)
        return (Phase(frozenset("ABR"), name="experts"),)

    def upload(self, start: ModelState, trained: ModelState, ctx: ClientContext) -> Payload:
        """Return expert and router; of a client in no cluster its LoRA, from the last round of the warm-up on."""
        common, adapters = super().upload(start, trained, ctx), trained.adapter
        if ctx.round.number < self.warmup_rounds:
            return replace(common, adapter={})
        sent = {name: {f: layer[f] for f in "ABR" if f in layer} for name, layer in adapters.items()}
        return replace(common, adapter=sent)

    def receive(self, server: ServerState, payload: Payload, ctx: ClientContext) -> Payload:
        """Return what a client sent, with zeros for the router of one that has none: its cluster is found first."""
        routers = {name: {"R": torch.zeros_like(layer["R"][0])} for name, layer in server.memory.layers.items()}
        sent = payload.adapter
        return replace(payload, adapter={name: {**routers.get(name, {}), **layer} for name, layer in sent.items()})

    def next_state(self, server: ServerState, adapters: Uploads, heads: Uploads, ctx: RoundContext) -> ServerState:
        """Return the next experts, routers and clusters, and the mean of the experts as the server's own model."""
        memory = server.memory
        if ctx.number >= self.warmup_rounds:
            step = self._next if memory.layers else self._first
            memory = step(server.adapter, memory, adapters, ctx)
        return ServerState(ModelState(_mean_model(server.adapter, memory), self.next_head(server.head, heads)), memory)

    def aggregate(self, layers: Layers, uploads: Uploads, ctx: RoundContext) -> Layers:
        """Return the server's own model as it is; `next_state` makes it of the experts."""
        return layers

    def _first(self, layers: Layers, memory: ServerMemory, uploads: Uploads, ctx: RoundContext) -> ServerMemory:
        """Cluster the clients, and return the first experts: Aⱼ and Bⱼ are the means of Aₙ and Bₙ over cluster j."""
        Bs = [uploads.stack(name, "B", layer["B"]) for name, layer in layers.items()]
        labels = torch.from_numpy(find_clusters(cosine_distances(Bs, Bs), self.max_experts, self.experts))
        M = int(labels.max()) + 1
        cluster = memory.globals["cluster"].clone()
        cluster[uploads.clients] = labels.to(cluster)
        found: Layers = {}
        for name, layer in layers.items():
            none = {f: t.new_zeros(M, *t.shape) for f, t in layer.items()}
            router = _router(layer["A"], M, torch_generator(ctx.seed, f"router of {name}"))
            found[name] = {**self._means(name, none, uploads, labels), "R": router.expand(M, -1, -1).clone()}
        return ServerMemory(found, {"cluster": cluster})

    def next_form(self, server: ServerState, ctx: RoundContext) -> ServerState:
        """Return experts and routers from the end of the warm-up on; the clusters of clients are of one form."""
        memory, layers = server.memory, server.adapter
        if ctx.number < self.warmup_rounds:
            return server
        cluster = memory.globals["cluster"].clone()
        cluster[ctx.cohort] = cluster[ctx.cohort].clamp(min=0)
        M = self._count(len(ctx.last_rounds))
        experts = memory.layers or {
            name: {f: t.new_empty(M, *t.shape) for f, t in layer.items()}
            | {"R": layer["A"].new_empty(M, 2 * M - 1, layer["A"].shape[1])}
            for name, layer in layers.items()
        }
        return replace(server, memory=ServerMemory(experts, {"cluster": cluster}))

    def _count(self, cohort: int) -> int:
        """Return how many experts a cohort of some clients makes, at least or at most (see `find_clusters`)."""
        if self.experts is not None:
            return min(self.experts, cohort)
        most = min(self.max_experts, cohort - 1)
        return max(1, most if self.bound == "most" else min(2, most))

    def _next(self, layers: Layers, memory: ServerMemory, uploads: Uploads, ctx: RoundContext) -> ServerMemory:
        """Return the means of experts and routers over their clusters, and the clusters with those who join one."""
        cluster, cohort = memory.globals["cluster"].clone(), torch.tensor(uploads.clients)
        labels = cluster.cpu()[cohort]
        experts = memory.layers
        found = {name: self._means(name, layer, uploads, labels) for name, layer in experts.items()}
        if (labels < 0).any():
            sent = [uploads.stack(name, "B", layer["B"][0])[(labels < 0).tolist()] for name, layer in experts.items()]
            nearest = cosine_distances(sent, [layer["B"] for layer in experts.values()]).argmin(axis=1)
            cluster[cohort[labels < 0]] = torch.from_numpy(nearest).to(cluster)
        return ServerMemory(found, {"cluster": cluster})

    def _means(self, name: str, old: Layer, uploads: Uploads, labels: Tensor) -> Layer:
        """Return Σₙ wₙ Xₙ / Σₙ wₙ over the clients of each cluster; what it was where none of them was there."""
        weights = uploads.weights if self.mean == "weighted" else torch.ones(len(labels), dtype=torch.float64)
        shares = weights * (labels == torch.arange(len(old["A"])).unsqueeze(1))  # (M, N)
        total = shares.sum(dim=1, keepdim=True)
        shares = torch.where(total > 0, shares / total, 0)

        def mean(field: str, before: Float[Tensor, "M ..."]) -> Float[Tensor, "M ..."]:
            stack = uploads.stack(name, field, before[0])
            found = (shares.to(stack.device) @ stack.double().flatten(1)).reshape(before.shape).to(before)
            there = (total > 0).to(stack.device).reshape(-1, *[1] * (before.ndim - 1))
            return torch.where(there, found, before)

        return {field: mean(field, before) for field, before in old.items()}

    def answer(self, server: ServerState, ctx: ClientContext) -> Payload | None:
        """Return all experts, the client's own first, and its cluster's router; nothing during the warm-up."""
        if ctx.round.number < self.warmup_rounds:
            return None
        own = int(server.memory.globals["cluster"][ctx.client])
        return Payload(_experts_of(server.memory.layers, own))

    def diagnose(self, before: Layers, after: Layers, uploads: Uploads) -> Diagnostics:
        """Return ‖Aᵗ⁺¹ - Aᵗ‖/‖Aᵗ‖ of the mean of the experts, per layer."""
        return {name: {"drift": float(relative_change(layer["A"], after[name]["A"]))} for name, layer in before.items()}


def _experts_of(experts: Layers, own: int) -> Layers:
    """Return what a client of a cluster has: its expert, the others in their order, and its router.

    As its own expert is the first one, no number of a cluster has to travel.
    """

    def others(tensor: Tensor) -> Tensor:
        return torch.cat([tensor[:own], tensor[own + 1 :]])

    return {
        name: {
            "A": layer["A"][own],
            "B": layer["B"][own],
            "As": others(layer["A"]),
            "Bs": others(layer["B"]),
            "R": layer["R"][own],
        }
        for name, layer in experts.items()
    }


def _router(A: Float[Tensor, "r d_in"], experts: int, generator: torch.Generator) -> Float[Tensor, "2M-1 d_in"]:
    """Draw a router's start, uniform in ±1/√d_in (Kaiming with a = √5)."""
    bound = A.shape[1] ** -0.5
    return torch.empty(2 * experts - 1, A.shape[1]).uniform_(-bound, bound, generator=generator).to(A)


def _mean_model(layers: Layers, memory: ServerMemory) -> Layers:
    """Return the mean of the experts, each counted as often as it has clients; the start during the warm-up."""
    experts = memory.layers
    if not experts:
        return layers
    cluster = memory.globals["cluster"]
    sizes = torch.bincount(cluster[cluster >= 0]).double()
    shares = sizes / sizes.sum()
    return {
        name: {f: torch.tensordot(shares.to(t.device), experts[name][f].double(), 1).to(t) for f, t in layer.items()}
        for name, layer in layers.items()
    }
