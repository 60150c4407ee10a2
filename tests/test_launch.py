import os
from types import SimpleNamespace
from unittest import mock

import pytest

from fedgram import FederatedTrainer
from fedgram.distributed.launch import devices_per_node, follow_srun, launch, nodes
from fedgram.errors import ConfigurationError

SRUN = {
    "SLURM_JOB_ID": "70012",
    "SLURM_JOB_NAME": "fedgram",
    "SLURM_NNODES": "3",
    "SLURM_NTASKS": "6",
    "SLURM_PROCID": "0",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_TASKS_PER_NODE": "2(x3)",
}
BATCH = {"SLURM_JOB_NAME": "fedgram", "SLURM_NNODES": "1", "SLURM_NTASKS": "1", "SLURM_PROCID": "0"}
TORCHRUN = {"TORCHELASTIC_RUN_ID": "none", "RANK": "0", "WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4"}


@pytest.fixture
def environment():
    """Sets the environment that a launcher gives its processes, and no other."""
    with mock.patch.dict(os.environ):
        for name in [*os.environ]:
            if name.startswith(("SLURM_", "TORCHELASTIC_")) or name in ("LOCAL_RANK", "MASTER_PORT"):
                del os.environ[name]
        yield os.environ.update


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, (1, "auto")),
        (SRUN, (3, 2)),
        (SRUN | {"SLURM_NTASKS_PER_NODE": "4"}, (3, 2)),  # of the job, whose step has fewer
        (SRUN | {"SLURM_JOB_NAME": "interactive"}, (3, 2)),  # salloc srun fedgram
        (SRUN | {"SLURM_JOB_NAME": "bash"}, (3, 2)),  # srun bash -c fedgram
        (SRUN | {"SLURM_JOB_NAME": "bash", "SLURM_PTY_PORT": "1"}, (1, "auto")),  # typed in srun --pty bash
        (SRUN | {"SLURM_JOB_NAME": "bash", "SLURM_NTASKS": "1", "SLURM_STEP_TASKS_PER_NODE": "1"}, (1, "auto")),
        (BATCH, (1, 1)),
        (BATCH | {"SLURM_JOB_NAME": "interactive", "SLURM_NTASKS": "4"}, (1, "auto")),
        (TORCHRUN, (2, 4)),
        (SRUN | TORCHRUN, (2, 4)),
    ],
)
def test_auto_is_what_the_launcher_started(environment, variables, expected):
    environment(variables)
    follow_srun()
    assert (nodes("auto"), devices_per_node("auto")) == expected
    assert (nodes(5), devices_per_node([0, 1])) == (5, [0, 1])


def test_every_step_of_a_job_meets_on_a_port_of_its_own(environment):
    environment(SRUN)
    follow_srun()
    assert os.environ.pop("MASTER_PORT") == "15012"
    environment(SRUN | {"SLURM_STEP_ID": "2"})
    follow_srun()
    assert os.environ["MASTER_PORT"] == str(15012 + 2 * 1009)
    environment(SRUN | {"MASTER_PORT": "777"})
    follow_srun()
    assert os.environ["MASTER_PORT"] == "777"


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        (BATCH | {"SLURM_NTASKS": "2"}, "the SLURM job has 2 tasks, but fedgram was not started by srun"),
        (SRUN | {"SLURM_STEP_TASKS_PER_NODE": "3,2,1"}, "3,2,1 tasks on its nodes.* --ntasks-per-node"),
    ],
)
def test_what_can_only_wait_for_ever_is_refused(environment, variables, message):
    environment(variables)
    with pytest.raises(ConfigurationError, match=message) as refused:
        follow_srun()
    assert not refused.value.reported_elsewhere


def fabric(devices):
    return SimpleNamespace(launch=lambda: None, strategy=SimpleNamespace(num_processes=devices))


def test_one_process_is_launched(environment):
    launch(fabric(1), 1)


@pytest.mark.parametrize(
    ("variables", "devices", "num_nodes", "there"),
    [
        (BATCH, 2, 1, "1 nodes with 1 tasks on each were started"),
        (SRUN, 2, 1, "3 nodes with 2 tasks on each were started"),
        (SRUN, 3, 2, "3 nodes with 2 tasks on each were started"),  # as many, on other nodes
        (TORCHRUN, 1, 1, "2 nodes with 4 tasks on each were started"),
        ({}, 1, 2, "1 processes are connected"),
    ],
)
def test_another_layout_than_asked_for_is_refused(environment, variables, devices, num_nodes, there):
    environment(variables)
    follow_srun()
    with pytest.raises(
        ConfigurationError, match=f"num_nodes is {num_nodes} and trainer.devices asks for {devices} .* {there}"
    ) as refused:
        launch(fabric(devices), num_nodes)
    assert not refused.value.reported_elsewhere


@pytest.mark.parametrize("variables", [SRUN | {"SLURM_PROCID": "5"}, TORCHRUN | {"RANK": "5"}])
def test_a_refusal_is_reported_by_the_first_process_alone(environment, variables):
    environment(variables)
    follow_srun()
    with pytest.raises(ConfigurationError) as refused:
        launch(fabric(1), 1)
    assert refused.value.reported_elsewhere


def test_a_process_that_fabric_started_asks_to_end_with_its_parent(environment, monkeypatch):
    calls = []
    monkeypatch.setattr("ctypes.CDLL", lambda _: SimpleNamespace(prctl=lambda *args: calls.append(args)))
    launch(fabric(1), 1)
    environment(TORCHRUN | {"LOCAL_RANK": "1", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"})
    launch(fabric(1), 1)
    assert not calls
    del os.environ["TORCHELASTIC_RUN_ID"]
    launch(fabric(1), 1)
    assert calls == [(1, 9)]


def test_the_trainer_takes_the_layout_of_the_launcher(environment):
    trainer = FederatedTrainer(accelerator="cpu", progress_bar=False)
    assert trainer.num_nodes == 1
    assert getattr(trainer.fabric.strategy, "num_processes", 1) == 1
    environment(SRUN | {"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0"})
    trainer = FederatedTrainer(accelerator="cpu", progress_bar=False)
    assert trainer.num_nodes == 3
    assert trainer.fabric.strategy.num_processes == 2
