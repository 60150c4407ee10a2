"""What a client holds: what the seed gave it, what it kept, and what it was sent.

A client starts its local training from these three alone (`begin`). On a machine of its own it keeps the newest value
of all that it was sent, and `read` is what it does with a payload. A simulation keeps one copy of what all clients hold
alike, the server's: a client uses it where its payloads have brought it that far. Where they have not, the value that
the client has is older than the only copy, and NaN stands for it: a method that would train from what it never sent is
refused.
"""

from typing import Literal

import torch
from torch import Tensor

from fedgram.errors import TrainingError
from fedgram.methods.base import Method
from fedgram.methods.context import ClientContext
from fedgram.methods.fields import Field, cut
from fedgram.state import Layer, Layers, ModelState, Payload, ServerState

__all__ = ["NOTHING", "begin", "check_changes", "in_order", "read", "without_padding"]

NOTHING = Payload()
"""A payload without tensors, and what a client keeps that keeps nothing."""

Source = Literal["seed", "server", "older"]
"""Where a simulation finds the value of a field that a client holds: `older` if nowhere."""


def begin(
    method: Method, server: ServerState, initial: ModelState, kept: ModelState, ctx: ClientContext
) -> tuple[ModelState, ModelState]:
    """Return what a client is sent at the start of a round, and what it starts its local training from.

    Args:
        method: the method.
        server: the server's state.
        initial: what every client holds before round 1, which the seed gives it.
        kept: what this client has kept from earlier rounds.
        ctx: the client and the round.

    Raises:
        TrainingError: the client would train with a field in a version that it has not been sent.
    """
    # What a server holds in round 1 comes from the pretrained model and the seed, which its clients have as well.
    payload = NOTHING if ctx.round.number == 1 else method.download(server, ctx)
    held = _held(method, server, initial, kept, payload, ctx)
    start = method.without_shared(method.start(held, payload, ctx))
    parts = start.parts.values()
    unknown = [(f, name) for part in parts for name, layer in part.items() for f, t in layer.items() if _is_unknown(t)]
    if unknown:  # of a tensor that was computed of NaN the loss is NaN, and that is an error too
        raise _not_sent(method, *unknown[0], ctx)
    return payload, start


def _not_sent(method: Method, field: str, name: str, ctx: ClientContext) -> TrainingError:
    return TrainingError(
        f"{type(method).__name__} does not send client {ctx.client} the {field} of {name}, which has changed since the "
        f"client was last sent it, and trains with it; `download` must return what the client lacks (see "
        "`Method.changes`)"
    )


def read(method: Method, held: ModelState, payload: Payload, ctx: ClientContext) -> ModelState:
    """Return what a client holds once it has read a payload, on a machine of its own.

    Args:
        method: the method.
        held: what the client held when it last took part, or what the seed gave it.
        payload: what it was sent.
        ctx: the client and the round.
    """
    layers = {
        name: _read(method, name, layer, payload.adapter.get(name, {}), ctx) for name, layer in held.adapter.items()
    }
    return ModelState(layers, {**held.head, **payload.head})


def _read(method: Method, name: str, held: Layer, sent: Layer, ctx: ClientContext) -> Layer:
    for number in range(max(1, ctx.last_round), ctx.round.number):
        if method.redrawn(number):
            held = held | method.redraw(name, held, number, ctx.round.seed)
    return held | sent | {field: compute() for field, compute in method.derived(held, sent).items()}


def check_changes(method: Method, before: Layers, after: Layers, number: int) -> None:
    """Refuse an aggregation that changes what clients would not be sent, as the method does not declare it.

    Args:
        method: the method.
        before: the server's adapters before a round.
        after: the server's adapters after it.
        number: of the round.

    Raises:
        TrainingError: a field differs that `Method.changes` and `Method.redrawn` leave out.
    """
    declared = method.changes(number) | method.redrawn(number)
    names = [f.name for f in method.fields if not f.kept and f.name not in declared | method.increments]
    for layer, fields in before.items():
        for name in names:
            old, new = fields[name], after[layer][name]
            if old is not new and not old.is_meta and not torch.equal(old, new):
                raise TrainingError(
                    f"the aggregation of round {number} changed {name} of {layer}, which "
                    f"{type(method).__name__}.changes({number}) does not return, so that clients would not be sent it; "
                    f"give that field down=True, return {name!r} there too, or leave it as it is"
                )


