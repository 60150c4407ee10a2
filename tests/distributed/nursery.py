"""Many groups of ranks out of one process, so that torch and its like are imported once.

`Nursery` is what a test has. Behind it stands a process, ``python -m distributed.nursery``, that imports everything,
computes nothing, and then forks ranks as it is told: their environment is that of torchrun, and Fabric takes them for
such. It can kill one of them at a moment, and says how each of them ended.
"""

import atexit
import ctypes
import importlib
import json
import mmap
import os
import random
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

PATIENCE = 60
"""Seconds that ranks may outlive one that was killed, as fedgram promises."""
LIMIT = 600
"""Seconds that a job may take: far more than any does, but ranks that wait for each other must not hang the tests."""
_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG
_PRELOADED = (
    "datasets",
    "fedgram.trainer",
    "lightning.fabric",
    "matplotlib.backends.backend_agg",
    "pandas",
    "pyarrow.parquet",
    "safetensors.torch",
    "torch.distributed.checkpoint",  # transformers imports it when it loads a model
    "transformers.models.bert.modeling_bert",
    "transformers.models.bert.tokenization_bert",
)


@dataclass(frozen=True)
class Kill:
    """A rank, and how many seconds after the start of the ranks it gets SIGKILL."""

    rank: int
    after: float


@dataclass(frozen=True)
class Outcome:
    """How a group of ranks ended.

    Attributes:
        codes: the exit code of every rank, negative for a signal.
        seconds: how long it took until the last one had ended.
        struck: whether the rank to be killed was still alive at its moment.
        connected: whether that one was connected to the others by then. Before, the others cannot know what became of
            it: who started the ranks ends them, as torchrun, srun -K and Fabric do, and so does the nursery.
        stuck: those that had to be ended since they took too long.
    """

    codes: list[int]
    seconds: float
    struck: bool
    connected: bool
    stuck: list[int]


class Nursery:
    """The process that forks ranks, from the side of a test.

    Args:
        folder: where the output of ranks goes.
    """

    def __init__(self, folder):
        self._folder = folder
        self._groups = 0
        self._errors = (folder / "nursery.log").open("w+")
        own = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "GLOO_SOCKET_IFNAME": "lo"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "distributed.nursery"],
            cwd=Path(__file__).parents[1],
            env=os.environ | own,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )

    def ranks(self, size, job, kill=None, **arguments):
        """Run a job on some ranks and wait for all of them.

        Args:
            size: how many.
            job: ``module:function``, which every rank calls.
            kill: whom to kill, and when.
            arguments: what the function is called with.
        """
        self._groups += 1
        logs = self._folder / f"group-{self._groups}"
        logs.mkdir()
        order = {"size": size, "job": job, "logs": str(logs), "arguments": arguments}
        order["kill"] = None if kill is None else [kill.rank, kill.after]
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(f"the nursery is gone:\n{self._said(self._folder / 'nursery.log')}")
        return Outcome(**json.loads(answer))

    def run(self, size, job, **arguments):
        """Run a job on some ranks, all of which must come through."""
        outcome = self.ranks(size, job, **arguments)
        if any(outcome.codes):
            raise RuntimeError(f"{outcome}\n{self.output()}")
        return outcome

    def output(self):
        """Return what the last ranks said."""
        logs = sorted((self._folder / f"group-{self._groups}").iterdir())
        return "\n".join(f"--- {log.name}\n{self._said(log)}" for log in logs)

    @staticmethod
    def _said(log):
        return log.read_text(errors="replace")[-4000:]

    def close(self):
        self._process.stdin.close()
        try:
            self._process.wait(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._errors.close()


def serve():
    """Fork ranks as the lines of stdin say, and answer each with a line."""
    import gc

    import torch

    torch.set_num_threads(1)  # a process that has used more can't be forked into one that does
    for name in _PRELOADED:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()  # or every rank would copy all of the imported modules when it collects garbage
    for line in sys.stdin:
        order = json.loads(line)
        connected = mmap.mmap(-1, order["size"])  # a byte of each rank, shared with it
        port, started = _free_port(), time.monotonic()
        children = [_fork(rank, port, connected, order) for rank in range(order["size"])]
        outcome = _watch(children, order["kill"], connected, started)
        sys.stdout.write(json.dumps(vars(outcome)) + "\n")
        sys.stdout.flush()


def _free_port():
    """Return a port that nobody uses, below those that the system gives to connections and may give away at once."""
    while True:
        port = random.randrange(20_000, 32_000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def _fork(rank, port, connected, order):
    """Start one rank and return its process id."""
    parent, child = os.getpid(), os.fork()
    if child:
        return child
    ctypes.CDLL(None).prctl(_DEATH_SIGNAL, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
    log = os.open(f"{order['logs']}/rank_{rank}.log", os.O_WRONLY | os.O_CREAT)
    for stream, source in enumerate((os.open(os.devnull, os.O_RDONLY), log, log)):
        os.dup2(source, stream)
    size = str(order["size"])
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "ROLE_RANK": str(rank), "GROUP_RANK": "0"}
    os.environ |= {"WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size, "ROLE_WORLD_SIZE": size, "GROUP_WORLD_SIZE": "1"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "nursery"}
    _tell_when_connected(rank, connected)
    module, _, function = order["job"].partition(":")
    getattr(importlib.import_module(module), function)(**order["arguments"])
    # A rank that raised ends as any program does. Where all is well, taking down the modules would copy all of them.
    atexit._run_exitfuncs()
    os._exit(0)


def _tell_when_connected(rank, connected):
    import torch

    connect = torch.distributed.init_process_group

    def connect_and_tell(*args, **kwargs):
        connect(*args, **kwargs)
        connected[rank] = 1

    torch.distributed.init_process_group = connect_and_tell


def _watch(children, kill, connected, started):
    """Wait until all ranks have ended, killing the one that is to be killed."""
    codes = [None] * len(children)
    struck, joined, stuck = False, False, []
    deadline = started + LIMIT
    while None in codes:
        _reap(children, codes)
        now = time.monotonic()
        if kill is not None and now >= started + kill[1]:
            victim, kill = kill[0], None
            if codes[victim] is None:
                joined = bool(connected[victim])
                os.kill(children[victim], signal.SIGKILL)
                struck, deadline = True, now + (PATIENCE if joined else 0)
        if now >= deadline:
            left = [rank for rank, code in enumerate(codes) if code is None]
            stuck = left if joined or not struck else []
            for rank in left:
                os.kill(children[rank], signal.SIGKILL)
            deadline = now + PATIENCE
        time.sleep(0.002)
    return Outcome(codes, time.monotonic() - started, struck, joined, stuck)


def _reap(children, codes):
    for rank, child in enumerate(children):
        if codes[rank] is None:
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                codes[rank] = os.waitstatus_to_exitcode(status)


if __name__ == "__main__":
    serve()
