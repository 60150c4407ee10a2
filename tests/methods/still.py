"""Rounds of any method on two small layers, in which clients move at random or not at all, and what their models do."""

from dataclasses import dataclass, field

import torch
from torch import nn

from fedgram.collectives import Ranks
from fedgram.methods import RoundInfo
from fedgram.seeding import torch_generator
from fedgram.state import merge, split
from fedgram.uploads import Uploads
from helpers import rng, unequal_weights

SIZES = {"q": (13, 10), "k": (9, 12)}
"""(d_in, d_out) of the layers: neither is square."""


@dataclass
class World:
    """A server and its clients, in double precision, somewhere in a run.

    Attributes:
        method: theirs.
        clients: how many there are.
        noise: what is added to all tensors of the start that clients would train, so that nothing is zero.
        seed: of all that is random.
    """

    method: object
    clients: int = 7
    noise: float = 0.4
    seed: int = 0
    kept: dict = field(default_factory=dict)

    def __post_init__(self):
        self.random = rng(self.seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            linears = {name: nn.Linear(*sizes, dtype=torch.float64) for name, sizes in SIZES.items()}
        make = self.method.adapter
        noisy = {f.name for f in self.method.fields if f.trained and not f.fresh}  # others stay what they were
        self.adapters = {
            n: make(linear, torch_generator(self.seed, f"adapter of {n}")) for n, linear in linears.items()
        }
        start = {
            name: {f: self.moved(t.double(), self.noise * (f in noisy)) for f, t in adapter.initial().items()}
            for name, adapter in self.adapters.items()
        }
        head = {} if self.method.head == "frozen" else {"head": {"weight": self.moved(torch.zeros(2, 5).double(), 1.0)}}
        self.server = {"adapter": start, "head": head}
        self.server["server"] = self.method.server_start(self.server, self.clients)
        self.initial = {part: self.server[part] for part in ("adapter", "head")}
        self.held = self.method.without_shared(self.server)
        self.last = dict.fromkeys(range(self.clients), 0)
        self.number = 0
        self.drifted = False
        if self.method.describes_data:
            features = {c: torch.from_numpy(rng(c).standard_normal((3, 4))) for c in range(self.clients)}
            labels = torch.zeros(3, dtype=torch.int64)
            told = {c: self.method.describe(x, labels, c, self.seed) for c, x in features.items()}
            self.server["server"] = self.method.read_descriptions(self.server, told)

    def moved(self, tensor, size):
        return tensor + size * torch.from_numpy(self.random.standard_normal(tuple(tensor.shape)))

    def round(self, cohort, drift=0.0, decay=0.0):
        """Play a round, with weights of its own.

        Args:
            cohort: who takes part.
            drift: the size of the random numbers that clients move by.
            decay: the share of the way to the start of the run that weight decay then draws them.
        """
        info, method, read, kept = self.info(cohort), self.method, {}, {}
        weights = dict(zip(info.cohort, unequal_weights(len(info.cohort), self.random).tolist(), strict=True))
        for c in info.cohort:
            start = self.start(c, info)
            trained = self._trained(start, c, info, drift)
            if decay:
                trained = _drawn(trained, self.origin(c, info), decay)
            sent = method.payload_up(self.server, start, trained, c, info)
            read[c], kept[c] = method.receive(self.server, sent, c, info), method.kept(trained)
        adapters, heads = (Uploads({c: r[p] for c, r in read.items()}, weights, Ranks()) for p in ("adapter", "head"))
        self.server = method.next_state(self.server, adapters, heads, info)
        for c in info.cohort:
            answer = method.answer(self.server, c, info)
            self.kept[c] = kept[c] if answer is None else merge(kept[c], answer)
        self.last |= dict.fromkeys(info.cohort, info.number)
        self.number = info.number
        self.drifted |= drift > 0

    def info(self, cohort):
        """What a method knows of the next round, if these clients take part."""
        return RoundInfo(self.number + 1, self.seed, {c: self.last[c] for c in sorted(cohort)}, self.clients)

    def start(self, client, info):
        """What a client starts a round with."""
        own = merge(self.held, self.kept.get(client, {"adapter": {}, "head": {}}))
        return self.method.start(self.server, own, self.method.sent_down(self.server, client, info), client, info)

    def origin(self, client, info):
        """What weight decay draws a client to, if that is the start of the run."""
        server = self.method.origin(self.server, self.initial)
        payload = self.method.payload_down(server, client, info)
        return self.method.start(server, self.held, payload, client, info)

    def _trained(self, start, client, info, drift):
        """Let a client's tensors move; what they are filled up with stays zero, as it does in training."""
        rank = self.method.rank_of(self.server, client, info)
        axes = {f.name: f.rank_axis for f in self.method.fields if f.rank_axis is not None}

        def moved(name, tensor):
            new = self.moved(tensor, drift)
            if name in axes:
                new.narrow(axes[name], rank, tensor.shape[axes[name]] - rank).zero_()
            return new

        for phase in self.method.phases(info):
            fields, _ = split(start, phase.trained)
            new = {
                part: {name: {f: moved(f, t) for f, t in layer.items()} for name, layer in layers.items()}
                for part, layers in fields.items()
            }
            start = merge(start, new)
        return start

    def functions(self, cohort):
        """Return what the server's model does, and what those of some clients do that each has for itself.

        A client's is that which it would train in the next round, with what it would be sent now: one that was away has
        an old one, and to be brought up to date is not to move.
        """
        found = {"server": self._function(self.method.model(self.server))}
        if self.method.personal:
            info = self.info(cohort)
            for c in info.cohort:
                start = self.start(c, info)
                # One of a lower rank trains without the other ranks of the server's, but is judged with them.
                own = start if self.method.client_ranks is None else self.method.kept(start)
                found[c] = self._function(merge(self.method.model(self.server), own))
        return found

    def functions_after(self, cohort):
        """Return the same once a round is over, of the models that are judged."""
        model = self.method.model(self.server)
        personal = {c: self._function(merge(model, self.kept[c])) for c in cohort} if self.method.personal else {}
        return {"server": self._function(model), **personal}

    @torch.no_grad()
    def _function(self, model):
        """Return the outputs of every layer for some inputs, and the head."""
        found, shared = {}, self.method.shared_fields
        for name, adapter in self.adapters.items():
            layer = model["adapter"][name]
            adapter.share({f: t for f, t in self.server["adapter"][name].items() if f in shared})
            adapter.load({f: t.unsqueeze(0) for f, t in layer.items() if f not in shared})
            found[name] = adapter(torch.eye(adapter.d_in, dtype=torch.float64).unsqueeze(0))
        return found | {name: layer["weight"] for name, layer in model["head"].items()}


def change(before, after):
    """How far models have moved, as the largest share of a layer's outputs that has changed."""
    return max(
        float((after[who][k] - tensor).norm() / tensor.norm())
        for who, model in before.items()
        for k, tensor in model.items()
    )


def _drawn(model, origin, share):
    """A model that is moved some of the way to another."""
    return {
        part: {n: {f: t.lerp(origin[part][n][f], share) for f, t in layer.items()} for n, layer in layers.items()}
        for part, layers in model.items()
    }
