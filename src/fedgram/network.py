"""The backbone as a block of clients sees it: on a device, with adapters and heads that hold tensors per client."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedgram.adapters import ClientLayer
from fedgram.data.tokens import TokenTable
from fedgram.models.base import FederatedTask, Outputs
from fedgram.packing import Packing, packed
from fedgram.state import PARTS, State, send

__all__ = ["ClientNetwork"]

_FULL = 0.9
"""A batch with a larger share of real tokens, as evaluation in order of length has, costs less padded than packed."""


@dataclass
class ClientNetwork:
    """A task's network with client layers in it.

    Attributes:
        task: the network and its loss.
        layers: the layers that hold tensors per client, by dotted name.
        device: where it computes.
        dtype: the type of the clients' tensors.
        autocast: makes the context of a forward pass.
        pad_id: the token that pads.
        shared: the adapters' fields that all clients hold in common.
        packs: whether the backbone's layers compute on real tokens only (see `fedgram.packing`).
    """

    task: FederatedTask
    layers: Mapping[str, ClientLayer]
    device: torch.device
    dtype: torch.dtype
    autocast: Callable[[], AbstractContextManager]
    pad_id: int
    shared: frozenset[str] = frozenset()
    packs: bool = False

    def initial_state(self) -> State:
        """Return what the server starts with, without client axis, on the device."""
        state: State = {part: {} for part in PARTS}
        for name, layer in self.layers.items():
            state[layer.part][name] = {f: t.to(self.device, self.dtype) for f, t in layer.initial().items()}
        return state

    def share(self, state: State) -> None:
        """Give every client layer what all clients hold in common, of a state without client axis."""
        for name, layer in self.layers.items():
            tensors = state[layer.part][name]
            layer.share({f: t.to(self.device, self.dtype) for f, t in tensors.items() if f in self.shared})

    def load(self, state: State) -> None:
        """Give every client layer its clients' own tensors, which carry a leading client axis."""
        for name, layer in self.layers.items():
            layer.load(state[layer.part][name])

    def load_one(self, state: State) -> None:
        """Load one model for all rows: the tensors of a state without client axis, shared ones among them."""
        self.share(state)
        for name, layer in self.layers.items():
            own = {f: t for f, t in state[layer.part][name].items() if f not in self.shared}
            layer.load({f: t.to(self.device, self.dtype).unsqueeze(0) for f, t in own.items()})

    @contextmanager
    def merged(self, state: State, tokens: int) -> Iterator[None]:
        """Load one model for all rows while it answers a number of tokens, without gradients.

        Where that is cheaper, the layers compute with its adapters added to their weights, of which there is a copy
        meanwhile.
        """
        self.load_one(state)
        try:
            with self.autocast():  # where it computes in a lower precision than the weights', nothing is added to them
                for layer in self.layers.values():
                    layer.merge(tokens)
            yield
        finally:
            for layer in self.layers.values():
                layer.unmerge()

    def held_once(self) -> Iterator[Tensor]:
        """Yield what is in memory once, however many clients there are: the backbone, and what all clients share."""
        yield from self.task.parameters()
        yield from self.task.buffers()
        for layer in self.layers.values():
            yield from layer.held_once()

    def run(self, table: TokenTable, rows: np.ndarray) -> tuple[Outputs, Tensor]:
        """Return what the network says of some samples, C clients in C equal parts, and their labels."""
        found = table.batch(rows, self.pad_id)
        packing = self._packing(found["attention_mask"])
        # Asked of the host: Transformers would ask the device, and wait for it.
        if found["attention_mask"].numpy().all():
            del found["attention_mask"]
        batch = {key: send(tensor, self.device) for key, tensor in found.items()}
        labels = batch.pop("labels")
        with self.autocast(), packed(packing):
            return self.task.outputs(batch), labels

    def _packing(self, mask: Tensor) -> Packing | None:
        """Return how a batch is packed; None where it is not. Nothing is asked of a device that does not pack."""
        if not self.packs or float(mask.sum()) >= _FULL * mask.numel():
            return None
        clients = next(len(t) for layer in self.layers.values() for t in layer.clients.values())
        return Packing.of(mask, clients)
