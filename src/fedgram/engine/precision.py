"""The types that tensors have by the precision of a run."""

import torch

__all__ = ["WEIGHTS", "trained_type"]

WEIGHTS = {"64-true": torch.float64, "bf16-true": torch.bfloat16}
"""The type of the frozen weights, where the precision changes it."""


def trained_type(precision: str | None) -> torch.dtype:
    """Return the type of adapters and heads."""
    return torch.float64 if precision == "64-true" else torch.float32
