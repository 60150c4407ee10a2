"""Named tensors: what the server holds, what travels, and what a client trains.

The tensors of a model are those of its adapters and of its head, each by layer (its dotted name in the backbone) and
field (the symbol of the paper, such as ``"A"``). This module has the types for them, and pure functions on them.
"""

import hashlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = [
    "PARTS",
    "Layer",
    "Layers",
    "Layout",
    "ModelState",
    "Payload",
    "ServerMemory",
    "ServerState",
    "all_finite",
    "bytes_of",
    "flatten",
    "map_layers",
    "merge",
    "parameters_of",
    "prefix",
    "send",
    "split",
    "stack",
    "state_hash",
    "tensor_hash",
    "tensors_of",
    "to",
    "unflatten",
    "unflatten_server",
    "without",
    "without_numbers",
]

Layer = dict[str, Tensor]
"""The tensors of one layer, by field."""
Layers = dict[str, Layer]
"""The tensors of one part of the model, by layer."""

PARTS = ("adapter", "head")
"""The parts of a model, as tables and checkpoints name them."""


def map_layers(layers: Layers, compute: Callable[[Tensor], Tensor]) -> Layers:
    """Return layers with a function of every tensor in its place."""
    return {name: {field: compute(tensor) for field, tensor in layer.items()} for name, layer in layers.items()}


@dataclass(frozen=True)
class ModelState:
    """The tensors of a model, or of some of its fields.

    Attributes:
        adapter: of the adapted layers.
        head: of the task's output layer.
    """

    adapter: Layers = field(default_factory=dict)
    head: Layers = field(default_factory=dict)

    @property
    def parts(self) -> dict[str, Layers]:
        """The layers by part, in the order of `PARTS`."""
        return {"adapter": self.adapter, "head": self.head}

    def map(self, compute: Callable[[Tensor], Tensor]) -> "ModelState":
        """Return a model with a function of every tensor in its place."""
        return ModelState(map_layers(self.adapter, compute), map_layers(self.head, compute))


@dataclass(frozen=True)
class Payload(ModelState):
    """What travels in one direction for one client.

    Attributes:
        whole: tensors of no single layer, such as a mask over all of them; they are counted with the adapters.
    """

    whole: Layer = field(default_factory=dict)

    @property
    def parts(self) -> dict[str, Layers]:
        """The layers by part, in the order of `PARTS`; "" stands for all layers."""
        return {"adapter": self.adapter | ({"": self.whole} if self.whole else {}), "head": self.head}


@dataclass(frozen=True)
class ServerMemory:
    """What a server remembers from round to round beside its model.

    Attributes:
        layers: tensors by layer and field.
        globals: tensors of no single layer, by name.
    """

    layers: Layers = field(default_factory=dict)
    globals: Layer = field(default_factory=dict)


@dataclass(frozen=True)
class ServerState:
    """The tensors that all processes have equal after a round.

    Attributes:
        model: what is trained.
        memory: what the method remembers beside it; it is never sent as such, nor loaded into the network.
    """

    model: ModelState
    memory: ServerMemory = field(default_factory=ServerMemory)

    @property
    def adapter(self) -> Layers:
        """The model's adapters."""
        return self.model.adapter

    @property
    def head(self) -> Layers:
        """The model's head."""
        return self.model.head

    @property
    def parts(self) -> dict[str, Layers]:
        """The layers by part; the memory is the third, in which "" stands for all layers."""
        memory = self.memory.layers | ({"": self.memory.globals} if self.memory.globals else {})
        return {**self.model.parts, "server": memory}

    def with_adapter(self, adapter: Layers) -> "ServerState":
        """Return the state with other adapters."""
        return replace(self, model=replace(self.model, adapter=adapter))

    def map(self, compute: Callable[[Tensor], Tensor]) -> "ServerState":
        """Return a state with a function of every tensor in its place."""
        memory = ServerMemory(
            map_layers(self.memory.layers, compute), {name: compute(t) for name, t in self.memory.globals.items()}
        )
        return ServerState(self.model.map(compute), memory)


