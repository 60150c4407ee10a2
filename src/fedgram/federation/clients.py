"""What clients keep from round to round, and the models that come of it."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch

from fedgram.data import FederatedData, Shards
from fedgram.distributed.collectives import Ranks
from fedgram.engine.block import Memory
from fedgram.state import ModelState, all_finite, flatten, merge, unflatten

__all__ = ["ClientStore", "Models", "divergence", "to_keep"]

_MEMORY = "optimizer"


@dataclass
class ClientStore:
    """Tensors that stay with clients: parts of their models, and their optimizers' memories.

    Every rank has those of all clients, on the CPU, so that any rank may train any client.

    Attributes:
        tensors: by client, under flat names: ``part|layer|field``; and ``optimizer|name``, or
            ``optimizer:phase|name`` where a method's phases have names.
    """

    tensors: dict[int, dict[str, torch.Tensor]] = field(default_factory=dict)

    @property
    def with_models(self) -> list[int]:
        """The clients that keep parts of their models, ascending; others may keep their optimizers' memories alone."""
        return sorted(c for c, kept in self.tensors.items() if any(not key.startswith(_MEMORY) for key in kept))

    def state(self, client: int) -> ModelState:
        """Return what a client keeps of its model."""
        kept = self.tensors.get(client, {})
        return unflatten({key: tensor for key, tensor in kept.items() if not key.startswith(_MEMORY)})

    def memory(self, client: int, phase: str = "") -> Memory | None:
        """Return what a client's optimizer remembers of a phase; None if nothing."""
        kept, start = self.tensors.get(client, {}), _memory_of(phase)
        return {key.removeprefix(start): t for key, t in kept.items() if key.startswith(start)} or None

    def update(self, new: Mapping[int, dict[str, torch.Tensor]], cohort: list[int], ranks: Ranks) -> None:
        """Replace what the clients of a cohort keep; each rank gives those that it trained."""
        own = sorted(new)
        forms = [{key: (tuple(t.shape), t.dtype) for key, t in new[client].items()} for client in own[:1]]
        form = ranks.first(forms[0] if forms else None) or {}
        for key, (shape, dtype) in form.items():
            rows = [new[client][key].to(ranks.device) for client in own]
            stacked = torch.stack(rows) if rows else torch.zeros(0, *shape, dtype=dtype, device=ranks.device)
            for client, row in zip(cohort, ranks.gather(stacked, cohort, own).cpu(), strict=True):
                self.tensors.setdefault(client, {})[key] = row.clone()


def to_keep(state: ModelState, memories: Mapping[str, Memory]) -> dict[str, torch.Tensor]:
    """Return what a client keeps, under flat names: of its model, and its optimizer's memory by phase."""
    remembered = {f"{_memory_of(phase)}{name}": t for phase, own in memories.items() for name, t in own.items()}
    return flatten(state) | remembered


def _memory_of(phase: str) -> str:
    return f"{_MEMORY}:{phase}|" if phase else f"{_MEMORY}|"


def divergence(kept: Mapping[int, Mapping[str, torch.Tensor]]) -> str | None:
    """Return what a client keeps that is not finite, if it does."""
    if all_finite(tensors.values() for tensors in kept.values()):
        return None
    for client, tensors in kept.items():
        for name, tensor in tensors.items():
            if not torch.isfinite(tensor).all():
                return f"client {client} diverged: its {name} holds nan or inf; a lower optimizer.lr helps"
    return None


@dataclass(frozen=True)
class Models:
    """The models of a federation: the server's, and where clients keep parts of their own, one of each client.

    Attributes:
        server: the server's tensors.
        store: what clients keep.
        shards: the training samples of each client.
        seed: the seed of the run.
        dealt: the samples of each client in other splits, by split, as far as they have been asked for.
    """

    server: ModelState
    store: ClientStore
    shards: Shards
    seed: int
    dealt: dict[str, Shards] = field(default_factory=dict)

    def of(self, client: int) -> ModelState:
        """Return the model of a client: the server's, with what the client keeps in its place."""
        return merge(self.server, self.store.state(client))

    @property
    def keeping(self) -> np.ndarray:
        """The clients with models of their own, ascending, int64; all others have the server's."""
        return np.array(self.store.with_models, np.int64)

    @property
    def personal(self) -> bool:
        """Whether some client's model differs from the server's."""
        return bool(self.store.with_models)

    def answering(self, data: FederatedData, split: str) -> list[tuple[ModelState, np.ndarray]]:
        """Return models with the samples that each answers: those of its clients' own kind, every sample once."""
        if not self.personal:
            return [(self.server, np.arange(len(data.split(split))))]
        if split not in self.dealt:
            self.dealt[split] = data.shares(self.shards, split, self.seed)
        shares, keeping = self.dealt[split], self.keeping
        own = [(client, shares[client]) for client in keeping[shares.sizes_of(keeping) > 0].tolist()]
        others = np.ones(len(data.split(split)), bool)
        others[np.concatenate([np.zeros(0, np.int64), *(rows for _, rows in own)])] = False
        servers = [(self.server, np.flatnonzero(others))] if others.any() else []
        return servers + [(self.of(client), rows) for client, rows in own]
