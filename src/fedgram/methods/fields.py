"""What a method's tensors are called, who holds them, and how those of clients of lower rank are cut and filled up."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from fedgram.state import Layers

__all__ = ["Field", "cut", "fill_up", "select"]


@dataclass(frozen=True)
class Field:
    """A tensor of every adapted layer.

    Attributes:
        name: its symbol, the key in the adapter's tensors.
        down: whether the server sends it to the clients of the cohort; else they hold what the seed gave them.
        up: whether the clients send it back.
        trained: whether the clients train it; else it only takes part in the forward pass.
        shared: whether all clients hold the same and none changes it: it is kept once, beside the frozen weights.
        fresh: whether a client that trains it starts every round with what the seed gave it, and keeps none of it.
        rank_axis: which of its axes is as long as the rank; None where none is. Clients of a lower rank than the
            server's hold the first entries of that axis.
    """

    name: str
    down: bool = True
    up: bool = True
    trained: bool = True
    shared: bool = False
    fresh: bool = False
    rank_axis: int | None = None

    @property
    def kept(self) -> bool:
        """Whether it stays with the client from round to round: it is trained, and nothing comes to replace it."""
        return self.trained and not self.down and not self.fresh


def select(layers: Layers, fields: Collection[str]) -> Layers:
    """Return some fields of every layer."""
    return {name: {field: layer[field] for field in fields} for name, layer in layers.items()}


def cut(layers: Layers, fields: Iterable[Field], rank: int) -> Layers:
    """Return the first ``rank`` entries of every field that has an axis of the rank, and all else as it is.

    >>> cut({"q": {"A": torch.ones(4, 3)}}, [Field("A", rank_axis=0)], 2)["q"]["A"].shape
    torch.Size([2, 3])
    """
    axes = _axes(fields)
    return {
        name: {f: t.narrow(axes[f], 0, min(rank, t.shape[axes[f]])) if f in axes else t for f, t in layer.items()}
        for name, layer in layers.items()
    }


def fill_up(layers: Layers, fields: Iterable[Field], rank: int) -> Layers:
    """Undo `cut`, with zeros in the place of what was cut off.

    Zeros are as good as absent in a product of two factors that are both filled up: they add nothing to it, their
    gradients are zero, and so they stay zero under SGD, Adam and weight decay.
    """
    axes = _axes(fields)
    return {
        name: {f: _fill_up(t, axes[f], rank) if f in axes else t for f, t in layer.items()}
        for name, layer in layers.items()
    }


def _axes(fields: Iterable[Field]) -> dict[str, int]:
    return {field.name: field.rank_axis for field in fields if field.rank_axis is not None}


def _fill_up(tensor: Tensor, axis: int, rank: int) -> Tensor:
    missing = rank - tensor.shape[axis]
    if missing <= 0:
        return tensor
    shape = list(tensor.shape)
    shape[axis] = missing
    return torch.cat([tensor, tensor.new_zeros(shape)], dim=axis)
