"""Server optimizers: the clients' mean change is a gradient of the server's model (Reddi et al., 2021).

Symbols: ``x`` the server's tensors, ``Δ = Σ wₙ xₙ - x`` the mean change, both of one field of one layer.
"""

import math
from dataclasses import dataclass, replace
from itertools import chain
from typing import Literal

import torch
from torch import Tensor

from fedgram.distributed.uploads import Uploads
from fedgram.errors import ConfigurationError, require_choice
from fedgram.optim import AdamW
from fedgram.state import Layer, Layers, ModelState, ServerMemory, ServerState

__all__ = ["Kind", "ServerOptimizer", "add_mean_change"]

Kind = Literal["none", "adam"]
_MOMENTS = ("exp_avg", "exp_avg_sq")
"""Adam's memory of one tensor; the number of the round stands for its steps."""


@dataclass(frozen=True)
class ServerOptimizer:
    """How the server's model follows the clients' mean change Δ.

    "none" adds it, x ← x + Δ: gradient descent with a learning rate of 1. "adam" takes -Δ for a gradient of Adam, with
    moments that last, β = (0.9, 0.999) and ε = 1e-8 (Reddi et al., Adaptive Federated Optimization, arXiv 2003.00295;
    there ε is 1e-3 and there is no bias correction, but both are what published code takes from torch). There is no
    weight decay: torch's default of 0.01 would shrink A and B by a hundredth of the learning rate in every round, also
    where no client has moved them.

    Args:
        kind: which.
        lr: η of "adam".

    Raises:
        ConfigurationError: a kind that there is not, or a learning rate that is not positive.
    """

    kind: Kind = "none"
    lr: float = 1e-3

    def __post_init__(self) -> None:
        require_choice("method.server_optimizer", self.kind, Kind)
        if not 0 < self.lr < math.inf:
            raise ConfigurationError(f"method.server_lr must be a positive number, got {self.lr}; 1e-3 is usual")

    def start(self, model: ModelState) -> ServerMemory:
        """Return the moments at the start, zeros by layer and ``field.moment``; none without an optimizer."""
        if self.kind == "none":
            return ServerMemory()
        layers = chain(model.adapter.items(), model.head.items())
        return ServerMemory(
            {
                name: {f"{field}.{moment}": torch.zeros_like(x) for field, x in layer.items() for moment in _MOMENTS}
                for name, layer in layers
            }
        )

    def step(self, server: ServerState, averaged: ServerState, number: int) -> ServerState:
        """Return the server's next state, with its moments.

        Args:
            server: its present state, x.
            averaged: the next one without an optimizer, x + Δ.
            number: of the round, which counts the steps.
        """
        if self.kind == "none":
            return averaged
        moments = {name: dict(own) for name, own in server.memory.layers.items()}

        def stepped(layers: Layers, targets: Layers) -> Layers:
            return {
                name: {f: self._moved(f, x, targets[name][f], moments[name], number) for f, x in layer.items()}
                for name, layer in layers.items()
            }

        model = ModelState(stepped(server.adapter, averaged.adapter), stepped(server.head, averaged.head))
        return ServerState(model, replace(server.memory, layers=moments))

    def _moved(self, field: str, x: Tensor, target: Tensor, moments: Layer, number: int) -> Tensor:
        """Return one tensor after one step of Adam along x - target, and replace its moments."""
        params = x.detach().clone().reshape(1, -1)
        memory = {moment: moments[f"{field}.{moment}"].clone().reshape(1, -1) for moment in _MOMENTS}
        memory["step"] = torch.full((1,), number - 1, device=x.device)
        rate = torch.full((1,), self.lr, dtype=torch.float64, device=x.device)
        AdamW(lr=self.lr).update(params, (x - target).reshape(1, -1), memory, rate)
        moments |= {f"{field}.{moment}": memory[moment].reshape(x.shape) for moment in _MOMENTS}
        return params.reshape(x.shape)


def add_mean_change(layers: Layers, uploads: Uploads) -> Layers:
    """Return x + Σ wₙ (xₙ - x): the weighted mean of the uploads, and every number bit by bit that no client moved.

    Args:
        layers: the server's present tensors, x.
        uploads: the clients', xₙ.
    """

    def moved(name: str, field: str, x: Tensor) -> Tensor:
        return (x + uploads.mean(name, lambda sent: sent[field] - x, x)).to(x.dtype)

    return {name: {field: moved(name, field, x) for field, x in layer.items()} for name, layer in layers.items()}
