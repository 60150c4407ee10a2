"""A throw-away SLURM cluster of virtual nodes on one machine: the real daemons, as root, without systemd.

Every node is a slurmd in mount, UTS and PID namespaces of its own: it has a host name, n1, n2 and so on, that resolves
to 127.0.0.11, 127.0.0.12 and so on within the cluster alone, and takes all its tasks with it when it is killed. All
files are in a temporary folder, all traffic stays on 127.0.0.0/8, and all of it ends with the process that started it.
"""

import os
import random
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

CPUS = 8
"""Of every node; they are declared, not owned: nodes share the machine's."""

ENDED = {
    "COMPLETED",
    "FAILED",
    "TIMEOUT",
    "CANCELLED",
    "NODE_FAIL",
    "PREEMPTED",
    "OUT_OF_MEMORY",
    "DEADLINE",
    "BOOT_FAIL",
}

_PROGRAMS = (
    "munged",
    "slurmctld",
    "slurmd",
    "sbatch",
    "srun",
    "salloc",
    "scontrol",
    "scancel",
    "sinfo",
    "unshare",
    "setpriv",
)
_PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])
_NAMESPACES = ("unshare", "--mount", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc")

_NODE = 'mount --bind "$1/hosts" /etc/hosts && hostname "$2" && exec slurmd -D -N "$2" -f "$1/slurm.conf"'
"""What becomes a node, as a shell says it, once it is in its namespaces."""

# Credentials expire soon, since a requeued job waits for that; cgroups, accounting and MPI are switched off; preemption
# sends a job its own --signal first, as large clusters have it.
_CONFIGURATION = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SchedulerParameters=batch_sched_delay=0,sched_interval=1
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CredType=cred/munge
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/run/slurmctld.pid
SlurmdPidFile={folder}/run/slurmd.%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
SlurmctldParameters=preempt_send_user_signal
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
ReturnToService=2
JobRequeue=1
KillWait=5
MinJobAge=3600
FirstJobId={first_job}
NodeName=n[1-{nodes}] NodeHostname=n[1-{nodes}] NodeAddr=127.0.0.[11-{last}] Port=[{ports}] CPUs={cpus} State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1 PreemptMode=REQUEUE GraceTime=10
PartitionName=high Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
"""


def obstacle() -> str | None:
    """Return why no cluster can be started here, with the remedy; None where it can."""
    if os.geteuid():
        return "only root can start a SLURM cluster with nodes of their own names"
    missing = [name for name in _PROGRAMS if shutil.which(name, path=_PATH) is None]
    if missing:
        return f"{', '.join(missing)} missing: apt-get install slurmctld slurmd slurm-client munge"
    if subprocess.run([*_NAMESPACES, "true"], capture_output=True, check=False).returncode:
        return "this machine does not allow namespaces (unshare): SLURM's nodes would all have one name"
    return None


class Cluster:
    """Starts on entry and leaves nothing behind on exit.

    Args:
        nodes: how many.

    Attributes:
        folder: where configuration, logs and state are.
        environment: what SLURM's commands need.
    """

    def __init__(self, nodes: int = 2) -> None:
        self.nodes = nodes
        self.folder = Path()
        self.environment: dict[str, str] = {}
        self._daemons: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> "Cluster":
        # munged refuses a socket that others can't reach, which rules out folders of one user's, as pytest's.
        self.folder = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))
        self.environment = {**os.environ, "PATH": _PATH, "SLURM_CONF": str(self.folder / "slurm.conf")}
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for daemon in reversed(
            self._daemons
        ):  # with a node all processes of its namespace are killed, and so its tasks
            daemon.kill()
            daemon.wait()
        for _ in range(50):
            shutil.rmtree(self.folder, ignore_errors=True)
            if not self.folder.exists():
                break
            time.sleep(0.1)  # what is just dying may still write

    def run(self, *command: str, **options: Any) -> str:
        """Run a command of SLURM's and return what it says."""
        options = {"env": self.environment, "timeout": 300, **options}
        result = subprocess.run(command, capture_output=True, text=True, check=False, **options)
        if result.returncode:
            raise RuntimeError(f"{' '.join(command)} ended with {result.returncode}: {result.stderr}")
        return result.stdout.strip()

    def submit(self, *arguments: str, **options: Any) -> str:
        """Submit a batch job and return its id."""
        return self.run("sbatch", "--parsable", *arguments, **options)

    def job(self, job: str) -> dict[str, str]:
        """Return what SLURM knows about a job: JobState, Restarts, ExitCode and so on."""
        fields = self.run("scontrol", "show", "job", "-o", job).split()
        return dict(field.split("=", 1) for field in fields if "=" in field)

    def wait(self, job: str, seconds: float = 300) -> dict[str, str]:
        """Wait until a job is over, and return what SLURM knows about it."""
        return self.until(lambda: self._ended(job), seconds, f"job {job} to end")

    def until(self, condition: Callable[[], Any], seconds: float, what: str) -> Any:
        """Wait until a condition is true, and return what it says; where it never is, tell what the cluster did."""
        deadline = time.monotonic() + seconds
        while not (value := condition()):
            if time.monotonic() > deadline:
                raise TimeoutError(f"waited {seconds:g} seconds for {what}\n{self._state()}")
            time.sleep(0.1)
        return value

    def _ended(self, job: str) -> dict[str, str] | None:
        fields = self.job(job)
        return fields if fields["JobState"] in ENDED else None

    def _start(self) -> None:
        self.folder.chmod(0o755)
        for name in ("log", "run", "state", "spool"):
            (self.folder / name).mkdir()
        key = self.folder / "munge.key"
        key.touch(0o600)  # munged refuses one that others can read
        key.write_bytes(os.urandom(128))
        addresses = [f"127.0.0.{10 + number} n{number}" for number in range(1, self.nodes + 1)]
        hosts = ["127.0.0.1 localhost", f"127.0.0.1 {_host()}", *addresses]
        (self.folder / "hosts").write_text("\n".join(hosts) + "\n")
        (self.folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")  # to find out by itself may fail here
        (self.folder / "slurm.conf").write_text(self._configuration())
        self._start_daemons()

    def _configuration(self) -> str:
        port = _free_ports(self.nodes + 1)
        return _CONFIGURATION.format(
            folder=self.folder,
            host=_host(),
            port=port,
            ports=f"{port + 1}-{port + self.nodes}",
            nodes=self.nodes,
            last=10 + self.nodes,
            cpus=CPUS,
            first_job=random.SystemRandom().randint(1, 9000),  # ranks meet on a port that is made of the job's id
        )

    def _start_daemons(self) -> None:
        folder = self.folder
        munge = {"key-file": "munge.key", "socket": "munge.socket"}
        munge |= {"pid-file": "run/munged.pid", "seed-file": "run/munged.seed"}
        self._daemon("munged", "munged", "--foreground", *(f"--{key}={folder / name}" for key, name in munge.items()))
        self.until((folder / "munge.socket").is_socket, 10, "munged")
        self._daemon("slurmctld", "slurmctld", "-D", "-c", "-f", str(folder / "slurm.conf"))
        for number in range(1, self.nodes + 1):
            node = f"n{number}"
            self._daemon(f"slurmd.{node}", *_NAMESPACES, "sh", "-c", _NODE, "sh", str(folder), node)
        self.until(self._all_idle, 30, "all nodes to be idle")

    def _daemon(self, name: str, *command: str) -> None:
        """Start a process that ends with this one, however this one ends."""
        with (self.folder / "log" / name).open("wb") as output:
            daemon = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", *command],
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for the tests, which then stop it
            )
        self._daemons.append(daemon)

    def _all_idle(self) -> bool:
        for daemon in self._daemons:
            if daemon.poll() is not None:
                raise RuntimeError(f"{daemon.args} ended with {daemon.returncode}\n{self._state()}")
        result = subprocess.run(
            ["sinfo", "-h", "-N", "-p", "main", "-o", "%T"], env=self.environment, capture_output=True, check=False
        )
        return result.stdout.split() == [b"idle"] * self.nodes

    def _state(self) -> str:
        """Return the ends of all logs, for an error."""
        logs = sorted((self.folder / "log").iterdir())
        return "\n".join(f"--- {log.name}\n" + "\n".join(log.read_text().splitlines()[-10:]) for log in logs)


def _host() -> str:
    return socket.gethostname().split(".")[0]


def _free_ports(count: int) -> int:
    """Return the first of some free ports in a row, below those that the system gives away itself."""
    while True:
        first = random.SystemRandom().randrange(25000, 32000, count)
        if all(_is_free(port) for port in range(first, first + count)):
            return first


def _is_free(port: int) -> bool:
    with socket.socket() as listener:
        try:
            listener.bind(("", port))
        except OSError:
            return False
    return True
