"""Which tensors a run holds after some round: a checkpoint is compared with that before a run goes on from it.

A method's own code is run from round to round on tensors without numbers, as `fedgram cost` does it.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from fedgram.cohort import cohort_size, sample
from fedgram.errors import CheckpointError
from fedgram.federation.clients import to_keep
from fedgram.finite import spoilt_tensor
from fedgram.methods import Method, RoundContext
from fedgram.methods.bounds import bounded
from fedgram.methods.client_memory import NOTHING, begin
from fedgram.optim import ClientOptimizer
from fedgram.runs.checkpoint import Checkpoint
from fedgram.state import ModelState, ServerState, flatten, split, without, without_numbers

__all__ = ["check_tensors"]

_Forms = dict[str, Tensor]
"""Tensors without numbers by their flat names."""


@dataclass
class _Expected:
    """What the server and its clients hold: at most, where that depends on more than the number of the round.

    Attributes:
        state: of the server.
        clients: of each client that keeps something.
        loose: names of what clients keep where its size can't be known: it may be smaller than it is here, as may what
            the server remembers beside the model.
    """

    state: _Forms
    clients: dict[int, _Forms] = field(default_factory=dict)
    loose: set[str] = field(default_factory=set)

    @property
    def remembered(self) -> set[str]:
        """The names of what the server remembers beside the model."""
        return {name for name in self.state if name.startswith("server|")}


def check_tensors(
    path: Path,
    checkpoint: Checkpoint,
    start: ServerState,
    method: Method,
    optimizer: ClientOptimizer | None = None,
    helps: str = "use an older one or start again",
) -> None:
    """Refuse a checkpoint that holds other tensors than its run does after that round.

    Args:
        path: its file.
        checkpoint: what was read.
        start: what the run starts with, on any device.
        method: of the run.
        optimizer: of its clients; without it, what they remember is not looked at.
        helps: what to do where they differ.

    Raises:
        CheckpointError: names, types or shapes differ, or numbers are not finite; the first such tensor is named.
    """
    expected = _expected(method, optimizer, start, checkpoint)
    wrong = _difference(flatten(checkpoint.state), expected.state, expected.remembered)
    for client in sorted(checkpoint.clients.keys() | expected.clients.keys()):
        if wrong is not None:
            break
        kept = checkpoint.clients.get(client, {})
        own = kept if optimizer is not None else _without_memory(kept)
        wrong = _difference(own, expected.clients.get(client, {}), expected.loose)
        wrong = wrong and f"of client {client}, {wrong}"
    wrong = wrong or spoilt_tensor(flatten(checkpoint.state))
    if wrong is not None:
        if type(method).next_form is Method.next_form and not type(method).__module__.startswith("fedgram."):
            helps += "; a method whose server holds other tensors after some rounds says which in next_form"
        raise CheckpointError(
            f"the checkpoint {path} does not hold what a run of {method.name} does after round {checkpoint.round}: "
            f"{wrong}; {helps}"
        )


def _without_memory(kept: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in kept.items() if not name.startswith("optimizer")}


def _difference(found: Mapping[str, Tensor], expected: _Forms, loose: set[str]) -> str | None:
    """Return how the first of some tensors, by name, differs from what is expected."""
    for name in sorted(found.keys() | expected.keys()):
        if name not in found:
            return f"{name} is missing, expected {_form(expected[name])}"
        if name not in expected:
            return f"{name} is {_form(found[name])}, expected no such tensor"
        if not _fits(found[name], expected[name], name in loose):
            return f"{name} is {_form(found[name])}, expected {'at most ' * (name in loose)}{_form(expected[name])}"
    return None


def _form(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"


def _fits(found: Tensor, expected: Tensor, is_loose: bool) -> bool:
    if found.dtype != expected.dtype or found.ndim != expected.ndim:
        return False
    sides = zip(found.shape, expected.shape, strict=True)
    return all(own == side or (is_loose and 0 < own < side) for own, side in sides)


def _expected(
    method: Method, optimizer: ClientOptimizer | None, start: ServerState, checkpoint: Checkpoint
) -> _Expected:
    """Run a method up to the round of a checkpoint on tensors without numbers."""
    method = bounded(method)["most"]
    state, settings = without_numbers(start), checkpoint.settings
    clients, seed = settings["trainer.clients"], settings["trainer.seed"]
    size = cohort_size(settings["trainer.participation"], clients)
    found, last, initial = _Expected({}), dict.fromkeys(range(clients), 0), state.model
    for number in range(1, checkpoint.round + 1):
        cohort = sample(seed, number, clients, size)
        ctx = RoundContext(number, seed, {client: last[client] for client in cohort}, clients)
        after = method.next_form(state, ctx)
        if method.personal or (optimizer is not None and optimizer.keep_state):
            kept = _kept(method, optimizer, state, after, initial, ctx)
            for client in cohort if kept else ():
                found.clients.setdefault(client, {}).update(kept)
            found.loose.update(kept if method.unknown else ())
        state = after
        last.update(dict.fromkeys(cohort, number))
    found.state = flatten(state)
    return found


def _kept(
    method: Method,
    optimizer: ClientOptimizer | None,
    before: ServerState,
    after: ServerState,
    initial: ModelState,
    ctx: RoundContext,
) -> _Forms:
    """Return what each client of a round keeps: of its own, and of what the server has answered to it."""
    client = ctx.cohort[0]
    _, begun = begin(method, before, initial, NOTHING, method.context(before, client, ctx))
    start = method.pad(begun, before, ctx)
    answered = method.answer(after, method.context(after, client, ctx))
    memories = {} if optimizer is None or not optimizer.keep_state else _memories(method, optimizer, start, ctx.number)
    return to_keep(method.kept(start), memories) | ({} if answered is None else flatten(answered))


def _memories(method: Method, optimizer: ClientOptimizer, start: ModelState, number: int) -> dict[str, _Forms]:
    """Return what an optimizer remembers of each phase."""
    found = {}
    for phase in method.phases(number):
        own = flatten(split(without(start, phase.absent), phase.trained)[0])
        params = _row(own.values())
        found[phase.name] = {name: rows[0] for name, rows in optimizer.init(params).items()}
    return found


def _row(tensors: Iterable[Tensor]) -> Tensor:
    """Return the numbers of some tensors as those of one client of a block."""
    some = [tensor.flatten() for tensor in tensors]
    return torch.cat(some).unsqueeze(0) if some else torch.empty(1, 0, device="meta")
