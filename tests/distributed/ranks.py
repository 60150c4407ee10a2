"""What every rank of `test_collectives` says to the others."""

import math
import os
from pathlib import Path

import torch
from lightning.fabric import Fabric

from fedgram.distributed.collectives import Ranks
from fedgram.distributed.uploads import Uploads
from fedgram.errors import TrainingError
from fedgram.ledger import Ledger
from fedgram.state import ModelState

OWNERS = {2: [1, 1, 0, 1, 1, 0, 1], 3: [2, 2, 0, 2, 0, 2, 2]}
"""Which rank has which of the clients 0 to 6; the second of three has none."""
STATE = {"q": torch.zeros(2, 3), "v": torch.ones(2)}


def term(client):
    generator = torch.Generator().manual_seed(client)
    return torch.randn(3, 5, dtype=torch.float64, generator=generator) * 10.0 ** (3 * client - 9)


def error_of(function):
    try:
        function()
    except TrainingError as error:
        return str(error)
    return None


def talk(ranks, own):
    """Return all that the ranks can say to each other about the clients of this rank."""
    payloads = {c: {"q": {"A": term(c), "B": term(c).float()}} for c in own}
    weights = {c: (c + 1) / 28 for c in range(7)}
    uploads = Uploads(payloads, weights, ranks)
    ledger = Ledger()
    for c in own:
        ledger.record("up", ModelState(payloads[c]))
    like = torch.zeros(3, 5)
    return {
        "sum": ranks.sum(lambda: map(term, own), 7, like),
        "mean": uploads.mean("q", lambda sent: sent["A"].mT @ sent["A"], torch.zeros(5, 5)),
        "stack": uploads.stack("q", "B", like),
        "gather": ranks.gather(torch.tensor(own, dtype=torch.int64), [3, 1, 0, 2, 6, 5, 4], own),
        "traffic": ranks.merge(ledger).rows(),
        "maximum": ranks.maximum(float(max(own, default=-1))),
        "agreed": error_of(lambda: ranks.check_agreement(STATE, "state")),
    }


def quarrel(ranks, own):
    """Return the errors that every rank must see when one of them is in trouble."""
    last = ranks.size - 1
    other = {"v": torch.tensor([1.0, 1.5])}
    sick = {c: {"q": {"A": term(c) * (math.nan if c == 2 else 1)}} for c in own}
    return {
        "disagree": error_of(lambda: ranks.check_agreement(STATE | other if ranks.rank == last else STATE, "state")),
        "diverged": error_of(lambda: Uploads(sick, dict.fromkeys(range(7), 1 / 7), ranks)),
        "infinite": error_of(
            lambda: ranks.sum(lambda: (term(c) / (0 if c == 4 else 1) for c in own), 7, torch.zeros(3, 5))
        ),
        "problem": error_of(lambda: ranks.stop_on("full disk" if ranks.rank == last else None)),
        "told": ranks.broadcast(f"from {ranks.rank}", last),
    }


def write_what_is_seen(folder):
    """Talk and quarrel, and leave what came of it in a file."""
    fabric = Fabric(accelerator="cpu", devices=int(os.environ["WORLD_SIZE"]))
    fabric.launch()
    ranks = Ranks(fabric)
    own = [c for c, owner in enumerate(OWNERS[ranks.size]) if owner == ranks.rank]
    seen = {"rank": ranks.rank, "size": ranks.size, **talk(ranks, own), **quarrel(ranks, own)}
    torch.save(seen, Path(folder) / f"{ranks.rank}.pt")
