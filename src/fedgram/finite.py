"""Numbers that are not finite: where they are, in words, and what helps."""

import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from fedgram.state import all_finite

__all__ = ["remedy", "spoilt_losses", "spoilt_outputs", "spoilt_tensor", "undefined"]

LOWER = "a lower optimizer.lr or a max_grad_norm helps"
HALF = (
    "the backbone computes in float16, whose largest number is 65,504: set model.dtype to bfloat16 or float32, which "
    "have room for 3e38"
)


def remedy(network: nn.Module) -> str:
    """Return what helps where a network's numbers are not finite, by the type of its weights."""
    return HALF if any(parameter.dtype == torch.float16 for parameter in network.parameters()) else LOWER


def spoilt_tensor(tensors: Mapping[str, Tensor]) -> str | None:
    """Return which of some tensors is the first that holds nan or inf; None if none does.

    Args:
        tensors: on one device, under the flat names of `fedgram.state.flatten`.

    >>> spoilt_tensor({"adapter|q|A": torch.zeros(2), "head|out|bias": torch.tensor([1.0, torch.nan])})
    'bias of out holds nan or inf'
    """
    if all_finite([tensors.values()]):
        return None
    bad = next((name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()), None)
    if bad is None:
        return None
    part, *place = bad.split("|")
    where = " in the server's memory" if part == "server" else ""
    return f"{' of '.join(filter(None, reversed(place)))}{where} holds nan or inf"


def spoilt_losses(losses: Mapping[int, float]) -> str | None:
    """Return which client has a training loss that is not finite; None if none has."""
    bad = [client for client, loss in losses.items() if not math.isfinite(loss)]
    return f"client {bad[0]} diverged: its training loss is {losses[bad[0]]}" if bad else None


def spoilt_outputs(outputs: Mapping[str, Tensor], lengths: np.ndarray) -> str | None:
    """Return which outputs of a network are not finite, and for how many samples; None if all are.

    Args:
        outputs: one row per sample; columns of tokens that a shorter sample does not have are -inf.
        lengths: the tokens of each sample.
    """
    for name, rows in outputs.items():
        flat = rows.flatten(1) if rows.ndim > 1 else rows[:, None]
        missing = (flat.shape[1] - torch.from_numpy(lengths.astype(np.int64))).clamp(min=0)
        is_low = torch.isneginf(flat)
        bad = (~torch.isfinite(flat) & ~is_low).any(dim=1) | (is_low.sum(dim=1) > missing)
        if bad.any():
            return f"the {name} of {_some(bad)} are not finite"
    return None


def _some(bad: Tensor) -> str:
    """Return how many of all samples are meant, and which is the first."""
    return f"{int(bad.sum())} of {len(bad)} samples (the first: sample {int(bad.nonzero()[0])})"


def undefined(metrics: Mapping[str, float]) -> list[str]:
    """Return the names of metrics that are not defined, which are nan."""
    return [name for name, value in metrics.items() if math.isnan(value)]