Tensors = TypeVar("Tensors", ModelState, ServerState)


def tensors_of(layers: Layers) -> Iterator[Tensor]:
    """Yield every tensor of one part."""
    return (tensor for layer in layers.values() for tensor in layer.values())


def parameters_of(layers: Layers) -> int:
    """Count the numbers in one part; indices and masks, which say where numbers belong, are none."""
    return sum(tensor.numel() for tensor in tensors_of(layers) if tensor.is_floating_point())


def bytes_of(layers: Layers) -> int:
    """Count the bytes of one part as they lie in memory, and so as they travel."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors_of(layers))


def all_finite(groups: Iterable[Iterable[Tensor]]) -> bool:
    """Say whether no tensor holds nan or inf: one question to the device, however many there are.

    Args:
        groups: such as the tensors of each client, all on one device; those of a group are copied into one.
    """
    rows = [torch.cat([tensor.detach().flatten() for tensor in group]) for group in map(list, groups) if group]
    # A sum is not finite where a number is not, and seldom elsewhere: it costs a third of looking at every number.
    return (
        not rows
        or bool(torch.isfinite(torch.stack([row.sum() for row in rows])).all())
        or bool(torch.stack([torch.isfinite(row).all() for row in rows]).all())
    )


def send(tensor: Tensor, device: torch.device | str) -> Tensor:
    """Return a tensor on a device; what comes from the host is not waited for.

    A GPU takes a copy of memory that is not pinned only once it has done all that it was given before.
    """
    if torch.device(device).type != "cuda" or tensor.device.type != "cpu":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def to(state: Tensors, device: torch.device | str) -> Tensors:
    """Return the state with every tensor on a device."""
    return state.map(lambda tensor: send(tensor, device))


def without_numbers(state: ServerState) -> ServerState:
    """Return tensors without numbers, but for the memory's globals, by which methods may decide what they send."""

    def form(tensor: Tensor) -> Tensor:
        return torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")

    return ServerState(state.model.map(form), replace(state.memory, layers=map_layers(state.memory.layers, form)))


def flatten(state: ModelState | ServerState) -> dict[str, Tensor]:
    """Return the tensors under flat keys ``part|layer|field``, sorted: the form in which they are hashed and saved."""
    flat = {
        "|".join((part, name, field)): tensor
        for part, layers in state.parts.items()
        for name, layer in layers.items()
        for field, tensor in layer.items()
    }
    return dict(sorted(flat.items()))


def _by_part(flat: Mapping[str, Tensor]) -> dict[str, Layers]:
    parts: dict[str, Layers] = {part: {} for part in (*PARTS, "server")}
    for key, tensor in flat.items():
        part, name, field = key.split("|")
        parts[part].setdefault(name, {})[field] = tensor
    return parts


def unflatten(flat: Mapping[str, Tensor]) -> ModelState:
    """Undo `flatten` of a model's tensors.

    >>> unflatten(flatten(ModelState({"q": {"A": torch.zeros(2)}})))
    ModelState(adapter={'q': {'A': tensor([0., 0.])}}, head={})
    """
    parts = _by_part(flat)
    return ModelState(parts["adapter"], parts["head"])


def unflatten_server(flat: Mapping[str, Tensor]) -> ServerState:
    """Undo `flatten` of a server's state."""
    memory = _by_part(flat)["server"]
    layers = {name: layer for name, layer in memory.items() if name}
    return ServerState(unflatten(flat), ServerMemory(layers, memory.get("", {})))


def state_hash(state: ModelState | ServerState) -> str:
    """Return the `tensor_hash` of a state."""
    return tensor_hash(flatten(state))


