"""Rounds of a method on one layer, whose clients drift at random instead of training."""

from dataclasses import dataclass

import torch
from torch import nn

from fedgram.distributed.collectives import Ranks
from fedgram.distributed.uploads import Uploads
from fedgram.methods import RoundContext
from fedgram.methods.client_memory import begin, check_changes, in_order, without_padding
from fedgram.seeding import torch_generator
from fedgram.state import ModelState, ServerState, split
from helpers import rng, unequal_weights


@dataclass
class Played:
    """A round that is over: what it was, and the server's state before and after; by client, what was sent and trained.

    What is given by client are the tensors of the one layer, without the head; `read` has its name above them.
    """

    ctx: RoundContext
    before: ServerState
    after: ServerState
    down: dict
    start: dict
    trained: dict
    up: dict
    read: dict
    weights: dict


def make_adapter(method, d_in=11, d_out=7):
    with torch.random.fork_rng(devices=[]):
        return method.adapter(nn.Linear(d_in, d_out, dtype=torch.float64), torch_generator(0, "adapter of q"))


def play(method, cohorts, adapter=None, drift=0.5, seed=0):
    """Yield one round after the other, in double precision."""
    random, clients = rng(seed), max(max(cohort) for cohort in cohorts) + 1
    layer = {field: tensor.double() for field, tensor in (adapter or make_adapter(method)).initial().items()}
    model = ModelState({"q": layer})
    server = ServerState(model, method.server_start(model, clients))
    initial, kept = server.model, {}
    last = dict.fromkeys(range(clients), 0)
    for number, cohort in enumerate(cohorts, 1):
        ctx = RoundContext(number, 0, {c: last[c] for c in sorted(cohort)}, clients)
        done = Played(ctx, server, server, {}, {}, {}, {}, {}, {})
        for c in ctx.cohort:
            own, client = ModelState({"q": kept.get(c, {})}), method.context(server, c, ctx)
            payload, begun = begin(method, server, initial, own, client)
            start = in_order(method.pad(begun, server, ctx), initial)
            fields = split(start, method.trained_fields)[0].adapter["q"]
            moved = {f: t + drift * torch.from_numpy(random.standard_normal(t.shape)) for f, t in fields.items()}
            trained = ModelState({"q": start.adapter["q"] | moved})
            sent = method.upload(begun, without_padding(trained, begun), client)
            kept[c] = method.kept(trained).adapter.get("q", {})
            done.down[c], done.start[c] = payload.adapter.get("q", {}), start.adapter["q"]
            done.trained[c], done.up[c] = trained.adapter["q"], sent.adapter["q"]
            done.read[c] = method.receive(server, sent, client).parts["adapter"]
            last[c] = number
        done.weights = dict(zip(ctx.cohort, unequal_weights(len(cohort), random).tolist(), strict=True))
        uploads = Uploads(done.read, done.weights, Ranks())
        heads = Uploads({c: {} for c in ctx.cohort}, done.weights, Ranks())
        server = done.after = method.next_state(server, uploads, heads, ctx)
        check_changes(method, done.before.adapter, server.adapter, number)
        yield done


def numbers(payload):
    """How many numbers a payload has."""
    return sum(tensor.numel() for tensor in payload.values())


def weight_of(adapter, layer):
    """The layer's weight with all that is added to it, multiplied out."""
    adapter.load({field: tensor.unsqueeze(0) for field, tensor in layer.items()})
    down, up = adapter.factors()
    return adapter.base.weight + adapter.scale * up[0].mT @ down[0] + layer.get("residual", 0)


def mean(played, of):
    """The weighted mean over the clients of a round of some function of what they trained."""
    return sum(played.weights[c] * of(own) for c, own in played.trained.items())
