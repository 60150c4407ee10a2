"""A digest of the weights that a backbone was loaded with, so that a run notices when they are replaced."""

import hashlib
from collections.abc import Collection, Iterator

import numpy as np
import torch
from torch import Tensor, nn

__all__ = ["weights_digest"]

_MOST = 2 << 30
"""The most bytes that are read, about two seconds' work: of a larger network an even share of every tensor is."""
_PAGE = 1 << 16
"""Bytes of a tensor that are read, or left out, together."""


def weights_digest(network: nn.Module, drawn: Collection[str], most: int = _MOST) -> str:
    """Return the SHA-256 over a network's weights: names, types, shapes and bytes of all that were loaded.

    Of the base model's weights that were drawn from the seed, only shapes count, as the last bits of random numbers
    may depend on the kind of CPU; a head that was drawn is left out. So the digest depends neither on the seed nor on
    the data.

    Args:
        network: the network as it was loaded, on the CPU.
        drawn: the names of the weights that were drawn.
        most: how many bytes are read at most, but for a page of each tensor; of a network that has more, pages at equal
            distances.

    >>> one, other = nn.Linear(2, 2), nn.Linear(2, 2)
    >>> weights_digest(one, []) == weights_digest(other, []), weights_digest(one, ["weight", "bias"]) == weights_digest(
    ...     other, ["weight", "bias"]
    ... )
    (False, True)
    """
    base = f"{getattr(network, 'base_model_prefix', '')}."
    tensors = {name: tensor for name, tensor in _tensors(network) if name not in drawn or name.startswith(base)}
    loaded = {name: tensor for name, tensor in tensors.items() if name not in drawn}
    stride = -(-sum(tensor.numel() * tensor.element_size() for tensor in loaded.values()) // most) or 1
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        for page in _pages(tensor, stride) if name in loaded else ():
            digest.update(page.data)
    return digest.hexdigest()


def _tensors(network: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield what a network saves, a tensor that has several names under the first."""
    seen: set[int] = set()
    for name, tensor in network.state_dict().items():
        if not (tensor.numel() and tensor.data_ptr() in seen):
            seen.add(tensor.data_ptr())
            yield name, tensor


def _pages(tensor: Tensor, stride: int) -> Iterator[np.ndarray]:
    """Yield every stride-th page of a tensor's bytes, the first among them."""
    content = tensor.detach().contiguous().flatten().view(torch.uint8).numpy()
    if stride == 1:
        yield content
    else:
        for start in range(0, len(content), stride * _PAGE):
            yield content[start : start + _PAGE]
