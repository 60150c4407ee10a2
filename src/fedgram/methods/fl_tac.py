"""FL-TAC: adapters are clustered by task, and averaged inside their cluster (Ping et al., arXiv 2404.15384).

Symbols: vₖ the tensors that client k sends; K clients of a round.
"""

from dataclasses import replace
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from fedgram.distributed.uploads import Uploads, average
from fedgram.errors import require_choice
from fedgram.methods.base import Diagnostics, Paper
from fedgram.methods.context import ClientContext, RoundContext
from fedgram.methods.fields import Field, select
from fedgram.methods.lora import LoRAMethod
from fedgram.numerics.clustering import k_means
from fedgram.numerics.linalg import relative_change
from fedgram.seeding import derive
from fedgram.settings import check
from fedgram.state import Layer, Layers, ModelState, Payload, ServerMemory, ServerState, map_layers

__all__ = ["FLTAC"]

ClusterOn = Literal["adapter", "B", "all"]
Mean = Literal["plain", "weighted"]


class FLTAC(LoRAMethod):
    """k-means finds which clients have one task, without being told, and averages their adapters (arXiv 2404.15384).

    vₖ = (Aₖ, Bₖ, head); clusters V₁, V₂, … of all vₖ, anew in every round; each client of Vⱼ is sent its mean,
    Σ_{k∈Vⱼ} vₖ / |Vⱼ|, and keeps it. Where no more clients take part than there are clusters, each keeps its own vₖ.

    In the paper a client has several tasks and an adapter for each, which it sends without saying of which task it is.
    Here a client stands for one such pair of client and task: one with three tasks is three. All start with one v,
    which comes from the seed. The paper's clients all take part in every round; one that comes later than in the first
    is sent the mean of all, and one that is absent keeps what it has.

    Args:
        clusters: the number of tasks, which must be known.
        cluster_on: what k-means compares: the "adapter", "B" alone (A and the head are mostly what they started as, and
            the noise of their training may be larger than what a task does to B), or "all", with the head where that is
            sent, as the published code has it.
        mean: inside clusters: "plain", as in the paper, or "weighted" by `trainer.client_weights`, as the published
            code has it.
        common: the settings of `Method`: rank, alpha, target_modules, and head, which is averaged inside clusters where
            it is "averaged".
    """

    paper = Paper("Ping et al.", 2024, "ICLR 2024 workshop on LLM agents", "2404.15384")
    travels = "A and B both ways"
    fields = (Field("A", down=False), Field("B", down=False))

    def __init__(
        self, *, clusters: int = 3, cluster_on: ClusterOn = "adapter", mean: Mean = "plain", **common: Any
    ) -> None:
        super().__init__(**common)
        check("method.clusters", clusters, at_least=1)
        require_choice("method.cluster_on", cluster_on, ClusterOn)
        require_choice("method.mean", mean, Mean)
        self.clusters = clusters
        self.cluster_on = cluster_on
        self.mean = mean

    @property
    def name(self) -> str:
        usual = {"cluster_on": "adapter", "mean": "plain"}
        return "-".join(
            [super().name, *(getattr(self, key) for key, value in usual.items() if getattr(self, key) != value)]
        )

    def download(self, server: ServerState, ctx: ClientContext) -> Payload:
        """Return nothing, but the mean of all for a client that comes later than in the first round."""
        if not ctx.is_new:
            return Payload()
        head = server.head if self.head == "averaged" else {}
        return Payload(select(server.adapter, ("A", "B")), head)

    def kept(self, trained: ModelState) -> ModelState:
        """Return the whole model of the client."""
        return replace(super().kept(trained), head=trained.head)

    def aggregate(self, layers: Layers, uploads: Uploads, ctx: RoundContext) -> Layers:
        return average(layers, uploads)

    def next_state(self, server: ServerState, adapters: Uploads, heads: Uploads, ctx: RoundContext) -> ServerState:
        cluster = torch.tensor(self._cluster(server, adapters, heads, ctx))
        means = {name: self._means(name, layer, adapters, cluster) for name, layer in server.adapter.items()}
        if self.head == "averaged":
            means |= {name: self._means(name, layer, heads, cluster) for name, layer in server.head.items()}
        after = super().next_state(server, adapters, heads, ctx)
        return replace(after, memory=ServerMemory(means, {"cluster": cluster}))

    def next_form(self, server: ServerState, ctx: RoundContext) -> ServerState:
        """Return the means of clients that differ: of equal ones there are fewer clusters, which changes no payload."""
        clusters = min(self.clusters, len(ctx.last_rounds))
        layers = server.adapter | (server.head if self.head == "averaged" else {})
        means = map_layers(layers, lambda tensor: tensor.new_empty(clusters, *tensor.shape))
        cluster = torch.zeros(len(ctx.last_rounds), dtype=torch.int64)
        return replace(server, memory=ServerMemory(means, {"cluster": cluster}))

    def _cluster(self, server: ServerState, adapters: Uploads, heads: Uploads, ctx: RoundContext) -> list[int]:
        """Return the cluster of each client of the cohort."""
        cohort = len(ctx.cohort)
        if cohort <= self.clusters:
            return list(range(cohort))
        compared = [
            (adapters, name, field, tensor)
            for name, layer in server.adapter.items()
            for field, tensor in layer.items()
            if self.cluster_on != "B" or field == "B"
        ]
        if self.cluster_on == "all" and self.head == "averaged":
            compared += [(heads, name, f, tensor) for name, layer in server.head.items() for f, tensor in layer.items()]
        gram = sum(inner_products(uploads.stack(name, f, tensor)) for uploads, name, f, tensor in compared)
        return k_means(torch.as_tensor(gram), self.clusters, derive(ctx.seed, "clusters", ctx.number))

    def _means(self, name: str, layer: Layer, uploads: Uploads, found: Tensor) -> Layer:
        """Return the mean of each cluster, (clusters, ...), of one layer."""
        weights = torch.ones_like(uploads.weights) if self.mean == "plain" else uploads.weights

        def mean(field: str, members: Tensor) -> Tensor:
            rows, own = uploads.stack(name, field, layer[field]), weights[members] / weights[members].sum()
            return torch.tensordot(own.to(rows.device), rows[members.to(rows.device)].double(), dims=1)

        groups = [(found == cluster).nonzero().squeeze(1) for cluster in range(int(found.max()) + 1)]
        return {f: torch.stack([mean(f, members) for members in groups]).to(tensor) for f, tensor in layer.items()}

    def answer(self, server: ServerState, ctx: ClientContext) -> Payload:
        """Return the mean of the client's cluster."""
        memory = server.memory
        cluster = int(memory.globals["cluster"][ctx.round.cohort.index(ctx.client)])

        def own(layers: Layers) -> Layers:
            return {name: {f: means[cluster] for f, means in memory.layers[name].items()} for name in layers}

        return Payload(own(server.adapter), own(server.head) if self.head == "averaged" else {})

    def diagnose(self, before: Layers, after: Layers, uploads: Uploads) -> Diagnostics:
        """Return ‖Āᵗ⁺¹ - Āᵗ‖/‖Āᵗ‖ of the mean A of all, per layer; there is no global ΔW to be off from."""
        return {name: {"drift": float(relative_change(layer["A"], after[name]["A"]))} for name, layer in before.items()}

    def figures(self, server: ServerState) -> dict[str, float]:
        """Return how many clusters were found, and how many clients the largest and the smallest have."""
        sizes = server.memory.globals["cluster"].bincount().tolist()
        return {"clusters": len(sizes), "largest_cluster": max(sizes), "smallest_cluster": min(sizes)}


def inner_products(rows: Float[Tensor, "K ..."]) -> Float[Tensor, "K K"]:
    """Return the inner products of K tensors with their mean taken out: what they have in common tells none apart."""
    X = rows.double().flatten(1)
    X = X - X.mean(dim=0)
    return X @ X.mT
