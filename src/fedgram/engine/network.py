"""The backbone as a block of clients sees it: on a device, with adapters and heads that hold tensors per client."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from fedgram.adapters import ClientLayer
from fedgram.backbone.padding_free import Packing, packed
from fedgram.data.tokens import TokenTable
from fedgram.models.base import FederatedTask, Outputs
from fedgram.state import PARTS, Layers, ModelState, send

__all__ = ["ClientNetwork", "together"]

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
        packs: whether the backbone's layers compute on real tokens only (see `fedgram.backbone.padding_free`).
        masks_all: whether a batch without padding is masked too: the model would find padding in it by itself.
        one_by_one: whether it computes one row at a time: what it answers to a row depends on padding, or on the others
            in a batch (see `fedgram.engine.trial`).
        weights: the digest of the weights that the backbone was loaded with.
    """

    task: FederatedTask
    layers: Mapping[str, ClientLayer]
    device: torch.device
    dtype: torch.dtype
    autocast: Callable[[], AbstractContextManager]
    pad_id: int
    shared: frozenset[str] = frozenset()
    packs: bool = False
    masks_all: bool = False
    one_by_one: bool = False
    weights: str = ""

    def initial_state(self, dtype: torch.dtype | None = None) -> ModelState:
        """Return what the server starts with, without client axis, on the device; of the type of the run by default."""
        parts: dict[str, Layers] = {part: {} for part in PARTS}
        for name, layer in self.layers.items():
            parts[layer.part][name] = {f: t.to(self.device, dtype or self.dtype) for f, t in layer.initial().items()}
        return ModelState(parts["adapter"], parts["head"])

    def share(self, state: ModelState) -> None:
        """Give every client layer what all clients hold in common, of a state without client axis."""
        parts = state.parts
        for name, layer in self.layers.items():
            tensors = parts[layer.part][name]
            layer.share({f: t.to(self.device, self.dtype) for f, t in tensors.items() if f in self.shared})

    def load(self, state: ModelState) -> None:
        """Give every client layer its clients' own tensors, which carry a leading client axis."""
        parts = state.parts
        for name, layer in self.layers.items():
            layer.load(parts[layer.part][name])

    def load_one(self, state: ModelState) -> None:
        """Load one model for all rows: the tensors of a state without client axis, shared ones among them."""
        self.share(state)
        parts = state.parts
        for name, layer in self.layers.items():
            own = {f: t for f, t in parts[layer.part][name].items() if f not in self.shared}
            layer.load({f: t.to(self.device, self.dtype).unsqueeze(0) for f, t in own.items()})

    @contextmanager
    def merged(self, state: ModelState, tokens: int) -> Iterator[None]:
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
        if self.one_by_one and len(rows) > 1:
            return self._run_one_by_one(table, rows)
        found = table.batch(rows, self.pad_id)
        packing = self._packing(found["attention_mask"])
        # Asked of the host: Transformers would ask the device, and wait for it.
        if not self.masks_all and found["attention_mask"].numpy().all():
            del found["attention_mask"]
        batch = {key: send(tensor, self.device) for key, tensor in found.items()}
        labels = batch.pop("labels")
        with self.autocast(), packed(packing):
            return self.task.outputs(batch), labels

    def _run_one_by_one(self, table: TokenTable, rows: np.ndarray) -> tuple[Outputs, Tensor]:
        """Do the same one sample after the other, each with its client's own tensors."""
        clients = self._clients()
        each, samples = len(rows) // clients, np.where(rows < 0, rows.max(), rows)  # a filler's loss has no weight
        outputs: list[Outputs] = []
        for client in range(clients):
            with self._narrowed(client, clients):
                own = samples[client * each : (client + 1) * each]
                outputs += [self.run(table, own[i : i + 1])[0] for i in range(each)]
        labels = send(table.batch(rows, self.pad_id)["labels"], self.device)
        return {key: together([each[key] for each in outputs]) for key in outputs[0]}, labels

    @contextmanager
    def _narrowed(self, client: int, clients: int) -> Iterator[None]:
        """Have one client alone of those that are loaded."""
        if clients == 1:  # what is merged for it stays so
            yield
            return
        loaded = {name: layer.clients for name, layer in self.layers.items()}
        try:
            for name, layer in self.layers.items():
                layer.load({field: tensor[client : client + 1] for field, tensor in loaded[name].items()})
            yield
        finally:
            for name, layer in self.layers.items():
                layer.load(loaded[name])

    def _clients(self) -> int:
        """Return how many clients' tensors are loaded."""
        return next((len(t) for layer in self.layers.values() for t in layer.clients.values()), 1)

    def _packing(self, mask: Tensor) -> Packing | None:
        """Return how a batch is packed; None where it is not. Nothing is asked of a device that does not pack."""
        if not self.packs or float(mask.sum()) >= _FULL * mask.numel():
            return None
        return Packing.of(mask, self._clients())


def together(pieces: Sequence[Tensor]) -> Tensor:
    """Return the rows of some outputs as one tensor; those with a column for every token are filled up with -inf."""
    width = max(piece.shape[-1] for piece in pieces)
    return torch.cat([functional.pad(piece, (0, width - piece.shape[-1]), value=-torch.inf) for piece in pieces])
