"""What a method's tensors are called, who holds them, and how those of clients of lower rank are cut and filled up."""

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from fedgram.distributed.uploads import Uploads
from fedgram.state import Layer, Layers

__all__ = ["CutUploads", "Field", "cut", "fill_up", "select"]


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
        increments: fields of the server's that bring a client from one version of this one to the next, stacked along
            their first axis, the newest last; they are sent where that is fewer numbers. `Method.derived` applies them.
        rank_axis: which of its axes is as long as the rank; None where none is. Clients of a lower rank than the
            server's hold the first entries of that axis.
    """

    name: str
    down: bool = True
    up: bool = True
    trained: bool = True
    shared: bool = False
    fresh: bool = False
    increments: tuple[str, ...] = ()
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


def fill_up(layers: Layers, fields: Iterable[Field], rank: int, others: Layers | None = None) -> Layers:
    """Undo `cut`: put zeros in the place of what was cut off, or the entries that other tensors have there.

    Zeros are as good as absent in a product of two factors that are both filled up: they add nothing to it, their
    gradients are zero, and so they stay zero under SGD, Adam and weight decay.

    Args:
        layers: cut to some rank, or not at all.
        fields: the method's.
        rank: how many entries the axis of the rank shall have.
        others: tensors of that rank; None for zeros.

    >>> server = {"q": {"A": torch.tensor([[1.0], [2.0], [3.0]])}}
    >>> fill_up({"q": {"A": torch.tensor([[7.0]])}}, [Field("A", rank_axis=0)], 3, server)["q"]["A"].T
    tensor([[7., 2., 3.]])
    """
    axes = _axes(fields)

    def filled(name: str, field: str, tensor: Tensor) -> Tensor:
        if field not in axes or rank <= tensor.shape[axes[field]]:
            return tensor
        return _fill_up(tensor, axes[field], rank, None if others is None else others[name][field])

    return {name: {f: filled(name, f, t) for f, t in layer.items()} for name, layer in layers.items()}


class CutUploads(Uploads):
    """The uploads of a cohort without what lies beyond some rank.

    Args:
        uploads: whole.
        layers: the server's tensors, whole.
        fields: the method's.
        rank: what is left.
    """

    def __init__(self, uploads: Uploads, layers: Layers, fields: Iterable[Field], rank: int) -> None:
        # Not the parent's: whether all is finite has been looked at.
        self.clients, self.weights = uploads.clients, uploads.weights
        self._whole, self._layers, self._kept, self._rank = uploads, layers, tuple(fields), rank

    def mean(self, layer: str, of: Callable[[Layer], Tensor], like: Tensor) -> Tensor:
        return self._whole.mean(layer, lambda sent: of(self._cut(sent)), like)

    def fields(self, layer: str) -> list[str]:
        return self._whole.fields(layer)

    def stack(self, layer: str, field: str, like: Tensor) -> Tensor:
        rows = self._whole.stack(layer, field, self._layers[layer][field])
        axis = _axes(self._kept).get(field)
        return rows if axis is None else rows.narrow(axis + 1, 0, self._rank)  # clients come first

    def _cut(self, sent: Layer) -> Layer:
        return cut({"": sent}, self._kept, self._rank)[""]


def _axes(fields: Iterable[Field]) -> dict[str, int]:
    return {field.name: field.rank_axis for field in fields if field.rank_axis is not None}


def _fill_up(tensor: Tensor, axis: int, rank: int, other: Tensor | None) -> Tensor:
    present = tensor.shape[axis]
    if other is not None:
        return torch.cat([tensor, other.narrow(axis, present, rank - present).to(tensor)], dim=axis)
    shape = list(tensor.shape)
    shape[axis] = rank - present
    return torch.cat([tensor, tensor.new_zeros(shape)], dim=axis)
