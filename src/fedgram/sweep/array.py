"""A sweep as a SLURM job array, in which each task is one run."""

import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from fedgram.errors import ConfigurationError
from fedgram.files import atomic_write

__all__ = ["write_array"]

_SCRIPT = """\
#!/bin/bash
# {count} runs of {name}, one a task:
#   sbatch {path}
# What stands before the script's name goes to sbatch and overrides the lines below. docs/slurm.md explains every line.
#SBATCH --job-name={job}
#SBATCH --output="{output}/slurm-%A_%a.out"
#SBATCH --open-mode=append       # a requeued task goes on writing where it stopped
#SBATCH --array={tasks}          # %6 behind it lets six run at a time
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1      # one rank each; with GPUs, as many as GPUs
#SBATCH --cpus-per-task=4
##SBATCH --gpus-per-node=1       # remove one # to use it
#SBATCH --time=04:00:00
#SBATCH --signal=USR1@120        # two minutes before the end, to every rank (with B: it would go to this script alone)
#SBATCH --requeue

export OMP_NUM_THREADS=${{SLURM_CPUS_PER_TASK:-1}}
export HF_HUB_OFFLINE=1          # fedgram prepare fetched everything on the login node

# The command of this task's run: it starts it, has it go on where it was cut off, or is empty where it is done.
command=$({sweep} --print_command "$SLURM_ARRAY_TASK_ID") || exit 1
# -K: when one rank dies, all do. -c: srun does not take it over from the job by itself.
[ -z "$command" ] || eval "srun -K -c $OMP_NUM_THREADS $command --trainer.requeue true"
"""


def write_array(path: Path, name: str, root: Path, sweep: Sequence[str], tasks: Sequence[int], count: int) -> None:
    """Write a script for sbatch.

    Args:
        path: the file to write.
        name: the sweep's.
        root: the folder of its runs.
        sweep: the command that knows the runs, without what is asked of it.
        tasks: the numbers of the runs that are not finished.
        count: how many that are.

    Raises:
        ConfigurationError: a path that a line of sbatch's options can't hold.
    """
    text = _SCRIPT.format(
        count=count,
        name=_of_one_line("the sweep's name", name),
        job=re.sub(r"[^\w.=+,-]", "_", name),
        path=shlex.quote(_of_one_line("--slurm", path)),
        output=_sbatch_value(_of_one_line("--default_root_dir", root)),
        sweep=shlex.join(sweep),
        tasks=_ranges(tasks),
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    root.mkdir(parents=True, exist_ok=True)  # SLURM makes no folder for what a job writes
    atomic_write(path, text.encode())


def _of_one_line(option: str, path: str | Path) -> str:
    if not str(path).isprintable():
        raise ConfigurationError(f"{option} must not hold line breaks or control characters, got {str(path)!r}")
    return str(path)


def _sbatch_value(path: str) -> str:
    """Return a path as it stands between double quotes in a line of options, in which % begins a pattern."""
    if '"' in path or "\\" in path:
        raise ConfigurationError(f"--default_root_dir must not hold quotes or backslashes with --slurm, got {path!r}")
    return path.replace("%", "%%")


def _ranges(numbers: Sequence[int]) -> str:
    """Return numbers as sbatch's --array has them.

    >>> _ranges([0, 1, 2, 5])
    '0-2,5'
    """
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ",".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)