def in_order(state: ModelState, initial: ModelState) -> ModelState:
    """Return a state with its fields in the order in which the seed gives them, and others after them by name.

    What an optimizer remembers of a client is one flat vector: it must find every tensor where it was.
    """

    def ordered(own: Layer, first: Layer) -> Layer:
        return {f: own[f] for f in [*(f for f in first if f in own), *sorted(own.keys() - first.keys())]}

    def all_ordered(own: Layers, first: Layers) -> Layers:
        return {name: ordered(layer, first.get(name, {})) for name, layer in own.items()}

    return ModelState(all_ordered(state.adapter, initial.adapter), all_ordered(state.head, initial.head))


def without_padding(trained: ModelState, start: ModelState) -> ModelState:
    """Return what a client has trained in the shapes that it started from, without what `Method.pad` put around it."""

    def own(layer: Layer, shapes: Layer) -> Layer:
        return {
            f: layer[f][tuple(map(slice, t.shape))] if layer[f].shape != t.shape else layer[f]
            for f, t in shapes.items()
        }

    adapters = {name: own(trained.adapter[name], layer) for name, layer in start.adapter.items()}
    return ModelState(adapters, trained.head)


def _held(
    method: Method, server: ServerState, initial: ModelState, kept: ModelState, payload: Payload, ctx: ClientContext
) -> ModelState:
    """Return what a client holds once it has read its payload, with the server's tensors where it has the same."""
    sources = {field.name: _source(method, field, ctx) for field in method.fields}

    def layer(name: str) -> Layer:
        own = {**kept.adapter.get(name, {}), **payload.adapter.get(name, {})}
        known = sources | dict.fromkeys(method.derived({}, own), "server")
        copy = cut({name: server.adapter[name]}, method.fields, ctx.rank)[name]
        older = [f for f in sorted(method.shared_fields - own.keys()) if known[f] == "older"]
        if older:
            raise _not_sent(method, older[0], name, ctx)
        seed = initial.adapter[name]
        return {f: _value(known[f], seed[f], copy[f]) for f in seed if f not in own} | own

    layers = {name: layer(name) for name in initial.adapter}
    return ModelState(layers, _head(method, initial.head, {**kept.head, **payload.head}, ctx))


def _source(method: Method, field: Field, ctx: ClientContext) -> Source:
    """Return where the value is found of a field that the client neither keeps nor is sent in this round."""
    if field.shared and not field.down:
        return "server"  # it never changes, or is computed of others that do
    if field.down:
        for number in range(ctx.round.number - 1, 0, -1):
            if field.name in method.redrawn(number):
                return "server"
            if field.name in method.changes(number):
                return "server" if number < ctx.last_round else "older"
    return "seed"


def _value(source: Source, seed: Tensor, copy: Tensor) -> Tensor:
    return _unknown(seed) if source == "older" else copy if source == "server" else seed


def _head(method: Method, initial: Layers, own: Layers, ctx: ClientContext) -> Layers:
    """Return the head that a client holds, of the one that the seed gives and what it kept or was sent."""
    known = method.head != "averaged" or ctx.round.number == 1
    return {
        name: {f: own[name][f] if name in own else t if known else _unknown(t) for f, t in layer.items()}
        for name, layer in initial.items()
    }


def _unknown(like: Tensor) -> Tensor:
    """Return what stands for a value in an older version than there is a copy of: one NaN for all its numbers."""
    return torch.full((), torch.nan, dtype=like.dtype, device=like.device).expand(like.shape)


def _is_unknown(tensor: Tensor) -> bool:
    """Return whether a tensor is what `_unknown` returns, or a part of it; a device is seldom asked."""
    return tensor.numel() > 1 and not any(tensor.stride()) and not tensor.is_meta and bool(tensor.isnan().all())