def tensor_hash(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 over names, types, shapes and bits of named tensors, in the order of their names."""
    digest = hashlib.sha256()
    for key, tensor in sorted(tensors.items()):
        digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def split(model: ModelState, trained: Collection[str]) -> tuple[ModelState, ModelState]:
    """Return a model's head and those of its adapters' fields that are named as trained, and all its other fields.

    >>> split(ModelState({"q": {"A": 1, "B": 2}}), {"B"})
    (ModelState(adapter={'q': {'B': 2}}, head={}), ModelState(adapter={'q': {'A': 1}}, head={}))
    """
    own = {name: {f: t for f, t in layer.items() if f in trained} for name, layer in model.adapter.items()}
    return ModelState(own, model.head), ModelState(without(model, trained).adapter)


def without(model: ModelState, fields: Collection[str]) -> ModelState:
    """Return a model without some fields of its adapters.

    >>> without(ModelState({"q": {"A": 1, "B": 2}}), {"B"})
    ModelState(adapter={'q': {'A': 1}}, head={})
    """
    adapters = {name: {f: t for f, t in layer.items() if f not in fields} for name, layer in model.adapter.items()}
    return replace(model, adapter=adapters)


def merge(first: ModelState, second: ModelState) -> ModelState:
    """Return the fields of two models; where both have one, the second's."""

    def merged(one: Layers, other: Layers) -> Layers:
        return {name: {**one.get(name, {}), **other.get(name, {})} for name in dict.fromkeys([*one, *other])}

    return ModelState(merged(first.adapter, second.adapter), merged(first.head, second.head))


def stack(states: Sequence[ModelState]) -> ModelState:
    """Return states of one form as one, with a leading client axis."""

    def stacked(parts: Sequence[Layers]) -> Layers:
        return {
            name: {field: torch.stack([layers[name][field] for layers in parts]) for field in layer}
            for name, layer in parts[0].items()
        }

    return ModelState(stacked([state.adapter for state in states]), stacked([state.head for state in states]))


def prefix(state: ModelState, clients: int) -> ModelState:
    """Return the first clients of a state with a leading client axis."""
    return state.map(lambda tensor: tensor[:clients])


@dataclass(frozen=True)
class Layout:
    """Where each tensor of a state lies in one flat vector of P parameters.

    The clients of a block are rows of one (C, P) tensor, so that clipping and the optimizer are a few operations on one
    tensor, however many layers the backbone has.
    """

    keys: tuple[tuple[str, str, str], ...]
    shapes: tuple[torch.Size, ...]

    @classmethod
    def of(cls, state: ModelState) -> "Layout":
        """Return the layout of a state without client axis."""
        items = [
            ((part, name, field), tensor.shape)
            for part, layers in state.parts.items()
            for name, layer in layers.items()
            for field, tensor in layer.items()
        ]
        return cls(tuple(key for key, _ in items), tuple(shape for _, shape in items))

    def pack(self, states: Sequence[ModelState]) -> Float[Tensor, "C P"]:
        """Lay the states of C clients out as rows."""
        trees = [state.parts for state in states]
        return torch.stack([torch.cat([tree[p][n][f].flatten() for p, n, f in self.keys]) for tree in trees])

    def unpack(self, flat: Float[Tensor, "C P"]) -> ModelState:
        """Return the tensors of C clients with a leading client axis, as views that autograd follows."""
        parts: dict[str, Layers] = {part: {} for part in PARTS}
        pieces = flat.split([shape.numel() for shape in self.shapes], dim=1)
        for (part, name, key), shape, piece in zip(self.keys, self.shapes, pieces, strict=True):
            parts[part].setdefault(name, {})[key] = piece.view(len(flat), *shape)
        return ModelState(parts["adapter"], parts["head"])

    def rows(self, flat: Float[Tensor, "C P"]) -> list[ModelState]:
        """Undo `pack`: one state without client axis for every row."""
        return [self.unpack(row.unsqueeze(0)).map(lambda tensor: tensor[0]) for row in flat]
