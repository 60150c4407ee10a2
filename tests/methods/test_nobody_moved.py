"""A round in which nobody moved changes no model, whatever the method, who takes part, and who has which rank."""

from functools import partial

import pytest

from distributed.fits import CASES
from fedgram.methods import FLASC, FLTAC, CELoRA, FedLEASE, FedLoRU, FlexLoRA, FSLoRA, HetLoRA, LoRAFAIR, SLoRA
from methods.still import World, change

RANKS = [4, 1, 2, 3, 1, 2, 4]
ROUNDING = 1e-10
ROUNDS = [
    ("all but one", range(6), 0.0),
    ("those of low ranks", (1, 4), 0.0),
    ("some", (0, 1, 2, 3, 4), 0.3),
    ("fewer", (1, 3, 5), 0.3),
    ("some that were away", (0, 3, 5), 0.0),
    ("one that is late", (1, 4, 6), 0.0),
    ("all", range(7), 0.0),
]
"""Who takes part in each round of a run, and how far they move."""


def methods():
    """Every method and variant that is fitted whole, once as it is and once with ranks that differ."""
    found, seen = {}, set()
    for name, case in CASES.items():
        kind, settings = case.method.func, case.method.keywords
        made = {name: settings}
        if kind.heterogeneous and "client_ranks" not in settings:
            made[f"{name}, other ranks"] = settings | {"rank": max(RANKS), "client_ranks": RANKS}
        for label, chosen in made.items():
            key = repr((kind, sorted(chosen.items())))
            if key not in seen:  # fits differ in more than methods
                seen.add(key)
                found[label] = partial(kind, **chosen)
    return found


METHODS = methods()


def reason_to_change(method, world, cohort):
    """Why the models change by the method's own equations although nobody moves; None where they must not."""
    ctx = world.context(cohort)
    if method.client_ranks is not None and isinstance(method, FlexLoRA | HetLoRA):
        return "ranks that a client lacks are zero in the mean of its paper"
    if isinstance(method, LoRAFAIR) and method.init == "xavier":
        return "the correction of B starts at random"
    if isinstance(method, FedLoRU) and method.mode == "keep" and ctx.number % method.merge_every == 0:
        return "the product that is merged stays in the factors too"
    if isinstance(method, FLASC) and method.decay < 1:
        return "fewer numbers are sent from round to round, and the model is what is sent"
    if isinstance(method, FLASC | FSLoRA) and method.server_optimizer == "adam" and world.drifted:
        return "the server's Adam goes on with the moments of earlier rounds"
    if isinstance(method, CELoRA | FLTAC) and world.drifted:
        return "clients that hold different tensors are sent a mean of them"
    if isinstance(method, SLoRA) and ctx.number == method.sparse_rounds:
        return "of the sparse change the best part of rank r is kept"
    if isinstance(method, FedLEASE):
        late = any(world.last[c] < method.warmup_rounds for c in ctx.cohort)
        if ctx.number == method.warmup_rounds or (late and ctx.number > method.warmup_rounds):
            return "a client's own LoRA becomes its cluster's expert, beside others"
    return None


def play(method):
    """Yield, of each round in which nobody moves, who takes part, how far the models moved, and a reason if any."""
    world = World(method)
    for name, cohort, drift in ROUNDS:
        reason, before = reason_to_change(method, world, cohort), world.functions(cohort)
        world.round(cohort, drift)
        if not drift:
            yield name, change(before, world.functions_after(cohort)), reason


@pytest.mark.parametrize("name", METHODS)
def test_a_round_in_which_nobody_moved_changes_no_model(name):
    rounds = list(play(METHODS[name]()))
    assert [(who, moved) for who, moved, reason in rounds if reason is None and moved > ROUNDING] == []
    reasons = {reason for *_, reason in rounds} - {None}
    for given in reasons:  # a reason for nothing would hide what is to be seen
        assert max(moved for _, moved, reason in rounds if reason == given) > 1e-6, given
