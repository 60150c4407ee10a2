"""Where a Transformers model holds its base model."""

from torch import nn

__all__ = ["base_name"]


def base_name(backbone: nn.Module) -> str:
    """Return the name under which a Transformers model holds its base model, such as ``"bert"``."""
    return str(getattr(backbone, "base_model_prefix", ""))
