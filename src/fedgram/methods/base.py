"""The contract of a federated method.

A method is one class in one file. It answers three questions: what an adapter is (`Method.adapter`), what travels
(`Method.fields`), and how the server aggregates (`Method.aggregate`). The trainer, the ledger, the checkpoint and the
collectives know methods only through this class.
"""

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from fedgram.adapters import Adapter, ClientLayer, find_targets, swap, swap_heads
from fedgram.adapters.base import layer_sizes
from fedgram.errors import ConfigurationError, require_choice
from fedgram.seeding import torch_generator
from fedgram.state import Layers, State
from fedgram.uploads import Uploads, average

__all__ = ["Diagnostics", "Field", "HeadPolicy", "Method", "RoundInfo", "select"]

HeadPolicy = Literal["averaged", "local", "frozen"]
Diagnostics = dict[str, dict[str, float]]
"""Figures about one aggregation: layer -> name -> value."""


@dataclass(frozen=True)
class Field:
    """A tensor of every adapted layer.

    Attributes:
        name: its symbol, the key in the adapter's tensors.
        down: whether the server sends it to the clients of the cohort; else they hold what the seed gave them.
        up: whether the clients send it back.
        trained: whether the clients train it; else it only takes part in the forward pass.
        shared: whether all clients hold the same and none changes it: it is kept once, beside the frozen weights.
    """

    name: str
    down: bool = True
    up: bool = True
    trained: bool = True
    shared: bool = False

    @property
    def kept(self) -> bool:
        """Whether it stays with the client from round to round: it is trained, and nothing comes to replace it."""
        return self.trained and not self.down


@dataclass(frozen=True)
class RoundInfo:
    """What a method may know of a round besides tensors.

    Attributes:
        number: 1 for the first.
        seed: the seed of the run, from which a method derives what it draws (see `fedgram.seeding`).
        last: every client of the cohort, with the last round that it took part in; 0 if there was none.
    """

    number: int
    seed: int
    last: Mapping[int, int]

    def is_new(self, client: int) -> bool:
        """Say whether a client takes part for the first time."""
        return self.last[client] == 0

    def is_up_to_date(self, client: int) -> bool:
        """Say whether a client has missed no round since the first."""
        return self.last[client] == self.number - 1


class Method(ABC):
    """A federated low-rank fine-tuning method.

    Args:
        rank: r, the rank of the adapters.
        alpha: the adapter's output is scaled by alpha / rank.
        target_modules: ends of the names of the layers to adapt, such as [query, value]; by default the query and value
            projections of the architecture.
        head: what happens to the task's output layer: "averaged" (trained by the clients and averaged by the server),
            "local" (trained by each client for itself, and never sent) or "frozen" (left as it is).
    """

    fields: tuple[Field, ...]

    def __init__(
        self,
        rank: int = 4,
        alpha: float = 16.0,
        target_modules: list[str] | None = None,
        head: HeadPolicy = "averaged",
    ) -> None:
        if rank < 1:
            raise ConfigurationError(f"method.rank must be at least 1, got {rank}")
        if alpha <= 0:
            raise ConfigurationError(f"method.alpha must be positive, got {alpha}")
        require_choice("method.head", head, HeadPolicy)
        self.rank = rank
        self.alpha = alpha
        self.target_modules = target_modules
        self.head = head

    @property
    def frozen_fields(self) -> frozenset[str]:
        """The fields that clients hold and do not train."""
        return frozenset(field.name for field in self.fields if not field.trained)

    @property
    def shared_fields(self) -> frozenset[str]:
        """The fields that all clients hold in common."""
        return frozenset(field.name for field in self.fields if field.shared)

    @property
    def personal(self) -> bool:
        """Whether clients keep tensors of their own, so that each has its own model."""
        return self.head == "local" or any(field.kept for field in self.fields)

    @property
    def name(self) -> str:
        """The method's name in tables and plots."""
        return type(self).__name__

    @property
    def scale(self) -> float:
        """The factor s in front of the low-rank product."""
        return self.alpha / self.rank

    @abstractmethod
    def adapter(self, linear: nn.Module, generator: torch.Generator) -> Adapter:
        """Return the adapter that replaces a layer of the backbone.

        Args:
            linear: the frozen layer.
            generator: for what is drawn for this layer, the same on every rank.
        """

    def install(self, backbone: nn.Module, seed: int) -> dict[str, ClientLayer]:
        """Put an adapter on every target layer of a backbone, and weights per client into its head.

        Returns:
            The layers that now hold tensors per client, by dotted name, in the order of the backbone.

        Raises:
            ConfigurationError: a target that matches nothing, or a rank that exceeds a layer.
        """

        def make(name: str, linear: nn.Module) -> ClientLayer:
            k = min(layer_sizes(linear))
            if self.rank > k:
                raise ConfigurationError(
                    f"method.rank must be at most min(d_in, d_out) = {k} of {name}, got {self.rank}"
                )
            return self.adapter(linear, torch_generator(seed, f"adapter of {name}"))

        swap(backbone, find_targets(backbone, self.target_modules), make)
        if self.head != "frozen":
            swap_heads(backbone)
        return {name: module for name, module in backbone.named_modules() if isinstance(module, ClientLayer)}

    def download(self, layers: Layers, client: int, info: RoundInfo) -> Layers:
        """Return what the server sends to one client of the cohort: the fields that are marked as going down."""
        return select(layers, [f.name for f in self.fields if f.down])

    def upload(self, layers: Layers, client: int, info: RoundInfo) -> Layers:
        """Return what one client sends back after training: the fields that are marked as going up."""
        return select(layers, [f.name for f in self.fields if f.up])

    @abstractmethod
    def aggregate(self, layers: Layers, uploads: Uploads, info: RoundInfo) -> Layers:
        """Return the server's next tensors, from its present ones and the cohort's uploads.

        Runs on every rank and must give the same bits on each: all that it sees is equal on all ranks.
        """

    def diagnose(self, before: Layers, after: Layers, uploads: Uploads) -> Diagnostics:
        """Return figures about an aggregation, per layer; none by default."""
        return {}

    def payload_down(self, server: State, client: int, info: RoundInfo) -> State:
        """Return all that the server sends to a client: the adapter's fields, and the head where it is averaged."""
        head = server["head"] if self.head == "averaged" else {}
        return {"adapter": self.download(server["adapter"], client, info), "head": head}

    def payload_up(self, trained: State, client: int, info: RoundInfo) -> State:
        """Return all that a client sends to the server."""
        head = trained["head"] if self.head == "averaged" else {}
        return {"adapter": self.upload(trained["adapter"], client, info), "head": head}

    def kept(self, trained: State) -> State:
        """Return what stays with a client until it takes part again."""
        head = trained["head"] if self.head == "local" else {}
        fields = [f.name for f in self.fields if f.kept]
        return {"adapter": select(trained["adapter"], fields) if fields else {}, "head": head}

    def next_head(self, head: Layers, uploads: Uploads) -> Layers:
        """Return the server's next head: the weighted mean of the clients' where it is averaged."""
        return average(head, uploads) if self.head == "averaged" else head

    def without_shared(self, state: State) -> State:
        """Return a state without the fields that all clients hold in common."""
        adapters = state["adapter"]
        own = {n: {f: t for f, t in layer.items() if f not in self.shared_fields} for n, layer in adapters.items()}
        return {**state, "adapter": own}


def select(layers: Layers, fields: Collection[str]) -> Layers:
    """Return some fields of every layer."""
    return {name: {field: layer[field] for field in fields} for name, layer in layers.items()}
