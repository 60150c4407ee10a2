"""Which parts of a backbone's work can be left out, found by trying: its answers must stay what they are."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fedgram import first_token, packing
from fedgram.data.tokens import TokenTable
from fedgram.models.base import Outputs
from fedgram.network import ClientNetwork

__all__ = ["shorten"]


def shorten(network: ClientNetwork, table: TokenTable, precision: str) -> None:
    """Have a network leave out what changes none of its answers: padding, and what nobody reads of the last layer.

    Padding is left out on a CPU; on GPUs attention over samples of many lengths has other kernels.

    Args:
        network: the backbone with its client layers.
        table: samples; the shortest and the longest are tried.
        precision: of the backbone, as the trainer's.
    """
    backbone = network.task.loaded()
    layers = packing.stack_of_layers(backbone)
    if layers is None or not packing.install(backbone):
        return
    rows = np.append(np.argsort(table.lengths, kind="stable")[[0, -1]], -1)  # with a filler, so that there is padding
    network.load_one(network.initial_state())
    tolerance = _rounding(network, precision)

    def answers() -> Outputs:
        with torch.inference_mode():
            return network.run(table, rows)[0]

    padded = answers()
    if _reads_first_token_alone(layers[-1], answers, padded, tolerance):
        first_token.install(layers[-1])
        if not _agree(padded, answers(), tolerance):
            first_token.uninstall(layers[-1])
    if network.device.type == "cpu":
        network.packs = True
        network.packs = _agree(padded, answers(), tolerance)


def _rounding(network: ClientNetwork, precision: str) -> float:
    """Return by which share of the largest a number may be off that a backbone of this precision computes."""
    if precision.startswith("bf16") or network.task.weights_dtype.itemsize < 4:
        return 5e-2
    return 1e-9 if precision == "64-true" else 1e-3


def _reads_first_token_alone(
    layer: nn.Module, answers: Callable[[], Outputs], expected: Outputs, tolerance: float
) -> bool:
    """Say whether the answers stay what they are where the last layer says nan of every token but the first."""

    def spoil(_layer: nn.Module, _args: object, output: Any) -> Any:
        return packing.with_hidden(output, _with_nan_after_first)

    handle = layer.register_forward_hook(spoil)
    try:
        return _agree(expected, answers(), tolerance)
    finally:
        handle.remove()


def _with_nan_after_first(hidden: Tensor) -> Tensor:
    spoilt = torch.full_like(hidden, torch.nan)
    spoilt[:, 0] = hidden[:, 0]
    return spoilt


def _agree(one: Outputs, other: Outputs, tolerance: float) -> bool:
    """Say whether outputs differ by no more than rounding; padding may be -inf in both."""

    def close(first: Tensor, second: Tensor) -> bool:
        largest = float(first[first.isfinite()].abs().max())
        return torch.allclose(first.double(), second.double(), rtol=0, atol=tolerance * largest)

    return all(close(tensor, other[key]) for key, tensor in one.items())
