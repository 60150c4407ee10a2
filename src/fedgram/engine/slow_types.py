"""A warning where the CPU multiplies in a type of less than 32 bits slower than in float32, for lack of instructions.

Most laptops have none for bfloat16: torch then computes such products with a general kernel, which takes several times
as long as float32, and a run in ``bf16-mixed`` takes that much longer.
"""

import logging
import time

import torch

from fedgram.backbone import frozen_linear
from fedgram.engine.network import ClientNetwork

__all__ = ["slowdown", "warn_of_slow_type"]

log = logging.getLogger(__name__)

_ROWS, _WIDTH = 128, 512
"""The tokens of some samples and the width of a small transformer: a product takes a millisecond in float32."""
_TRIALS = 5
_WORTH_A_WARNING = 2.0
"""Times as long; with the instructions it is less than once, and trials beside other work vary by some tenths."""


def warn_of_slow_type(network: ClientNetwork, precision: str) -> None:
    """Warn, with the remedy, if the products of a network take much longer in the run's precision than in float32."""
    weights = next(network.task.parameters()).dtype
    dtype = torch.bfloat16 if precision == "bf16-mixed" else weights
    if network.device.type != "cpu" or dtype.itemsize >= torch.float32.itemsize:
        return
    times = slowdown(dtype)
    if times > _WORTH_A_WARNING:
        name = str(dtype).removeprefix("torch.")
        setting = f"trainer.precision is {precision}" if precision != "32-true" else f"model.dtype is {name}"
        remedy = "--trainer.precision 32-true" if precision != "32-true" else "--model.dtype float32"
        log.warning(
            "%s, but this CPU multiplies %.0f times slower in %s than in float32, as it has no instructions for that; "
            "remedy: %s",
            setting,
            times,
            name,
            remedy,
        )


def slowdown(dtype: torch.dtype) -> float:
    """Return how many times as long as in float32 a product takes in a type on this CPU: a trial of milliseconds."""
    return _seconds(dtype) / _seconds(torch.float32)


def _seconds(dtype: torch.dtype) -> float:
    """Return what a product of a frozen layer takes: the least of some trials, as others may be disturbed."""
    x = torch.full((_ROWS, _WIDTH), 0.5, dtype=dtype)
    weight = torch.full((_WIDTH, _WIDTH), 0.25, dtype=dtype)
    least = float("inf")
    for _ in range(_TRIALS):
        start = time.perf_counter()
        frozen_linear.linear(x, weight, None)
        least = min(least, time.perf_counter() - start)
    return least
