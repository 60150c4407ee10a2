"""Which parts of a backbone's work can be left out, found by trying: its answers must stay what they are."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fedgram.backbone import first_token, padding_free
from fedgram.backbone.attention import UnknownAttentionError
from fedgram.data.tokens import TokenTable
from fedgram.engine.network import ClientNetwork
from fedgram.engine.trial import agree, line, rounding, rows_to_try
from fedgram.models.base import Outputs

__all__ = ["shorten"]

_ROWS = 7
"""Rows that are tried at most; those of a trial are fewer for a large backbone."""


def shorten(network: ClientNetwork, table: TokenTable, precision: str) -> str | None:
    """Have a network leave out what changes none of its answers: padding, and what nobody reads of the last layer.

    Padding is left out on a CPU; on GPUs attention over samples of many lengths has other kernels.

    Args:
        network: the backbone with its client layers, which answers in padded batches as it should.
        table: samples of all lengths that may come.
        precision: of the backbone, as the trainer's.

    Returns:
        Why padding is not left out; None where it is.
    """
    backbone = network.task.loaded()
    layers = padding_free.stack_of_layers(backbone)
    if layers is None:
        return "it is not one stack of layers of one kind"
    tried, tolerance = rows_to_try([table], _ROWS), rounding(network.task, precision)
    network.load_one(network.initial_state())
    padded = _answers(network, tried)
    undo = padding_free.install(backbone)
    if undo is None:
        return "it does not attend by Transformers' scaled dot products"

    def trouble() -> str | None:
        return _trouble(network, tried, padded, tolerance)

    reason, short = trouble(), False
    if reason is None:
        short = _shorten_last(layers[-1], trouble)
        reason = _leave_padding_out(network, trouble)
    if reason is not None and not short:
        undo()
    return reason


def _shorten_last(layer: nn.Module, trouble: Callable[[], str | None]) -> bool:
    """Have the last layer compute the first token of each sample alone, if nobody reads others; return whether."""
    if not _reads_first_token_alone(layer, trouble):
        return False
    first_token.install(layer)
    if trouble() is not None:
        first_token.uninstall(layer)
        return False
    return True


def _leave_padding_out(network: ClientNetwork, trouble: Callable[[], str | None]) -> str | None:
    """Have a network leave padding out, if its answers stay what they are; return why not, None if they do."""
    if network.device.type != "cpu":
        return "on a GPU it costs less than attention without it"
    network.packs = True
    reason = trouble()
    network.packs = reason is None
    return reason


def _answers(network: ClientNetwork, tried: TokenTable) -> Outputs:
    rows = np.append(np.arange(len(tried)), -1)  # with a filler, so that there is padding
    with torch.inference_mode():
        return network.run(tried, rows)[0]


def _trouble(network: ClientNetwork, tried: TokenTable, expected: Outputs, tolerance: float) -> str | None:
    """Return why a network's answers are not what they should be; None where they are."""
    try:
        found = _answers(network, tried)
    except UnknownAttentionError as error:
        return str(error)
    except Exception as error:  # noqa: BLE001 (layers fail in ways of their own on tokens without padding)
        return f"its layers fail without it ({line(error)})"
    return None if agree(expected, found, tolerance) else "its answers without it are others"


def _reads_first_token_alone(layer: nn.Module, trouble: Callable[[], str | None]) -> bool:
    """Return whether the answers stay what they are where the last layer returns nan for every token but the first."""

    def spoil(_layer: nn.Module, _args: object, output: Any) -> Any:
        return padding_free.with_hidden(output, _with_nan_after_first)

    handle = layer.register_forward_hook(spoil)
    try:
        return trouble() is None
    finally:
        handle.remove()


def _with_nan_after_first(hidden: Tensor) -> Tensor:
    spoilt = torch.full_like(hidden, torch.nan)
    spoilt[:, 0] = hidden[:, 0]
    return spoilt
