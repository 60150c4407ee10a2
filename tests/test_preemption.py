"""Runs that a signal stops, and SLURM jobs that come back."""

import json
import os
import signal
import sys

import pytest

import fedgram.trainer
from fedgram import FLoRG
from fedgram.callbacks import Callback
from fedgram.errors import CheckpointError, Preempted, TrainingError, explain
from test_trainer import fit, rows  # noqa: F401


class Signal(Callback):
    """Sends this process a signal after a block of a round, or when it is over."""

    def __init__(self, number, name="SIGUSR1", hook="on_block_end"):
        self.number, self.name, self.hook = number, name, hook
        self.round, self.blocks_after = 0, 0

    def on_round_start(self, trainer, round_number, clients):
        self.round = round_number

    def on_block_end(self, trainer, clients):
        self.blocks_after += trainer.stop_signals.received is not None
        self._at("on_block_end")

    def on_round_end(self, trainer, row):
        self._at("on_round_end")

    def _at(self, hook):
        if (self.round, hook) == (self.number, self.hook):
            os.kill(os.getpid(), signal.Signals[self.name])


@pytest.fixture(autouse=True)
def outside_slurm(monkeypatch):
    for name in ("SLURM_JOB_ID", "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID", "SLURM_RESTART_COUNT"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def requeued(monkeypatch):
    """The jobs that were put back into the queue."""
    jobs = []
    monkeypatch.setattr(fedgram.trainer, "requeue", jobs.append)
    return jobs


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize(
    ("stop", "finished"),
    [
        (Signal(3, "SIGUSR1"), 2),
        (Signal(3, "SIGTERM"), 2),
        (Signal(1, "SIGUSR1"), 0),
        (Signal(2, "SIGTERM", "on_round_end"), 2),
    ],
)
def test_a_signal_costs_the_unfinished_round_at_most(fit, stop, finished, caplog):  # noqa: F811
    caplog.set_level("INFO", "fedgram")
    keys = {"rounds": 4, "clients_per_block": 1}
    whole, _ = fit(name="whole", **keys)
    with pytest.raises(Preempted) as caught:
        fit(name="stopped", callbacks=[stop], **keys)
    assert caught.value.signal == stop.name
    assert str(caught.value) == f"{stop.name} came in round {stop.number}"
    assert stop.blocks_after == 0  # the first local step after the signal was not begun
    assert f"stands after round {finished}, and goes on there with --ckpt_path last" in caplog.text
    resumed, trainer = fit(name="stopped", ckpt_path="last", **keys)
    assert resumed["state_hash"] == whole["state_hash"]
    assert [row["round"] for row in rows(trainer.folder.path)] == ["0", "1", "2", "3", "4"]


def test_a_signal_during_the_evaluation_stops_there(fit, monkeypatch):  # noqa: F811
    infer, calls = fedgram.federation.evaluation.infer, []

    def interrupted(*arguments):
        calls.append(1)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return infer(*arguments)

    monkeypatch.setattr(fedgram.federation.evaluation, "infer", interrupted)
    with pytest.raises(Preempted, match="SIGTERM came in evaluation"):
        fit(rounds=4)
    assert len(calls) == 2


def test_before_the_first_round_nothing_stands(fit, caplog):  # noqa: F811
    caplog.set_level("INFO", "fedgram")

    class AtOnce(Callback):
        def on_fit_start(self, trainer, first_round):
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Preempted):
        fit(callbacks=[AtOnce()])
    assert "stands at its start" in caplog.text


@pytest.mark.parametrize(
    ("keys", "stop", "jobs"),
    [
        ({"requeue": True}, Signal(2), ["17"]),
        ({"requeue": True, "preempt_signal": "SIGUSR2"}, Signal(2, "SIGUSR2"), ["17"]),
        ({"requeue": True}, Signal(2, "SIGTERM"), []),  # scancel, or a pre-emption that requeues by itself
        ({}, Signal(2), []),
    ],
)
def test_a_job_is_requeued_where_that_was_asked_for(fit, monkeypatch, requeued, keys, stop, jobs):  # noqa: F811
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    with pytest.raises(Preempted):
        fit(callbacks=[stop], **keys)
    assert [job.name for job in requeued] == jobs


