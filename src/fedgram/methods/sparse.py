"""Sparse vectors as they travel: the numbers of largest magnitude, and where they belong."""

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from fedgram.state import Layer, ModelState, flatten, merge, unflatten

__all__ = ["densify", "join", "part", "sparsify"]

_INDEX_BYTES = 4


def join(state: ModelState) -> Float[Tensor, " n"]:
    """Return all numbers of a state as one vector, in the order of their names, whatever the order of its layers."""
    return torch.cat([tensor.flatten() for tensor in flatten(state).values()])


def part(vector: Float[Tensor, " n"], like: ModelState) -> ModelState:
    """Undo `join`, for a state of the form of another."""
    flat = flatten(like)
    pieces = vector.split([tensor.numel() for tensor in flat.values()])
    found = unflatten({key: own.view_as(old) for (key, old), own in zip(flat.items(), pieces, strict=True)})
    return merge(like, found)  # with its layers in their order


def sparsify(vector: Float[Tensor, " n"], count: int) -> Layer:
    """Return what is sent of a vector of which the numbers of largest magnitude are kept.

    Where magnitudes are equal the first are taken. Shapes depend on n and count alone, so that it can be done with
    tensors that have no numbers.

    Args:
        vector: (n,).
        count: how many are kept.

    Returns:
        ``values`` (count,), in their order in the vector; and where they belong, in the form of fewer bytes:
        ``indices`` (count,) int32, or ``bitmap`` (⌈n/8⌉,) uint8; neither where all are kept.

    >>> sparsify(torch.tensor([1.0, -3.0, 0.0, 3.0, 2.0]), 2)
    {'values': tensor([-3.,  3.]), 'bitmap': tensor([10], dtype=torch.uint8)}
    """
    size = vector.numel()
    if count >= size:
        return {"values": vector}
    largest = torch.sort(vector.abs(), descending=True, stable=True).indices[:count]
    places = largest.sort().values
    values = vector.index_select(0, places)
    if _INDEX_BYTES * count < -(-size // 8):
        return {"values": values, "indices": places.to(torch.int32)}
    chosen = torch.zeros(size, dtype=torch.bool, device=vector.device).index_fill(0, places, value=True)
    return {"values": values, "bitmap": _pack(chosen)}


def densify(sent: Layer, size: int) -> Float[Tensor, " n"]:
    """Undo `sparsify`, with zeros for what was left out.

    Args:
        sent: what it returned.
        size: n.

    >>> densify(sparsify(torch.tensor([1.0, -3.0, 0.0, 3.0, 2.0]), 2), 5)
    tensor([ 0., -3.,  0.,  3.,  0.])
    """
    values = sent["values"]
    if "indices" in sent:
        return values.new_zeros(size).index_copy(0, sent["indices"].long(), values)
    if "bitmap" not in sent:
        return values
    chosen = _unpack(sent["bitmap"], size)
    which = (chosen.cumsum(0) - 1).clamp(min=0)
    return torch.where(chosen, values.index_select(0, which), values.new_zeros(()))


def _pack(bits: Bool[Tensor, " n"]) -> UInt8[Tensor, " m"]:
    """Return eight bits a byte, the first the least."""
    padded = torch.nn.functional.pad(bits.to(torch.uint8), (0, -bits.numel() % 8)).reshape(-1, 8)
    return (padded << _shifts(bits)).sum(dim=1, dtype=torch.uint8)


def _unpack(packed: UInt8[Tensor, " m"], size: int) -> Bool[Tensor, " n"]:
    return ((packed[:, None] >> _shifts(packed)) & 1).reshape(-1)[:size].bool()


def _shifts(like: Tensor) -> UInt8[Tensor, " 8"]:
    return torch.arange(8, dtype=torch.uint8, device=like.device)
