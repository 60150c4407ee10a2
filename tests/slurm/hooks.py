"""Callbacks that bring a job to a certain point and hold it there, so that no test depends on timing."""

import os
import select
import signal
import socket
import time
from pathlib import Path

from fedgram.callbacks import Callback

SECONDS = 60
"""Longer than any signal takes; a run that waits in vain goes on, and its test fails."""


class _InRound(Callback):
    """Acts in the middle of a round, between two blocks: not in a requeued job, and of an array in one task alone.

    It says so before by a file ``reached-RANK`` in the run's folder.
    """

    def __init__(self, at: int = 2, array_task: str = "2"):
        self.at = at
        self.current = 0
        others = os.environ.get("SLURM_ARRAY_TASK_ID", array_task) != array_task
        self.over = others or "SLURM_RESTART_COUNT" in os.environ

    def on_round_start(self, trainer, round_number, clients):
        self.current = round_number

    def on_block_end(self, trainer, clients):
        if self.current == self.at and not self.over:
            self.over = True
            (trainer.folder.path / f"reached-{trainer.fabric.global_rank}").touch()
            self.act(trainer)


class StartSlowly(Callback):
    """Holds every rank up when its callbacks are made, long before training."""

    def __init__(self):
        Path(f"starting-{os.environ['SLURM_PROCID']}").touch()
        deadline = time.monotonic() + SECONDS
        while not Path("signalled").exists() and time.monotonic() < deadline:
            time.sleep(0.1)


class WaitForSignal(_InRound):
    """Waits until a signal was handled."""

    def act(self, trainer):
        ours, pythons = socket.socketpair()
        pythons.setblocking(False)
        signal.set_wakeup_fd(pythons.fileno())
        select.select([ours], [], [], SECONDS)
        signal.set_wakeup_fd(-1)


class Die(_InRound):
    """Kills the last rank, as a machine does that runs out of memory."""

    def act(self, trainer):
        if trainer.fabric.global_rank == trainer.fabric.world_size - 1:
            os.kill(os.getpid(), signal.SIGKILL)