def test_outside_slurm_there_is_nothing_to_requeue(fit, requeued):  # noqa: F811
    with pytest.raises(Preempted):
        fit(callbacks=[Signal(2)], requeue=True)
    assert requeued == []


def test_a_requeued_job_goes_on_with_its_run(fit, monkeypatch):  # noqa: F811
    whole, _ = fit(name="whole", rounds=4)
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    with pytest.raises(Preempted):
        fit(rounds=4, callbacks=[Signal(3)])
    monkeypatch.setenv("SLURM_JOB_ID", "18")
    fit(rounds=1)  # another job's run of the same name
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    resumed, trainer = fit(rounds=4)
    assert trainer.folder.path.name == "version_0"
    assert resumed["state_hash"] == whole["state_hash"]
    assert json.loads((trainer.folder.path / "slurm.json").read_text())["job"] == "17"


def test_the_same_job_tells_its_runs_apart_by_their_commands(fit, monkeypatch):  # noqa: F811
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    for version, command in enumerate([["fit", "--trainer.seed=0"], ["fit", "--trainer.seed=1"]]):
        monkeypatch.setattr(sys, "argv", ["fedgram", *command])
        _, trainer = fit(rounds=2, seed=version)
        assert trainer.folder.path.name == f"version_{version}"
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    monkeypatch.setattr(sys, "argv", ["fedgram", "fit", "--trainer.seed=0"])
    assert fit(rounds=3, seed=0)[1].folder.path.name == "version_0"
    monkeypatch.setattr(sys, "argv", ["fedgram", "fit", "--trainer.seed=2"])
    assert fit(rounds=2, seed=2)[1].folder.path.name == "version_2"


@pytest.mark.parametrize("begun", [False, True])
def test_a_requeued_job_without_a_checkpoint_starts_anew(fit, monkeypatch, begun):  # noqa: F811
    class AtOnce(Callback):
        def on_fit_start(self, trainer, first_round):
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setenv("SLURM_JOB_ID", "17")
    if begun:
        with pytest.raises(Preempted):
            fit(rounds=2, callbacks=[AtOnce()])
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    summary, trainer = fit(rounds=2)
    assert summary["rounds"] == 2
    assert trainer.folder.path.name == f"version_{int(begun)}"


def test_a_requeued_job_with_other_settings_is_refused(fit, monkeypatch):  # noqa: F811
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    fit(rounds=2)
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    with pytest.raises(CheckpointError, match=r"trainer\.seed: 0 there, 5 here"):
        fit(rounds=2, seed=5)


def test_a_job_that_was_not_requeued_starts_a_new_run(fit, monkeypatch):  # noqa: F811
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    assert [fit(rounds=1)[1].folder.path.name for _ in range(2)] == ["version_0", "version_1"]


def test_an_error_in_local_training_says_where(fit, monkeypatch):  # noqa: F811
    upload = FLoRG.upload

    def broken(self, start, trained, ctx):
        if (ctx.round.number, ctx.client) == (2, 3):
            raise TrainingError("out of luck")
        return upload(self, start, trained, ctx)

    monkeypatch.setattr(FLoRG, "upload", broken)
    with pytest.raises(TrainingError) as caught:
        fit(clients_per_block=2)
    assert explain(caught.value) == "round 2, client 3: out of luck"


def test_an_error_in_a_local_step_says_which(fit, monkeypatch):  # noqa: F811
    from fedgram.optim import AdamW

    update, calls = AdamW.update, []

    def broken(self, *arguments):
        calls.append(1)
        if len(calls) == 4:
            raise TrainingError("out of luck")
        return update(self, *arguments)

    monkeypatch.setattr(AdamW, "update", broken)
    with pytest.raises(TrainingError) as caught:
        fit(clients=4, clients_per_block=2)
    assert explain(caught.value) == "round 1, clients 2, 3, local step 2: out of luck"
