"""Clients that rebuild what they hold from the seed, what they kept and what they were sent, beside those of a fit."""

from contextlib import contextmanager

import torch

from fedgram.federation import rounds as engine
from fedgram.federation.rounds import Federation
from fedgram.methods.client_memory import begin, read
from fedgram.state import flatten, merge, unflatten


class Replay:
    """The memories of a federation's clients, each as the client would have it on a machine of its own.

    Attributes:
        starts: how many starts of local training were compared.
        wrong: those that differ from what the client's memory gives, and shared fields that do.
    """

    def __init__(self):
        self.memories, self.starts, self.wrong = {}, 0, []

    def compare(self, federation, payload, start, ctx):
        """Let a client read a payload, and compare what it would start from with what a fit starts from."""
        method = federation.method
        memory = read(method, self.memories.get(ctx.client, federation.held), payload, ctx)
        expected = method.without_shared(method.start(memory, payload, ctx))
        self._note(ctx, flatten(start), flatten(expected))
        common = method.shared_fields - method.increments
        self._note(ctx, _only(federation.state, common), _only(memory, common))
        self.memories[ctx.client] = memory
        self.starts += 1

    def keep(self, kept):
        """Let clients keep what a round leaves them with."""
        for client, tensors in kept.items():
            own = unflatten({key: t for key, t in tensors.items() if not key.startswith("optimizer")})
            self.memories[client] = merge(self.memories[client], own)

    def _note(self, ctx, used, expected):
        differ = sorted(used.keys() ^ expected.keys())
        differ += [key for key in used.keys() & expected.keys() if not _same(used[key], expected[key])]
        self.wrong += [f"round {ctx.round.number}, client {ctx.client}: {key}" for key in differ]


def _only(state, fields):
    return {
        f"{name}|{field}": tensor
        for name, layer in state.adapter.items()
        for field, tensor in layer.items()
        if field in fields
    }


def _same(a, b):
    return a.shape == b.shape and a.dtype == b.dtype and torch.equal(a, b)  # NaN equals nothing


@contextmanager
def replayed():
    """Replay all that clients of a fit are sent; yields what came of it."""
    replay, download, aggregate = Replay(), Federation.download, Federation.aggregate

    def compared(self, current, block):
        def noted(method, server, initial, kept, ctx):
            payload, start = begin(method, server, initial, kept, ctx)
            replay.compare(self, payload, start, ctx)
            return payload, start

        engine.begin = noted
        try:
            return download(self, current, block)
        finally:
            engine.begin = begin

    def remembered(self, current):
        aggregate(self, current)
        replay.keep(current.kept)

    Federation.download, Federation.aggregate = compared, remembered
    try:
        yield replay
    finally:
        Federation.download, Federation.aggregate = download, aggregate
