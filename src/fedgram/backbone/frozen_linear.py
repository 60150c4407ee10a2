"""Products with weights that are not trained: most of the work of a round.

On a CPU they go to oneDNN, which uses the widest instructions of every maker's processors; the BLAS that torch takes
for single precision does so on some only. Under autocast a weight is cast once, and not in every pass.
"""

from collections.abc import Iterable
from types import MethodType
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["install", "linear"]


def install(layers: Iterable[nn.Module]) -> None:
    """Have frozen layers, ``nn.Linear`` or GPT-2's ``Conv1D``, compute as `linear` does."""
    for layer in layers:
        layer.forward = MethodType(_forward, layer)  # in place: adapters and exports find the layer that they know


def linear(
    x: Float[Tensor, "... d_in"], weight: Float[Tensor, "d_out d_in"], bias: Float[Tensor, " d_out"] | None
) -> Float[Tensor, "... d_out"]:
    """Return ``x Wᵀ + b`` for a weight and a bias that take no gradient."""
    if x.dtype == weight.dtype and _has_onednn(x.dtype, x.device):
        product: Tensor = _OneDNN.apply(x.reshape(-1, x.shape[-1]), weight, bias)
        return product.view(*x.shape[:-1], product.shape[-1])  # made out here, it may be changed in place: Falcon does
    return functional.linear(x, weight, bias)


def _has_onednn(dtype: torch.dtype, device: torch.device) -> bool:
    """Say whether oneDNN multiplies matrices of this type here."""
    if device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    if not hasattr(torch.ops.mkldnn, "_linear_pointwise"):  # some builds have oneDNN, but not this of its products
        return False
    return dtype == torch.float32 or (dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())


class _OneDNN(torch.autograd.Function):
    """``y = x Wᵀ + b`` and ``∂x = ∂y W``, with ``x: (n, d_in)``: of more axes the product would be a view."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight)
        return _product(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (weight,) = ctx.saved_tensors
        return _product(gradients[0], weight.mT, None), None, None


def _product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    product: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return product


def _forward(layer: nn.Module, x: Tensor) -> Tensor:
    """Stand in for the layer's own forward."""
    weight, bias = layer.get_parameter("weight"), getattr(layer, "bias", None)
    if torch.is_autocast_enabled(x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type)
        x, bias = x.to(dtype), None if bias is None else bias.to(dtype)
        return _oriented(layer, x, _cast_once(layer, weight, dtype), bias)
    return _oriented(layer, x, weight, bias)


def _oriented(layer: nn.Module, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return linear(x, weight if isinstance(layer, nn.Linear) else weight.mT, bias)


def _cast_once(layer: nn.Module, weight: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the weight in autocast's type: a copy that the layer keeps until its weight is another."""
    version = (weight.data_ptr(), weight._version, dtype)
    if getattr(layer, "cast_version", None) != version:
        with torch.inference_mode(False):  # it outlives an evaluation
            layer.register_buffer("cast_weight", weight.detach().to(dtype), persistent=False)
        setattr(layer, "cast_version", version)  # noqa: B010 - mypy takes it for a parameter
    return layer.get_buffer("cast_weight")
