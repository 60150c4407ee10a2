"""What trials of the tiny BERT find before training, for runs that need not find it again.

Trials take a sixth of a small run. Tests of them are marked ``trials``; other backbones are always tried.
"""

from typing import Any

from fedgram.engine import block_trial, shortcuts
from fedgram.engine.block_trial import BlockTrial
from fedgram.engine.network import ClientNetwork
from fedgram.models import TextClassification

__all__ = ["trouble", "try_blocks"]

_try_blocks, _trouble = block_trial.try_blocks, shortcuts._trouble


def try_blocks(network: ClientNetwork, table: Any) -> BlockTrial:
    """Stand in for `fedgram.engine.block_trial.try_blocks`."""
    return BlockTrial() if _is_known(network) else _try_blocks(network, table)


def trouble(network: ClientNetwork, *rest: Any) -> str | None:
    """Stand in for the comparison of answers in `fedgram.engine.shortcuts`."""
    return None if _is_known(network) else _trouble(network, *rest)


def _is_known(network: ClientNetwork) -> bool:
    return type(network.task) is TextClassification and "tiny-bert" in network.task.backbone
