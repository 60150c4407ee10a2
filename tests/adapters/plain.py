"""Layers and inputs of odd sizes, and a watch over the shapes that an operation makes."""

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

C, B, T, D_IN, D_OUT, R = 3, 2, 5, 11, 7, 2


def draw(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def make_linear(d_in=D_IN, d_out=D_OUT, kind="linear", dtype=torch.float64):
    """A frozen nn.Linear or Conv1D, and its dense weight (d_out, d_in)."""
    from transformers.pytorch_utils import Conv1D

    weight, bias = draw(d_out, d_in, seed=d_in).to(dtype), draw(d_out, seed=d_out).to(dtype)
    linear = nn.utils.skip_init(nn.Linear, d_in, d_out, dtype=dtype) if kind == "linear" else Conv1D(d_out, 0)
    linear.weight = nn.Parameter((weight if kind == "linear" else weight.mT).clone(), requires_grad=False)
    linear.bias = nn.Parameter(bias, requires_grad=False)
    return linear, weight


def dense_forward(x, weight, bias, deltas):
    """(W + ΔW_c) x + b with ΔW_c multiplied out, client after client."""
    parts = x.chunk(len(deltas))
    return torch.cat([part @ (weight + delta).mT + bias for part, delta in zip(parts, deltas, strict=True)])


class NewShapes(TorchDispatchMode):
    """Collects the shapes of all tensors that are made anew, views of known ones left out."""

    def __init__(self, *known):
        super().__init__()
        self.known = {tensor.untyped_storage().data_ptr() for tensor in known}
        self.alive, self.shapes = [], []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage().data_ptr() not in self.known:
                self.alive.append(tensor)  # so that no address is used twice
                self.shapes.append(tuple(tensor.shape))
        return result
