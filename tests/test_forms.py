"""What a run holds after a round, found without training: a checkpoint of it is compared with that."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from blank_pictures import partition_picture
from distributed.conftest import material  # noqa: F401 (a fixture)
from distributed.fits import CASES, parts_of
from fedgram import FedSALoRA
from fedgram.callbacks import Callback
from fedgram.errors import CheckpointError
from fedgram.federation import setup
from fedgram.federation import summary as reporting
from fedgram.federation.forms import check_tensors
from fedgram.runs.checkpoint import Checkpoint
from fedgram.state import ServerState, flatten, unflatten_server
from rough_operations import rough_prices

QUICK = ("FedExLoRA-factored", "FedSALoRA-keep_state", "FedLEASE-weighted", "FLTAC", "HetLoRA-client")


class CheckRounds(Callback):
    """Compares what a run holds after each of its rounds with what is expected."""

    def __init__(self, optimizer):
        self.optimizer, self.seen, self.arguments = optimizer, 0, None

    def on_round_end(self, trainer, row):
        run = trainer.federation
        start = ServerState(run.held, run.method.server_start(run.held, trainer.clients))
        for optimizer in (self.optimizer, None):
            self.arguments = (Path("x"), run.standing(), start, run.method, optimizer)
            check_tensors(*self.arguments)
        self.seen += 1


@pytest.fixture
def standing(material, tmp_path, monkeypatch):  # noqa: F811
    """Fits a case, checks each round, and returns the arguments of the last check, with the optimizer."""
    monkeypatch.setattr(reporting, "partition_picture", partition_picture)
    monkeypatch.setattr(setup, "find_prices", rough_prices)

    def run(name):
        optimizer = CASES[name].optimizer()
        callback = CheckRounds(optimizer)
        trainer, task, data, method = parts_of(name, material, tmp_path, rounds=4, callbacks=[callback])
        trainer.fit(task, data, method, optimizer)
        assert callback.seen == 5
        return (*callback.arguments[:-1], optimizer)

    return run


@pytest.mark.quick_cases(2)
@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n in QUICK else pytest.mark.slow) for n in CASES])
def test_a_run_holds_what_is_expected_after_every_round(name, standing):
    path, checkpoint, start, method, optimizer = standing(name)
    headless = replace(checkpoint.state, model=replace(checkpoint.state.model, head={}))
    other = replace(checkpoint, round=checkpoint.round, state=headless)
    if checkpoint.state.head:
        with pytest.raises(CheckpointError, match=r"head\|.* is missing, expected float"):
            check_tensors(path, other, start, method, optimizer)


def altered(checkpoint, state=(), clients=()):
    """Return a checkpoint in which some tensors are others; None leaves one out."""
    flat = {key: t for key, t in (flatten(checkpoint.state) | dict(state)).items() if t is not None}
    own = {c: dict(kept) for c, kept in checkpoint.clients.items()}
    for (client, key), tensor in dict(clients).items():
        own.setdefault(client, {})[key] = tensor
        if tensor is None:
            del own[client][key]
    return Checkpoint(unflatten_server(flat), checkpoint.round, checkpoint.settings, checkpoint.progress, own)


def test_each_way_to_differ_is_told_by_the_tensor(standing):
    path, checkpoint, start, method, optimizer = standing("FedSALoRA-keep_state")
    layer = next(iter(checkpoint.state.adapter))
    A, name = checkpoint.state.adapter[layer]["A"], f"adapter|{layer}|A"
    client = min(checkpoint.clients)
    step, own_B = (client, "optimizer|step"), (client, f"adapter|{layer}|B")
    cases = {
        f"{name} is missing, expected float32 {tuple(A.shape)}": {"state": {name: None}},
        f"{name} is bfloat16 {tuple(A.shape)}, expected float32": {"state": {name: A.bfloat16()}},
        f"{name} is float32 {tuple(A[:1].shape)}, expected float32": {"state": {name: A[:1]}},
        "adapter|more|A is float32 (2,), expected no such tensor": {"state": {"adapter|more|A": torch.ones(2)}},
        f"A of {layer} holds nan or inf": {"state": {name: A * float("nan")}},
        f"of client {client}, adapter|{layer}|B is missing": {"clients": {own_B: None}},
        f"of client {client}, optimizer|step is missing, expected int64 ()": {"clients": {step: None}},
        "of client 99, adapter|q|B is float32 (2,), expected no": {"clients": {(99, "adapter|q|B"): torch.ones(2)}},
    }
    for told, change in cases.items():
        with pytest.raises(CheckpointError, match=re.escape(told)) as caught:
            check_tensors(path, altered(checkpoint, **change), start, method, optimizer)
        assert "does not hold what a run of FedSALoRA does after round 4: " in str(caught.value)
        assert str(caught.value).endswith("; use an older one or start again")


def test_what_a_server_remembers_may_be_smaller_but_not_larger(standing):
    path, checkpoint, start, method, optimizer = standing("FLTAC")
    name, means = next((f"server|{n}|A", layer["A"]) for n, layer in checkpoint.state.memory.layers.items() if n)
    check_tensors(path, altered(checkpoint, {name: means[:1]}), start, method, optimizer)
    for wrong in (torch.cat([means, means]), means[:0], means[0], means.double()):
        with pytest.raises(CheckpointError, match="expected at most float32"):
            check_tensors(path, altered(checkpoint, {name: wrong}), start, method, optimizer)


class Growing(FedSALoRA):
    """A method of a user's own, whose server would hold more than it says."""


def test_a_method_of_ones_own_is_told_of_next_form(standing):
    path, checkpoint, start, _, optimizer = standing("FedSALoRA-keep_state")
    method = Growing(rank=2, head="frozen")
    more = altered(checkpoint, {"server|q|R": torch.ones(2)})
    with pytest.raises(CheckpointError, match=r"expected no such tensor; .* says which in next_form$"):
        check_tensors(path, more, start, method, optimizer)
