"""The task's output layer, with its own weights for every client of a block."""

import torch
from jaxtyping import Float
from torch import Tensor

from fedgram.adapters.base import ClientLayer
from fedgram.state import Layer

__all__ = ["HeadLinear"]


class HeadLinear(ClientLayer):
    """``x -> W x + b`` with ``W: (d_out, d_in)`` and ``b: (d_out)`` of each client, trained in full."""

    part = "head"

    def initial(self) -> Layer:
        return {name: value.detach().float().cpu().clone() for name, value in self.base.named_parameters()}

    def forward(self, x: Float[Tensor, "rows ... d_in"]) -> Float[Tensor, "rows ... d_out"]:
        weight = self.clients["weight"]
        x = x.movedim(self.rows_axis, 0)
        with torch.autocast(x.device.type, enabled=False):  # not in half precision: it is trained in full
            tokens = x.reshape(weight.shape[0], -1, self.d_in).to(weight.dtype)
            y = torch.bmm(tokens, weight.mT)
            if "bias" in self.clients:
                y = y + self.clients["bias"].unsqueeze(1)
        return y.reshape(*x.shape[:-1], self.d_out).movedim(0, self.rows_axis)
