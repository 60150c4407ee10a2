"""FL-TAC: adapters are clustered by task, and averaged inside their cluster (Ping et al., arXiv 2404.15384).

Symbols: vₖ the tensors that client k sends; K clients of a round.
"""

from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from fedgram.clustering import k_means
from fedgram.errors import ConfigurationError, require_choice
from fedgram.linalg import relative_change
from fedgram.methods.base import Diagnostics, Paper, RoundInfo
from fedgram.methods.fields import Field, select
from fedgram.methods.lora import LoRAMethod
from fedgram.seeding import derive
from fedgram.state import Layer, Layers, State
from fedgram.uploads import Uploads, average

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
        if clusters < 1:
            raise ConfigurationError(f"method.clusters must be at least 1, got {clusters}")
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

    def payload_down(self, server: State, client: int, info: RoundInfo) -> State:
        """Return nothing, but the mean of all for a client that comes later than in the first round."""
        if not info.is_new(client):
            return {"adapter": {}, "head": {}}
        head = server["head"] if self.head == "averaged" else {}
        return {"adapter": select(server["adapter"], ("A", "B")), "head": head}

    def kept(self, trained: State) -> State:
        """Return the whole model of the client."""
        return {**super().kept(trained), "head": trained["head"]}

    def aggregate(self, layers: Layers, uploads: Uploads, info: RoundInfo) -> Layers:
        return average(layers, uploads)

    def next_state(self, server: State, adapters: Uploads, heads: Uploads, info: RoundInfo) -> State:
        sent = {"adapter": adapters, "head": heads} if self.head == "averaged" else {"adapter": adapters}
        found = torch.tensor(self._cluster(server, sent, info))
        memory: Layers = {"": {"cluster": found}}
        for part, uploads in sent.items():
            memory |= {name: self._means(name, layer, uploads, found) for name, layer in server[part].items()}
        return {**super().next_state(server, adapters, heads, info), "server": memory}

    def next_form(self, server: State, info: RoundInfo) -> State:
        """Return the means of clients that differ: of equal ones there are fewer clusters, which changes no payload."""
        clusters = min(self.clusters, len(info.last))
        parts = ("adapter", "head") if self.head == "averaged" else ("adapter",)
        layers = {name: layer for part in parts for name, layer in server[part].items()}
        means = {name: {f: t.new_empty(clusters, *t.shape) for f, t in layer.items()} for name, layer in layers.items()}
        return {**server, "server": {"": {"cluster": torch.zeros(len(info.last), dtype=torch.int64)}, **means}}

    def _cluster(self, server: State, sent: dict[str, Uploads], info: RoundInfo) -> list[int]:
        """Return the cluster of each client of the cohort."""
        cohort = len(info.cohort)
        if cohort <= self.clusters:
            return list(range(cohort))
        gram = sum(
            inner_products(uploads.stack(name, field, tensor))
            for part, uploads in sent.items()
            for name, layer in server[part].items()
            for field, tensor in layer.items()
            if self._is_compared(part, field)
        )
        return k_means(torch.as_tensor(gram), self.clusters, derive(info.seed, "clusters", info.number))

    def _is_compared(self, part: str, field: str) -> bool:
        return self.cluster_on == "all" or (part == "adapter" and (self.cluster_on == "adapter" or field == "B"))

    def _means(self, name: str, layer: Layer, uploads: Uploads, found: Tensor) -> Layer:
        """Return the mean of each cluster, (clusters, ...), of one layer."""
        weights = torch.ones_like(uploads.weights) if self.mean == "plain" else uploads.weights

        def mean(field: str, members: Tensor) -> Tensor:
            rows, own = uploads.stack(name, field, layer[field]), weights[members] / weights[members].sum()
            return torch.tensordot(own.to(rows.device), rows[members.to(rows.device)].double(), dims=1)

        groups = [(found == cluster).nonzero().squeeze(1) for cluster in range(int(found.max()) + 1)]
        return {f: torch.stack([mean(f, members) for members in groups]).to(tensor) for f, tensor in layer.items()}

    def answer(self, server: State, client: int, info: RoundInfo) -> State:
        """Return the mean of the client's cluster."""
        memory = server["server"]
        cluster = int(memory[""]["cluster"][info.cohort.index(client)])

        def own(layers: Layers) -> Layers:
            return {name: {f: means[cluster] for f, means in memory[name].items()} for name in layers}

        return {"adapter": own(server["adapter"]), "head": own(server["head"]) if self.head == "averaged" else {}}

    def diagnose(self, before: Layers, after: Layers, uploads: Uploads) -> Diagnostics:
        """Return ‖Āᵗ⁺¹ - Āᵗ‖/‖Āᵗ‖ of the mean A of all, per layer; there is no global ΔW to be off from."""
        return {name: {"drift": float(relative_change(layer["A"], after[name]["A"]))} for name, layer in before.items()}

    def figures(self, server: State) -> dict[str, float]:
        """Return how many clusters were found, and how many clients the largest and the smallest have."""
        sizes = server["server"][""]["cluster"].bincount().tolist()
        return {"clusters": len(sizes), "largest_cluster": max(sizes), "smallest_cluster": min(sizes)}


def inner_products(rows: Float[Tensor, "K ..."]) -> Float[Tensor, "K K"]:
    """Return the inner products of K tensors with their mean taken out: what they have in common tells none apart."""
    X = rows.double().flatten(1)
    X = X - X.mean(dim=0)
    return X @ X.mT
