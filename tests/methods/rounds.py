"""Rounds of a method on one layer, whose clients drift at random instead of training."""

from dataclasses import dataclass

import torch
from torch import nn

from fedgram.collectives import Ranks
from fedgram.methods import RoundInfo
from fedgram.seeding import torch_generator
from fedgram.state import split
from fedgram.uploads import Uploads
from helpers import rng, unequal_weights


@dataclass
class Played:
    """A round that is over: what it was, and the server's state before and after; by client, what was sent and trained.

    All tensors are those of the one layer, without the head.
    """

    info: RoundInfo
    before: dict
    after: dict
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
    server = {"adapter": {"q": layer}, "head": {}}
    server["server"] = method.server_start(server, clients)
    held, kept = method.without_shared(server), {}
    last = dict.fromkeys(range(clients), 0)
    for number, cohort in enumerate(cohorts, 1):
        info = RoundInfo(number, 0, {c: last[c] for c in sorted(cohort)}, clients)
        done = Played(info, server, server, {}, {}, {}, {}, {}, {})
        for c in info.cohort:
            payload = method.sent_down(server, c, info)
            own = {"adapter": {"q": {**held["adapter"]["q"], **kept.get(c, {})}}, "head": {}}
            start = method.start(server, own, payload, c, info)
            fields = split(start, method.trained_fields)[0]["adapter"]["q"]
            moved = {f: t + drift * torch.from_numpy(random.standard_normal(t.shape)) for f, t in fields.items()}
            trained = {"adapter": {"q": start["adapter"]["q"] | moved}, "head": {}}
            sent = method.payload_up(server, start, trained, c, info)
            kept[c] = method.kept(trained)["adapter"].get("q", {})
            done.down[c], done.start[c] = payload["adapter"]["q"], start["adapter"]["q"]
            done.trained[c], done.up[c] = trained["adapter"]["q"], sent["adapter"]["q"]
            done.read[c] = method.receive(server, sent, c, info)["adapter"]
            last[c] = number
        done.weights = dict(zip(info.cohort, unequal_weights(len(cohort), random).tolist(), strict=True))
        uploads = Uploads(done.read, done.weights, Ranks())
        heads = Uploads({c: {} for c in info.cohort}, done.weights, Ranks())
        server = done.after = method.next_state(server, uploads, heads, info)
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
