"""A sweep as a SLURM job array, in which each task is one run."""

import shlex
from collections.abc import Sequence
from pathlib import Path

from fedgram.files import atomic_write

__all__ = ["write_array"]

_SCRIPT = """\
#!/bin/bash
# {count} runs of {name}, one a task. Change what your cluster asks for; a run may have several ranks (--ntasks).
#   sbatch {path}
#SBATCH --job-name={name}
#SBATCH --array={tasks}
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=4
#SBATCH --time=04:00:00
#SBATCH --output={root}/slurm-%A_%a.txt
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=USR1@120

# The command of this task's run: it starts, goes on where it was cut off, or has nothing left to do.
command=$({sweep} --print_command "$SLURM_ARRAY_TASK_ID") || exit 1
[ -z "$command" ] || eval "srun $command --trainer.requeue true"
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
    """
    text = _SCRIPT.format(count=count, name=name, path=path, root=root, sweep=shlex.join(sweep), tasks=_ranges(tasks))
    path.parent.mkdir(parents=True, exist_ok=True)
    root.mkdir(parents=True, exist_ok=True)  # SLURM makes no folder for what a job writes
    atomic_write(path, text.encode())


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
