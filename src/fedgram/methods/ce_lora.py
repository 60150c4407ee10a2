"""CE-LoRA: three matrices, of which the small one travels (Li et al., arXiv 2503.23869).

Symbols: ``A: (r, d_in)``, ``C: (r, r)``, ``B: (d_out, r)``; K clients of a round; S and ω of shape (K, K).
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from fedgram.adapters import Adapter, TriAdapter, tri_start
from fedgram.distributed.uploads import Uploads, average
from fedgram.errors import ConfigurationError, require_choice
from fedgram.methods.base import Diagnostics, HeadPolicy, Method, Paper
from fedgram.methods.context import ClientContext, RoundContext
from fedgram.methods.fields import Field, select
from fedgram.numerics.linalg import cosines, linear_cka, relative_change
from fedgram.numerics.mixtures import describe_classes, distances, read_classes
from fedgram.state import Layer, Layers, ModelState, Payload, ServerMemory, ServerState

__all__ = ["CELoRA"]

Similarity = Literal["model", "data", "both"]
Measure = Literal["cka", "cosine"]


class CELoRA(Method):
    """Each client has its own A and B, and is sent a mean of the clients' C that are like its own (arXiv 2503.23869).

    ΔWₖ = s Bₖ Cₖ Aₖ and C̄ₖ = Σₗ ωₖₗ Cₗ, with ωₖ = softmax(Sₖ/τ) and S = β S_data + (1-β) S_model, so that r² numbers
    of a layer go each way; the client goes on from (Aₖ, C̄ₖ, Bₖ). All start with one A, C = I and B = 0. S_model is the
    CKA of Cₖ and Cₗ, the mean over layers. For S_data = exp(-D/median D) every client tells the server once, before the
    first round, about its data: a mixture of Gaussians of each class, of the pretrained backbone's mean hidden states.
    D is what it costs to move one client's data into another's (`fedgram.numerics.mixtures`). That takes the backbone
    one pass over the training data, which is not among a run's operations, and the server N²/2 transport problems.

    A reconstruction: of the published code the client is there and the server is not, so that S, its measures, β and τ
    are hypotheses. The code takes the first token's vector, and leaves out classes of one sample; mixtures tell the
    server class counts and means, which is a cost in privacy. A client that comes after the first round is sent the
    plain mean of the last C (the paper has all take part). ω knows nothing of client_weights; that mean does.

    Args:
        similarity: what makes clients alike: their C ("model"), their "data", or "both".
        measure: how alike two C are: linear "cka" with rows as samples, or the "cosine" of C - I. CKA of r = 1 is 0.
        beta: β, the share of the data in "both".
        temperature: τ; the lower it is, the more a client listens to those most alike, itself among them.
        components: the most Gaussians of a class.
        init_std: standard deviation of the entries of the first A.
        head: "local", trained by each client for itself and never sent; "averaged" (trained, and averaged by the
            server); or "frozen".
        common: the settings of `Method`: rank, alpha, target_modules.
    """

    paper = Paper("Li et al.", 2025, "IEEE Transactions on Multimedia 2026", "2503.23869")
    travels = "C both ways; Gaussian mixtures of the data up, once"
    fields = (Field("A", down=False, up=False), Field("B", down=False, up=False), Field("C", down=False))

    def __init__(
        self,
        *,
        similarity: Similarity = "both",
        measure: Measure = "cka",
        beta: float = 0.5,
        temperature: float = 0.1,
        components: int = 3,
        init_std: float = 1e-3,
        head: HeadPolicy = "local",
        **common: Any,
    ) -> None:
        super().__init__(head=head, **common)
        require_choice("method.similarity", similarity, Similarity)
        require_choice("method.measure", measure, Measure)
        if not 0 <= beta <= 1:
            raise ConfigurationError(f"method.beta must be a share from 0 to 1, got {beta}")
        for name, value in {"temperature": temperature, "components": components, "init_std": init_std}.items():
            if not 0 < value < math.inf:
                raise ConfigurationError(f"method.{name} must be positive, got {value}")
        self.similarity = similarity
        self.measure = measure
        self.beta = {"model": 0.0, "data": 1.0, "both": beta}[similarity]
        self.temperature = temperature
        self.components = components
        self.init_std = init_std
        self.describes_data = similarity != "model"
        self.unknown = "how many classes and samples each client has" if self.describes_data else ""

    @property
    def name(self) -> str:
        usual = {"similarity": "both", "measure": "cka"}
        return "-".join(
            [super().name, *(getattr(self, key) for key, value in usual.items() if getattr(self, key) != value)]
        )

    def adapter(self, linear: nn.Module, generator: torch.Generator) -> Adapter:
        return TriAdapter(linear, self.rank, self.scale, tri_start(linear, self.rank, self.init_std, generator))

    def server_start(self, model: ModelState, clients: int) -> ServerMemory:
        """Return no distances between clients, as long as nobody has told about its data."""
        none = {"distance": torch.zeros(clients, clients, dtype=torch.float64)}
        return ServerMemory(globals=none if self.describes_data else {})

    def describe(self, features: Float[Tensor, "n d"], labels: Tensor, client: int, seed: int) -> Layer:
        classes = labels.numpy() if labels.ndim == 1 and not labels.is_floating_point() else np.zeros(len(labels), int)
        return describe_classes(features.numpy(), classes, self.components, seed, client)

    def read_descriptions(self, server: ServerState, descriptions: Mapping[int, Layer]) -> ServerMemory:
        found = distances([read_classes(descriptions[client]) for client in sorted(descriptions)])
        return ServerMemory(globals={"distance": torch.from_numpy(found)})

    def download(self, server: ServerState, ctx: ClientContext) -> Payload:
        """Return nothing of the adapters, but the mean C for a client that comes later than in the first round."""
        return replace(super().download(server, ctx), adapter=select(server.adapter, ("C",)) if ctx.is_new else {})

    def aggregate(self, layers: Layers, uploads: Uploads, ctx: RoundContext) -> Layers:
        return average(layers, uploads, {"C"})

    def next_state(self, server: ServerState, adapters: Uploads, heads: Uploads, ctx: RoundContext) -> ServerState:
        layers = server.adapter
        Cs = {name: adapters.stack(name, "C", layer["C"]).double() for name, layer in layers.items()}
        known = server.memory.globals
        weights = self._weights(list(Cs.values()), known.get("distance"), ctx.cohort)
        means = {name: torch.einsum("kl,lij->kij", weights, C).to(layers[name]["C"]) for name, C in Cs.items()}
        memory = ServerMemory({name: {"C": mean} for name, mean in means.items()}, {**known, "weights": weights})
        return replace(super().next_state(server, adapters, heads, ctx), memory=memory)

    def next_form(self, server: ServerState, ctx: RoundContext) -> ServerState:
        K = len(ctx.last_rounds)
        weights = torch.empty(K, K, dtype=torch.float64)
        means = {name: {"C": layer["C"].new_empty(K, *layer["C"].shape)} for name, layer in server.adapter.items()}
        return replace(server, memory=ServerMemory(means, {**server.memory.globals, "weights": weights}))

    def _weights(
        self, Cs: list[Float[Tensor, "K r r"]], distance: Float[Tensor, "N N"] | None, cohort: list[int]
    ) -> Float[Tensor, "K K"]:
        """Return ω: how much each client of the cohort listens to each."""
        S = (1 - self.beta) * torch.stack([self._alike(C) for C in Cs]).mean(dim=0)
        if distance is not None:
            S = S + self.beta * closeness(distance)[cohort][:, cohort].to(S.device)
        return (S / self.temperature).softmax(dim=1)

    def _alike(self, C: Float[Tensor, "K r r"]) -> Float[Tensor, "K K"]:
        return linear_cka(C) if self.measure == "cka" else cosines(C - torch.eye(self.rank).to(C))

    def answer(self, server: ServerState, ctx: ClientContext) -> Payload:
        """Return the client's own mean, C̄ₖ."""
        row = ctx.round.cohort.index(ctx.client)
        own = {name: {"C": layer["C"][row]} for name, layer in server.memory.layers.items()}
        return Payload(own)

    def diagnose(self, before: Layers, after: Layers, uploads: Uploads) -> Diagnostics:
        """Return ‖Cᵗ⁺¹ - Cᵗ‖/‖Cᵗ‖ of the mean C per layer; there is no global ΔW to be off from."""
        return {name: {"drift": float(relative_change(layer["C"], after[name]["C"]))} for name, layer in before.items()}

    def figures(self, server: ServerState) -> dict[str, float]:
        """Return the mean weight that a client gives to itself: 1/K where all are alike."""
        return {"own_weight": float(server.memory.globals["weights"].diagonal().mean())}


def closeness(distance: Float[Tensor, "N N"]) -> Float[Tensor, "N N"]:
    """Return exp(-D/median D), the median over pairs of clients; 1 where no two differ."""
    first, second = torch.triu_indices(len(distance), len(distance), 1, device=distance.device)
    median = distance[first, second].quantile(0.5) if len(first) else distance.new_zeros(())
    return torch.where(median > 0, torch.exp(-distance / median.clamp(min=torch.finfo(distance.dtype).tiny)), 1.0)
