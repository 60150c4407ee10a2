"""What the server sees of a round: the payloads of the cohort, through the only two reductions that it needs.

Each rank holds the payloads of the clients that it trained. `Uploads.mean` and `Uploads.stack` reach over all of them,
wherever they are, and give every rank the same bits.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from operator import itemgetter

import torch
from jaxtyping import Float
from torch import Tensor

from fedgram.distributed.collectives import Ranks, grouped
from fedgram.finite import LOWER
from fedgram.state import Layer, Layers, all_finite, send, tensors_of

__all__ = ["LayerUploads", "Uploads", "average"]


class Uploads:
    """The uploads of a cohort for one part of the model.

    Args:
        payloads: what this rank's clients sent, by client.
        weights: the weight of every client of the cohort, on all ranks; they sum to 1.
        ranks: the processes that hold the rest.
        helps: what to do about a payload that is not finite.

    Attributes:
        clients: the cohort in ascending order, which is the order of every stack.
        weights: (N,) float64, in that order.

    Raises:
        TrainingError: on every rank, if a payload on one of them is not finite.
    """

    def __init__(
        self, payloads: Mapping[int, Layers], weights: Mapping[int, float], ranks: Ranks, helps: str = LOWER
    ) -> None:
        self.clients = sorted(weights)
        self.weights: Float[Tensor, " N"] = torch.tensor([weights[c] for c in self.clients], dtype=torch.float64)
        self._own = sorted(payloads)
        own = torch.tensor([weights[c] for c in self._own], dtype=torch.float64)
        self._own_weights: Float[Tensor, " n"] = send(own, ranks.device)
        self._payloads = payloads
        self._ranks = ranks
        self._stacks: dict[tuple[str, str], Tensor] = {}
        self._fields: dict[str, list[str]] | None = None
        ranks.stop_on(_divergence(payloads, helps))

    def mean(self, layer: str, of: Callable[[Layer], Tensor], like: Tensor) -> Tensor:
        """Return Σₙ wₙ f(payloadₙ) for one layer, exactly summed: an all_reduce.

        Args:
            layer: the layer's name.
            of: f, a pure function of the fields that one client sent for that layer.
            like: a tensor of the shape of f's result.

        Returns:
            A float64 tensor, the same on every rank.
        """

        def terms() -> Iterator[Tensor]:
            for group in grouped(zip(self._own, self._own_weights, strict=True), max(1, like.numel())):
                clients, weights = zip(*group, strict=True)
                rows = torch.stack([of(self._payloads[c][layer]) for c in clients]).double()
                yield from torch.stack(weights).reshape(-1, *[1] * like.ndim) * rows

        return self._ranks.sum(terms, len(self.clients), like)

    def fields(self, layer: str) -> list[str]:
        """Return what clients sent for one layer, for methods whose clients don't send the same in every round.

        All ranks must ask, also those that hold no client's payload.
        """
        if self._fields is None:
            own = next((self._payloads[c] for c in self._own), None)
            known = None if own is None else {name: list(fields) for name, fields in own.items()}
            self._fields = self._ranks.first(known) or {}
        return self._fields.get(layer, [])

    def stack(self, layer: str, field: str, like: Tensor) -> Float[Tensor, "N ..."]:
        """Return one field of all clients in client order, with a leading axis of N: an all_gather.

        Args:
            layer: the layer's name.
            field: the field's name.
            like: a tensor of the shape of that field.
        """
        if (layer, field) not in self._stacks:
            own = [self._payloads[c][layer][field] for c in self._own]
            rows = torch.stack(own) if own else like.new_zeros(0, *like.shape)
            self._stacks[layer, field] = self._ranks.gather(rows, self.clients, self._own)
        return self._stacks[layer, field]


@dataclass(frozen=True)
class LayerUploads:
    """What the clients of a cohort sent for one layer.

    Attributes:
        name: of the layer.
        layer: the server's present tensors, of the shapes and types of what was sent.
        uploads: of all layers.
    """

    name: str
    layer: Layer
    uploads: Uploads

    @property
    def clients(self) -> list[int]:
        """The cohort in ascending order, which is the order of every stack."""
        return self.uploads.clients

    @property
    def weights(self) -> Float[Tensor, " N"]:
        """The clients' weights, float64, which sum to 1."""
        return self.uploads.weights

    def mean(self, field: str) -> Tensor:
        """Return Σₙ wₙ xₙ of one field, float64, exactly summed."""
        return self.uploads.mean(self.name, itemgetter(field), self.layer[field])

    def mean_of(self, compute: Callable[[Layer], Tensor], like: Tensor) -> Tensor:
        """Return Σₙ wₙ f(payloadₙ), float64, exactly summed.

        Args:
            compute: f, a pure function of the fields that one client sent.
            like: a tensor of the shape of f's result.
        """
        return self.uploads.mean(self.name, compute, like)

    def stack(self, field: str) -> Float[Tensor, "N ..."]:
        """Return one field of all clients in client order, with a leading axis of N."""
        return self.uploads.stack(self.name, field, self.layer[field])


def average(layers: Layers, uploads: Uploads, fields: Collection[str] | None = None) -> Layers:
    """Return the weighted mean of every field of every layer (FedAvg, McMahan et al., 2017).

    Args:
        layers: the server's present tensors.
        uploads: the clients'.
        fields: those to average, where others are to stay what they are.
    """

    def next_field(name: str, field: str, old: Tensor) -> Tensor:
        if fields is not None and field not in fields:
            return old
        return uploads.mean(name, itemgetter(field), old).to(old.dtype)

    return {
        name: {field: next_field(name, field, old) for field, old in layer.items()} for name, layer in layers.items()
    }


def _divergence(payloads: Mapping[int, Layers], helps: str) -> str | None:
    """Return what the first client that sent something that is not finite sent, if one did."""
    if all_finite(tensors_of(layers) for layers in payloads.values()):
        return None
    found = (
        f"client {client} diverged: {field} of {name} holds nan or inf; {helps}"
        for client in sorted(payloads)
        for name, layer in payloads[client].items()
        for field, tensor in layer.items()
        if not torch.isfinite(tensor).all()
    )
    return next(found)
