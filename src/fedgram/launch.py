"""How the ranks of a run come to be, that they are as many as were asked for, and that none outlives the others.

They are started by Fabric (``--trainer.devices 2``), by ``torchrun``, or by SLURM's ``srun``.
"""

import ctypes
import os
import signal
import sys
from typing import Literal

import torch.distributed as dist
from lightning.fabric import Fabric

from fedgram.errors import ConfigurationError

__all__ = ["devices_per_node", "launch", "nodes"]

_PR_SET_PDEATHSIG = 1
"""prctl's code for: send me a signal when my parent dies (Linux)."""


def nodes(asked: int | Literal["auto"]) -> int:
    """Return how many nodes a run has: as asked, or as the launcher that started this process says."""
    if asked != "auto":
        return asked
    if _by_torchrun():
        return int(os.environ["WORLD_SIZE"]) // int(os.environ["LOCAL_WORLD_SIZE"])
    return int(os.environ.get("SLURM_NNODES", "1")) if _by_srun() else 1


def devices_per_node(asked: int | str | list[int]) -> int | str | list[int]:
    """Return how many devices of a node a run has: as asked, or one for each process that the launcher started."""
    if asked != "auto":
        return asked
    if _by_torchrun():
        return int(os.environ["LOCAL_WORLD_SIZE"])
    return int(os.environ["SLURM_NTASKS_PER_NODE"]) if _by_srun() and "SLURM_NTASKS_PER_NODE" in os.environ else asked


def launch(fabric: Fabric, num_nodes: int) -> None:
    """Start the ranks and connect them.

    Raises:
        ConfigurationError: there are not as many as were asked for, as when SLURM was asked for one task and
            fedgram for two devices; each would take its share of the data, and nobody the other.
    """
    _end_with_parent()
    _check_launcher()
    fabric.launch()
    asked = int(getattr(fabric.strategy, "num_processes", 1)) * num_nodes
    started = dist.get_world_size() if dist.is_initialized() else 1
    if asked != started or started != _processes(started):
        raise ConfigurationError(
            f"trainer.devices and trainer.num_nodes ask for {asked} ranks, {_processes(started)} processes were "
            f"started, and {started} are connected: give as many devices as there are tasks on a node "
            "(srun with --ntasks-per-node, torchrun with --nproc-per-node), or leave both at auto"
        )


def _check_launcher() -> None:
    """Refuse a job of several tasks that was not started by ``srun``: it would wait for the others for ever."""
    tasks = int(os.environ.get("SLURM_NTASKS", "1"))
    if _by_srun() and tasks > 1 and "SLURM_STEP_ID" not in os.environ:
        raise ConfigurationError(
            f"the SLURM job has {tasks} tasks, but fedgram was not started by srun; write srun fedgram ..."
        )


def _processes(default: int) -> int:
    """Return how many processes the launcher started."""
    if _by_torchrun():
        return int(os.environ["WORLD_SIZE"])
    return int(os.environ["SLURM_NTASKS"]) if _by_srun() else default


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
