"""Rounds of any method on two small layers, in which clients move at random or not at all, and what their models do."""

from dataclasses import dataclass, field, replace

import torch
from torch import nn

from fedgram.distributed.collectives import Ranks
from fedgram.distributed.uploads import Uploads
from fedgram.methods import RoundContext
from fedgram.methods.client_memory import NOTHING, begin, without_padding
from fedgram.seeding import torch_generator
from fedgram.state import PARTS, ModelState, ServerState, merge, split
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
        model = ModelState(start, head)
        self.server = ServerState(model, self.method.server_start(model, self.clients))
        self.initial = self.server.model
        self.last = dict.fromkeys(range(self.clients), 0)
        self.number = 0
        self.drifted = False
        if self.method.describes_data:
            features = {c: torch.from_numpy(rng(c).standard_normal((3, 4))) for c in range(self.clients)}
            labels = torch.zeros(3, dtype=torch.int64)
            told = {c: self.method.describe(x, labels, c, self.seed) for c, x in features.items()}
            self.server = replace(self.server, memory=self.method.read_descriptions(self.server, told))

    def moved(self, tensor, size):
        return tensor + size * torch.from_numpy(self.random.standard_normal(tuple(tensor.shape)))

    def round(self, cohort, drift=0.0, decay=0.0):
        """Play a round, with weights of its own.

        Args:
            cohort: who takes part.
            drift: the size of the random numbers that clients move by.
            decay: the share of the way to the start of the run that weight decay then draws them.
        """
        ctx, method, read, kept = self.context(cohort), self.method, {}, {}
        weights = dict(zip(ctx.cohort, unequal_weights(len(ctx.cohort), self.random).tolist(), strict=True))
        for c in ctx.cohort:
            client = method.context(self.server, c, ctx)
            begun = self.begun(c, ctx)
            trained = self._trained(method.pad(begun, self.server, ctx), c, ctx, drift)
            if decay:
                trained = _drawn(trained, self.origin(c, ctx), decay)
            sent = method.upload(begun, without_padding(trained, begun), client)
            read[c], kept[c] = method.receive(self.server, sent, client), method.kept(trained)
        adapters, heads = (Uploads({c: r.parts[p] for c, r in read.items()}, weights, Ranks()) for p in PARTS)
        self.server = method.next_state(self.server, adapters, heads, ctx)
        for c in ctx.cohort:
            answer = method.answer(self.server, method.context(self.server, c, ctx))
            self.kept[c] = kept[c] if answer is None else merge(kept[c], answer)
        self.last |= dict.fromkeys(ctx.cohort, ctx.number)
        self.number = ctx.number
        self.drifted |= drift > 0

    def context(self, cohort):
        """What a method knows of the next round, if these clients take part."""
        return RoundContext(self.number + 1, self.seed, {c: self.last[c] for c in sorted(cohort)}, self.clients)

    def begun(self, client, ctx):
        """What a client starts a round with, in its own shapes."""
        kept = self.kept.get(client, NOTHING)
        return begin(self.method, self.server, self.initial, kept, self.method.context(self.server, client, ctx))[1]

    def start(self, client, ctx):
        """What a client starts a round with, in the shapes that all clients have."""
        return self.method.pad(self.begun(client, ctx), self.server, ctx)

    def origin(self, client, ctx):
        """What weight decay draws a client to, if that is the start of the run."""
        server, context = self.method.origin(self.server, self.initial), self.method.context(self.server, client, ctx)
        nothing = ModelState(head=self.initial.head)
        return self.method.pad(begin(self.method, server, self.initial, nothing, context)[1], self.server, ctx)

    def _trained(self, start, client, ctx, drift):
        """Let a client's tensors move; what they are filled up with stays zero, as it does in training."""
        rank = self.method.rank_of(self.server, client, ctx)
        axes = {f.name: f.rank_axis for f in self.method.fields if f.rank_axis is not None}

        def moved(name, tensor):
            new = self.moved(tensor, drift)
            if name in axes:
                new.narrow(axes[name], rank, tensor.shape[axes[name]] - rank).zero_()
            return new

        def all_moved(layers):
            return {name: {f: moved(f, t) for f, t in layer.items()} for name, layer in layers.items()}

        for phase in self.method.phases(ctx.number):
            fields, _ = split(start, phase.trained)
            start = merge(start, ModelState(all_moved(fields.adapter), all_moved(fields.head)))
        return start

    def functions(self, cohort):
        """Return what the server's model does, and what those of some clients do that each has for itself.

        A client's is that which it would train in the next round, with what it would be sent now: one that was away has
        an old one, and to be brought up to date is not to move.
        """
        found = {"server": self._function(self.method.model(self.server))}
        if self.method.personal:
            ctx = self.context(cohort)
            for c in ctx.cohort:
                start = self.start(c, ctx)
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
            layer = model.adapter[name]
            adapter.share({f: t for f, t in self.server.adapter[name].items() if f in shared})
            adapter.load({f: t.unsqueeze(0) for f, t in layer.items() if f not in shared})
            found[name] = adapter(torch.eye(adapter.d_in, dtype=torch.float64).unsqueeze(0))
        return found | {name: layer["weight"] for name, layer in model.head.items()}


def change(before, after):
    """How far models have moved, as the largest share of a layer's outputs that has changed."""
    return max(
        float((after[who][k] - tensor).norm() / tensor.norm())
        for who, model in before.items()
        for k, tensor in model.items()
    )


def _drawn(model, origin, share):
    """A model that is moved some of the way to another."""

    def drawn(layers, towards):
        return {n: {f: t.lerp(towards[n][f], share) for f, t in layer.items()} for n, layer in layers.items()}

    return ModelState(drawn(model.adapter, origin.adapter), drawn(model.head, origin.head))
