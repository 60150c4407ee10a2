from types import SimpleNamespace

import pytest

from fedgram import FederatedTrainer
from fedgram.errors import ConfigurationError
from fedgram.launch import devices_per_node, launch, nodes

SRUN = {"SLURM_NTASKS": "6", "SLURM_NTASKS_PER_NODE": "2", "SLURM_NNODES": "3", "SLURM_STEP_ID": "0"}
TORCHRUN = {"TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4"}


@pytest.fixture
def environment(monkeypatch):
    """Sets the environment that a launcher gives its processes."""
    for name in [*SRUN, *TORCHRUN, "SLURM_JOB_NAME", "LOCAL_RANK"]:
        monkeypatch.delenv(name, raising=False)

    def give(variables):
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return give


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, (1, "auto")),
        (SRUN, (3, 2)),
        (TORCHRUN, (2, 4)),
        (SRUN | TORCHRUN, (2, 4)),
        (SRUN | {"SLURM_JOB_NAME": "interactive"}, (1, "auto")),
        ({"SLURM_NTASKS": "1", "SLURM_NNODES": "1"}, (1, "auto")),
    ],
)
def test_auto_is_what_the_launcher_started(environment, variables, expected):
    environment(variables)
    assert (nodes("auto"), devices_per_node("auto")) == expected
    assert (nodes(5), devices_per_node([0, 1])) == (5, [0, 1])


def fabric(devices):
    return SimpleNamespace(launch=lambda: None, strategy=SimpleNamespace(num_processes=devices))


def test_one_process_is_launched(environment):
    launch(fabric(1), 1)


@pytest.mark.parametrize(
    ("variables", "devices", "num_nodes", "asked", "there"),
    [
        ({"SLURM_NTASKS": "1", "SLURM_STEP_ID": "0"}, 2, 1, 2, 1),  # sbatch -n1 with two devices
        (SRUN, 1, 1, 1, 6),  # every task would be a run of its own
        (TORCHRUN, 1, 1, 1, 8),
        ({}, 1, 2, 2, 1),
    ],
)
def test_another_number_of_ranks_than_asked_for_is_refused(environment, variables, devices, num_nodes, asked, there):
    environment(variables)
    said = f"ask for {asked} ranks, {there} processes were started, and 1 are connected"
    with pytest.raises(ConfigurationError, match=said):
        launch(fabric(devices), num_nodes)


def test_a_job_of_several_tasks_without_srun_is_refused_and_does_not_wait(environment):
    environment({"SLURM_NTASKS": "2"})
    launched = []
    waiting = SimpleNamespace(launch=lambda: launched.append(1), strategy=SimpleNamespace(num_processes=2))
    with pytest.raises(ConfigurationError, match="the SLURM job has 2 tasks, but fedgram was not started by srun"):
        launch(waiting, 1)
    assert not launched


def test_a_process_that_fabric_started_asks_to_end_with_its_parent(environment, monkeypatch):
    calls = []
    monkeypatch.setattr("ctypes.CDLL", lambda _: SimpleNamespace(prctl=lambda *args: calls.append(args)))
    launch(fabric(1), 1)
    environment(TORCHRUN | {"LOCAL_RANK": "1", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"})
    launch(fabric(1), 1)
    assert not calls
    monkeypatch.delenv("TORCHELASTIC_RUN_ID")
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
