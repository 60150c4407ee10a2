"""A sparse change of a layer's weight, and LoRA's product: ΔW = M ⊙ Δ + s B A.

Symbols: ``M`` the fixed mask, of which ``positions: (nnz,)`` are the ones; ``delta: (nnz,)`` what Δ has there.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from fedgram.adapters.base import tokens_per_client
from fedgram.adapters.lora import LoraAdapter
from fedgram.state import Layer

__all__ = ["SparseLoraAdapter", "draw_positions", "scatter"]


class SparseLoraAdapter(LoraAdapter):
    """ΔW = M ⊙ Δ + s B A, of which either term is left out where its tensors are not loaded.

    Args:
        base: the layer to adapt.
        rank: r.
        scale: s.
        start: A, B and delta at the start.
        positions: where delta belongs in the flattened (d_out, d_in) weight: the same for all clients, and never sent.
    """

    def __init__(
        self, base: nn.Module, rank: int, scale: float, start: Layer, positions: Int64[Tensor, " nnz"]
    ) -> None:
        super().__init__(base, rank, scale, start)
        self.positions: Tensor
        self.register_buffer("positions", positions, persistent=False)

    def added_to(self, weight: Float[Tensor, "d_out d_in"]) -> Float[Tensor, "d_out d_in"]:
        if "A" in self.clients:
            weight = super().added_to(weight)
        if "delta" in self.clients:
            weight = weight.reshape(-1).index_add(0, self.positions, self.clients["delta"][0]).view_as(weight)
        return weight

    def add(
        self, y: Float[Tensor, "rows ... d_out"], x: Float[Tensor, "rows ... d_in"]
    ) -> Float[Tensor, "rows ... d_out"]:
        if "A" in self.clients:
            y = super().add(y, x)
        return self._add_sparse(y, x, self.clients["delta"]) if "delta" in self.clients else y

    def _add_sparse(
        self,
        y: Float[Tensor, "rows ... d_out"],
        x: Float[Tensor, "rows ... d_in"],
        delta: Float[Tensor, "C nnz"],
    ) -> Float[Tensor, "rows ... d_out"]:
        sizes = tokens_per_client(x, len(delta))
        rows = y.reshape(-1, self.d_out), x.reshape(-1, self.d_in)
        added: Tensor = _SparseProduct.apply(*rows, delta, self.positions, sizes)
        return added.view(y.shape)


class _SparseProduct(torch.autograd.Function):
    """``y + (M ⊙ Δ) x`` of one client after the other, in one node.

    With g = ∂y: ∂x = (M ⊙ Δ)ᵀ g and ∂Δ = M ⊙ g xᵀ. The dense matrices are made for one client at a time, and not kept:
    a masked gradient costs as many operations as a whole one, but not the memory of all clients' weights.
    """

    @staticmethod
    def forward(
        ctx: Any,
        y: Float[Tensor, "N d_out"],
        x: Float[Tensor, "N d_in"],
        delta: Float[Tensor, "C nnz"],
        positions: Int64[Tensor, " nnz"],
        sizes: Sequence[int],
    ) -> Float[Tensor, "N d_out"]:
        ctx.save_for_backward(x, delta, positions)  # x in its own precision, which may be half of the adapter's
        ctx.sizes, ctx.shape = list(sizes), (y.shape[1], x.shape[1])
        parts = (rows.to(delta.dtype).split(ctx.sizes) for rows in (y, x))
        weights = (scatter(own, positions, ctx.shape) for own in delta)
        rows = [torch.addmm(y_c, x_c, weight.mT) for y_c, x_c, weight in zip(*parts, weights, strict=True)]
        return torch.cat(rows).to(y.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, delta, positions = ctx.saved_tensors
        _, of_x, of_delta, *_ = ctx.needs_input_grad
        parts = [rows.to(delta.dtype).split(ctx.sizes) for rows in (gradients[0], x)]
        d_x = d_delta = None
        if of_x:
            weights = (scatter(d, positions, ctx.shape) for d in delta)
            d_x = torch.cat([g_c @ weight for g_c, weight in zip(parts[0], weights, strict=True)]).to(x.dtype)
        if of_delta:
            wholes = (g_c.mT @ x_c for g_c, x_c in zip(*parts, strict=True))
            d_delta = torch.stack([whole.reshape(-1).index_select(0, positions) for whole in wholes])
        return gradients[0], d_x, d_delta, None, None


def scatter(
    delta: Float[Tensor, " nnz"], positions: Int64[Tensor, " nnz"], shape: tuple[int, int]
) -> Float[Tensor, "d_out d_in"]:
    """Return M ⊙ Δ as a matrix.

    >>> scatter(torch.tensor([5.0, 7.0]), torch.tensor([1, 3]), (2, 2))
    tensor([[0., 5.],
            [0., 7.]])
    """
    return delta.new_zeros(shape[0] * shape[1]).index_copy(0, positions, delta).view(shape)


def draw_positions(size: int, density: float, generator: torch.Generator) -> Int64[Tensor, " nnz"]:
    """Draw which of the entries of a weight are trained: a share of them, at least one, ascending.

    >>> draw_positions(4, 1.0, torch.Generator())
    tensor([0, 1, 2, 3])
    """
    chosen = torch.randperm(size, generator=generator)[: max(1, round(density * size))]
    return chosen.sort().values
