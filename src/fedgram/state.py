"""Named tensors: what the server holds, what travels, and what a client trains.

All three are trees of one form: part (``"adapter"`` or ``"head"``) -> layer (its dotted name in the backbone) ->
field (the symbol of the paper, such as ``"A"``) -> tensor. The server's state has a third part, ``"server"``: what it
remembers beside the model. This module holds the pure functions on such trees.
"""

import hashlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = [
    "PARTS",
    "Layer",
    "Layers",
    "Layout",
    "State",
    "all_finite",
    "bytes_of",
    "flatten",
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
    "without",
    "without_numbers",
]

Layer = dict[str, Tensor]
"""The tensors of one layer, by field."""
Layers = dict[str, Layer]
"""The tensors of one part of the model, by layer."""
State = dict[str, Layers]
"""The tensors of the whole model, by part."""

PARTS = ("adapter", "head")
"""The parts of a model."""


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


def to(state: State, device: torch.device | str) -> State:
    """Return the state with every tensor on a device."""
    return {
        part: {name: {field: send(tensor, device) for field, tensor in layer.items()} for name, layer in layers.items()}
        for part, layers in state.items()
    }


def without_numbers(state: State) -> State:
    """Return tensors without numbers; what the server remembers of no layer, which may say who is sent what, as is."""
    return {
        part: {
            name: {f: torch.empty(t.shape, dtype=t.dtype, device="meta") if name else t for f, t in layer.items()}
            for name, layer in layers.items()
        }
        for part, layers in state.items()
    }


def flatten(state: State) -> dict[str, Tensor]:
    """Return the tensors under flat keys ``part|layer|field``, sorted: the form in which they are hashed and saved."""
    flat = {
        "|".join((part, name, field)): tensor
        for part, layers in state.items()
        for name, layer in layers.items()
        for field, tensor in layer.items()
    }
    return dict(sorted(flat.items()))


def unflatten(flat: dict[str, Tensor]) -> State:
    """Undo `flatten`.

    >>> unflatten(flatten({"adapter": {"q": {"A": torch.zeros(2)}}, "head": {}}))
    {'adapter': {'q': {'A': tensor([0., 0.])}}, 'head': {}}
    """
    state: State = {part: {} for part in PARTS}
    for key, tensor in flat.items():
        part, name, field = key.split("|")
        state.setdefault(part, {}).setdefault(name, {})[field] = tensor
    return state


def state_hash(state: State) -> str:
    """Return the `tensor_hash` of a state."""
    return tensor_hash(flatten(state))


def tensor_hash(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 over names, types, shapes and bits of named tensors, in the order of their names."""
    digest = hashlib.sha256()
    for key, tensor in sorted(tensors.items()):
        digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def split(model: State, trained: Collection[str]) -> tuple[State, State]:
    """Return a model's head and those of its adapters' fields that are named as trained, and all its other fields.

    >>> split({"adapter": {"q": {"A": 1, "B": 2}}, "head": {}}, {"B"})
    ({'adapter': {'q': {'B': 2}}, 'head': {}}, {'adapter': {'q': {'A': 1}}, 'head': {}})
    """
    adapters = model["adapter"]
    own = {name: {f: t for f, t in layer.items() if f in trained} for name, layer in adapters.items()}
    held = {name: {f: t for f, t in layer.items() if f not in trained} for name, layer in adapters.items()}
    return {"adapter": own, "head": model["head"]}, {"adapter": held, "head": {}}


def without(model: State, fields: Collection[str]) -> State:
    """Return a model's head, and its adapters without some fields.

    >>> without({"adapter": {"q": {"A": 1, "B": 2}}, "head": {}}, {"B"})
    {'adapter': {'q': {'A': 1}}, 'head': {}}
    """
    adapters = {name: {f: t for f, t in layer.items() if f not in fields} for name, layer in model["adapter"].items()}
    return {"adapter": adapters, "head": model["head"]}


def merge(first: State, second: State) -> State:
    """Return the fields of two models; where both have one, the second's."""
    return {
        part: {
            name: {**first[part].get(name, {}), **second[part].get(name, {})}
            for name in dict.fromkeys([*first[part], *second[part]])
        }
        for part in PARTS
    }


def stack(states: Sequence[State]) -> State:
    """Return states of one form as one, with a leading client axis."""
    return {
        part: {
            name: {field: torch.stack([state[part][name][field] for state in states]) for field in layer}
            for name, layer in layers.items()
        }
        for part, layers in states[0].items()
    }


def prefix(state: State, clients: int) -> State:
    """Return the first clients of a state with a leading client axis."""
    return {
        part: {name: {field: tensor[:clients] for field, tensor in layer.items()} for name, layer in layers.items()}
        for part, layers in state.items()
    }


@dataclass(frozen=True)
class Layout:
    """Where each tensor of a state lies in one flat vector of P parameters.

    The clients of a block are rows of one (C, P) tensor, so that clipping and the optimizer are a few operations on one
    tensor, however many layers the backbone has.
    """

    keys: tuple[tuple[str, str, str], ...]
    shapes: tuple[torch.Size, ...]

    @classmethod
    def of(cls, state: State) -> "Layout":
        """Return the layout of a state without client axis."""
        items = [
            ((part, name, field), tensor.shape)
            for part, layers in state.items()
            for name, layer in layers.items()
            for field, tensor in layer.items()
        ]
        return cls(tuple(key for key, _ in items), tuple(shape for _, shape in items))

    def pack(self, states: Sequence[State]) -> Float[Tensor, "C P"]:
        """Lay the states of C clients out as rows."""
        rows = [torch.cat([state[p][n][f].flatten() for p, n, f in self.keys]) for state in states]
        return torch.stack(rows)

    def unpack(self, flat: Float[Tensor, "C P"]) -> State:
        """Return the tensors of C clients with a leading client axis, as views that autograd follows."""
        state: State = {part: {} for part in PARTS}
        pieces = flat.split([shape.numel() for shape in self.shapes], dim=1)
        for (part, name, field), shape, piece in zip(self.keys, self.shapes, pieces, strict=True):
            state[part].setdefault(name, {})[field] = piece.view(len(flat), *shape)
        return state

    def rows(self, flat: Float[Tensor, "C P"]) -> list[State]:
        """Undo `pack`: one state without client axis for every row."""
        return [
            {
                part: {name: {f: t[0] for f, t in layer.items()} for name, layer in layers.items()}
                for part, layers in self.unpack(row.unsqueeze(0)).items()
            }
            for row in flat
        ]
