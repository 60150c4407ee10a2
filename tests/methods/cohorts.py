"""Cohorts of drawn LoRA factors, as a server sees them and as arrays."""

from dataclasses import dataclass

import numpy as np
import torch

from fedgram.distributed.collectives import Ranks
from fedgram.distributed.uploads import Uploads
from helpers import INFO, rng


@dataclass
class Cohort:
    """Clients and what they sent, of one layer "q".

    Attributes:
        clients: the fields of each, NumPy.
        weights: of each.
    """

    clients: list
    weights: np.ndarray

    @property
    def layers(self):
        """A server's tensors of the right shapes, which no aggregation of two factors depends on."""
        return {"q": {f: torch.full(a.shape, 7.0, dtype=torch.float64) for f, a in self.clients[0].items()}}

    @property
    def uploads(self):
        payloads = {n: {"q": {f: torch.from_numpy(a) for f, a in own.items()}} for n, own in enumerate(self.clients)}
        return Uploads(payloads, dict(enumerate(self.weights.tolist())), Ranks())

    def aggregated(self, method, ctx=INFO):
        after = method.aggregate(self.layers, self.uploads, ctx)["q"]
        return {field: tensor.numpy() for field, tensor in after.items()}

    @property
    def target(self):
        """The weighted mean of the products."""
        return sum(w * c["B"] @ c["A"] for w, c in zip(self.weights, self.clients, strict=True))

    @property
    def means(self):
        return {f: sum(w * c[f] for w, c in zip(self.weights, self.clients, strict=True)) for f in ("A", "B")}

    def error(self, layer):
        """How far a product is from the target, relative to it."""
        return np.linalg.norm(self.target - layer["B"] @ layer["A"]) / np.linalg.norm(self.target)

    def best_error(self, rank):
        values = np.linalg.svd(self.target, compute_uv=False)
        return np.linalg.norm(values[rank:]) / np.linalg.norm(values)


def drifted_cohort(clients=5, d_out=13, d_in=11, rank=3, drift=0.3, seed=0, size_of_B=1.0, common=1.0):
    """Clients that come from common factors of unit-sized columns, times ``common``, each with its own noise."""
    random = rng(seed)
    A, B = random.standard_normal((rank, d_in)) / d_in**0.5, random.standard_normal((d_out, rank)) / d_out**0.5
    made = [
        {
            "A": common * A + drift * random.standard_normal(A.shape) / d_in**0.5,
            "B": size_of_B * (common * B + drift * random.standard_normal(B.shape) / d_out**0.5),
        }
        for _ in range(clients)
    ]
    return Cohort(made, random.dirichlet(np.full(clients, 5.0)))
