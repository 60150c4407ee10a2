"""How the ranks of a run come to be, that they are as many as were asked for, and that none outlives the others.

They are started by Fabric (``--trainer.devices 2``), by ``torchrun``, or by SLURM's ``srun``.
"""

import ctypes
import os
import re
import signal
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import torch
import torch.distributed as dist
from lightning.fabric import Fabric

from fedgram.errors import ConfigurationError

__all__ = ["choose_accelerator", "devices_per_node", "follow_srun", "launch", "nodes", "without_srun_hint"]

_PR_SET_PDEATHSIG = 1
"""prctl's code for: send me a signal when my parent dies (Linux)."""

_PORTS, _PORTS_FROM, _PORTS_BETWEEN_STEPS = 10_000, 15_000, 1009
"""Ranks meet on 15000 and the last four digits of SLURM's job, as Fabric has it; the steps of a job lie far apart."""


def follow_srun() -> None:
    """Have the environment tell Fabric what ``srun`` started, where it tells of the job and not of this step of it.

    A step may have fewer tasks than its job; ``--ntasks`` alone leaves out what Fabric reads; the steps of a job would
    all meet on one port; and the jobs of ``salloc`` and ``srun bash`` are called "interactive" and "bash", where Fabric
    would make every task a run of its own.

    Raises:
        ConfigurationError: there are several tasks, and ``srun`` did not start this process, or started unlike numbers
            on the nodes.
    """
    tasks = int(os.environ.get("SLURM_NTASKS", "1"))
    if "SLURM_STEP_ID" in os.environ and not _by_torchrun():
        if tasks > 1 and not _by_srun() and "SLURM_PTY_PORT" not in os.environ:
            os.environ["SLURM_JOB_NAME"] = "fedgram"
        os.environ["SLURM_NTASKS_PER_NODE"] = str(_tasks_per_node())
        number = int(os.environ["SLURM_JOB_ID"]) + _PORTS_BETWEEN_STEPS * int(os.environ["SLURM_STEP_ID"])
        os.environ.setdefault("MASTER_PORT", str(_PORTS_FROM + number % _PORTS))
    elif tasks > 1 and _by_srun():
        raise _refusal(f"the SLURM job has {tasks} tasks, but fedgram was not started by srun; write srun fedgram ...")


def nodes(asked: int | Literal["auto"]) -> int:
    """Return how many nodes a run has: as asked, or as the launcher that started this process says."""
    started = _started()
    return asked if asked != "auto" else started[0] if started else 1


def devices_per_node(asked: int | str | list[int]) -> int | str | list[int]:
    """Return how many devices of a node a run has: as asked, or one for each process that the launcher started."""
    started = _started()
    return started[1] if asked == "auto" and started else asked


def choose_accelerator(asked: str) -> str:
    """Return the kind of device that a run is on, as Fabric calls it: as asked; ``auto`` is CUDA, or else the CPU.

    Fabric's own ``auto`` and ``gpu`` take Apple's GPUs as well, which have no float64, and the server computes in that.

    Raises:
        ConfigurationError: an Apple GPU is asked for.
    """
    if asked == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if asked == "mps" or (asked == "gpu" and not torch.cuda.is_available() and torch.backends.mps.is_available()):
        raise ConfigurationError(
            f"trainer.accelerator is {asked}: an Apple GPU (mps) has no float64, in which the server computes; use cpu "
            "or auto, which takes CUDA where there is some and otherwise the CPU"
        )
    return asked


@contextmanager
def without_srun_hint() -> Iterator[None]:
    """Silence Lightning's advice to use srun wherever that is installed; where it matters, `follow_srun` refuses."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*The `srun` command is available")
        yield


def launch(fabric: Fabric, num_nodes: int) -> None:
    """Start the ranks and connect them.

    Raises:
        ConfigurationError: there are not as many as were asked for, as when SLURM was asked for one task and
            fedgram for two devices; each would take its share of the data, and nobody the other.
    """
    _end_with_parent()
    devices = int(getattr(fabric.strategy, "num_processes", 1))
    there = _started() or (num_nodes, devices)
    if there != (num_nodes, devices):
        raise _refusal(
            f"trainer.num_nodes is {num_nodes} and trainer.devices asks for {devices} a node, but {there[0]} nodes "
            f"with {there[1]} tasks on each were started; leave both at auto, or have srun (--nodes, "
            "--ntasks-per-node) or torchrun (--nnodes, --nproc-per-node) start as many"
        )
    if devices > 1 and _started() is None:
        _check_arguments(sys.argv[1:])
    fabric.launch()
    connected = dist.get_world_size() if dist.is_initialized() else 1
    if connected != num_nodes * devices:
        raise ConfigurationError(
            f"trainer.num_nodes is {num_nodes} and trainer.devices asks for {devices} a node, but {connected} "
            "processes are connected; several nodes are for srun or torchrun to start"
        )


def _check_arguments(arguments: Sequence[str]) -> None:
    """Refuse pipes among the arguments of a program whose further processes Fabric starts with the same arguments.

    Raises:
        ConfigurationError: one is a pipe, from which nothing can be read twice.
    """
    for argument in arguments:
        place = argument.partition("=")[2] or argument
        if _is_pipe(place):
            raise ConfigurationError(
                f"{place} is a pipe, which the other processes of this run can't read as well; write what comes from "
                "it to a file"
            )


def _is_pipe(place: str) -> bool:
    """Return whether a text, most of which are no paths at all, is the path of a pipe."""
    try:
        return Path(place).is_fifo()
    except (OSError, ValueError):
        return False


def _tasks_per_node() -> int:
    """Return how many tasks this step of a job has on every node."""
    layout = os.environ.get(
        "SLURM_STEP_TASKS_PER_NODE", "1"
    )  # 2(x3): 2 on each of 3 nodes; 2,1: 2 on one, 1 on another
    same = re.fullmatch(r"(\d+)(\(x\d+\))?", layout)
    if same is None:
        raise _refusal(
            f"srun started {layout} tasks on its nodes, and fedgram needs as many on each: give --ntasks-per-node"
        )
    return int(same[1])


def _refusal(message: str) -> ConfigurationError:
    """Return an error that every process raises alike before they are connected; the first one is to report it."""
    error = ConfigurationError(message)
    error.reported_elsewhere = os.environ.get("RANK" if _by_torchrun() else "SLURM_PROCID", "0") != "0"
    return error


def _started() -> tuple[int, int] | None:
    """Return on how many nodes the launcher started how many processes each; nothing where there is no launcher."""
    if _by_torchrun():
        each = int(os.environ["LOCAL_WORLD_SIZE"])
        return int(os.environ["WORLD_SIZE"]) // each, each
    if _by_srun():
        return int(os.environ.get("SLURM_NNODES", "1")), int(os.environ.get("SLURM_NTASKS_PER_NODE", "1"))
    return None


def _by_torchrun() -> bool:
    return "TORCHELASTIC_RUN_ID" in os.environ


def _by_srun() -> bool:
    """Say whether Fabric takes this process for one of SLURM's; it does not in interactive jobs."""
    interactive = os.environ.get("SLURM_JOB_NAME") in ("bash", "interactive")
    return "SLURM_NTASKS" in os.environ and not interactive and not _by_torchrun()


def _end_with_parent() -> None:
    """Have a process that Fabric started end with the one that started it, even if that is killed.

    Otherwise it would go on until its next collective, and for ever if there is none.
    """
    started_by_fabric = int(os.environ.get("LOCAL_RANK", "0")) > 0 and not _by_torchrun() and not _by_srun()
    if started_by_fabric and sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
