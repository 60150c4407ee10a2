"""What the pretrained backbone says of samples, one vector each: what clients may tell the server about their data."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from fedgram.backbone import first_token
from fedgram.backbone.base_model import base_name
from fedgram.backbone.padding_free import stack_of_layers
from fedgram.data.tokens import TokenTable
from fedgram.engine.network import ClientNetwork
from fedgram.state import ModelState

__all__ = ["features_of"]


def features_of(
    network: ClientNetwork,
    state: ModelState,
    table: TokenTable,
    rows: np.ndarray,
    batch_size: int,
    heed: Callable[[], None] = lambda: None,
) -> Float[Tensor, "n d"]:
    """Return the mean over its tokens of the last hidden state of each sample, in float64 on the CPU.

    The mean exists for every backbone, where only some train a first token to stand for a sample, and decoders have
    theirs see nothing but itself.

    Args:
        network: the backbone with its client layers.
        state: the model that is asked: that which training starts with stands for the pretrained backbone.
        table: the samples.
        rows: which of them, int64 ``(n,)``.
        batch_size: samples at once.
        heed: called before each batch; may raise to end the work.
    """
    backbone: Any = network.task.loaded()
    layers, order = stack_of_layers(backbone), np.argsort(table.lengths_of(rows), kind="stable")
    found: list[Tensor] = []
    hook = getattr(backbone, base_name(backbone)).register_forward_hook(lambda _, __, output: found.append(output[0]))
    network.load_one(state)
    with ExitStack() as stack, torch.inference_mode():
        stack.callback(hook.remove)
        if layers is not None:
            stack.enter_context(first_token.whole(layers[-1]))
        means = [_means(network, table, rows[part], found, heed) for part in _parts(order, batch_size)]
    features = torch.empty(len(rows), means[0].shape[1], dtype=torch.float64)
    features[torch.from_numpy(order)] = torch.cat(means)
    return features


def _parts(order: np.ndarray, size: int) -> Sequence[np.ndarray]:
    return [order[i : i + size] for i in range(0, len(order), size)]


def _means(
    network: ClientNetwork, table: TokenTable, rows: np.ndarray, found: list[Tensor], heed: Callable[[], None]
) -> Float[Tensor, "n d"]:
    """Run one batch, and return the means of what the hook has found; padding has no share in them."""
    heed()
    found.clear()
    network.run(table, rows)
    hidden, lengths = found[-1].cpu().double(), torch.from_numpy(table.lengths_of(rows))
    real = torch.arange(hidden.shape[1]) < lengths[:, None]
    return (hidden * real[:, :, None]).sum(dim=1) / lengths[:, None]
