"""Which run a fit goes on with, and from which of its checkpoints; the run's folder is locked meanwhile."""

import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedgram.checkpoint import Checkpoint, load_first
from fedgram.collectives import Ranks
from fedgram.errors import ConfigurationError
from fedgram.lock import lock_run
from fedgram.run_folder import UNTRAINED, RunFolder, find_checkpoints, find_run_of, run_of
from fedgram.slurm import Job, current_job

if TYPE_CHECKING:
    from fedgram.trainer import FederatedTrainer

__all__ = ["checkpoint_to_go_on_from", "folder_of", "home", "lock_run_that_goes_on", "start_of"]


def lock_run_that_goes_on(
    trainer: "FederatedTrainer", ranks: Ranks, ckpt_path: str | None, held: ExitStack
) -> str | None:
    """Return the path of the run or checkpoint to go on from, with the run's folder locked; None for a new run.

    Process 0 looks for it and tells the others, which so look for checkpoints in a folder that nobody else changes.
    """
    found: str | None = None
    with ranks.apart():
        if ranks.rank == 0:
            found = _place_to_go_on_from(trainer, ckpt_path)
            folder = None if found is None else run_of(find_checkpoints(found, *home(trainer))[0])
            if folder is not None:
                held.callback(lock_run(folder).close)
    return ranks.broadcast(found)


def _place_to_go_on_from(trainer: "FederatedTrainer", ckpt_path: str | None) -> str | None:
    """Return the path of a run's folder or checkpoint; None for a new run."""
    if ckpt_path == UNTRAINED:
        return None
    if ckpt_path is None:
        begun = _run_of_requeued_job(trainer)
        return str(begun.path) if begun is not None and begun.round_checkpoints() else None
    if Path(ckpt_path).stem == "best":
        raise ConfigurationError("a run goes on where it stands, with --ckpt_path last; best is for validate and test")
    folder = run_of(find_checkpoints(ckpt_path, *home(trainer))[0]) if ckpt_path == "last" else None
    return ckpt_path if folder is None else str(folder)


def home(trainer: "FederatedTrainer") -> tuple[Path, str]:
    """Return the root folder of the runs, and the name of this one."""
    return trainer.default_root_dir, trainer.run_name


def checkpoint_to_go_on_from(
    trainer: "FederatedTrainer", place: str | None
) -> tuple[Path, Checkpoint] | tuple[None, None]:
    """Return the checkpoint that a run goes on from, with its path; nothing for a new run."""
    if place is None:
        return None, None
    path, checkpoint = load_first(find_checkpoints(place, *home(trainer)))
    if checkpoint.round > trainer.rounds:
        raise ConfigurationError(
            f"trainer.rounds is {trainer.rounds}, but {path} stands at round {checkpoint.round}; set it to that or more"
        )
    return path, checkpoint


def _run_of_requeued_job(trainer: "FederatedTrainer") -> RunFolder | None:
    """Return the run that this SLURM job began before it was requeued, if it was and did."""
    job = current_job()
    if job is None or not job.restarts:
        return None
    return find_run_of(start_of(job), *home(trainer))


def start_of(job: Job) -> dict[str, Any]:
    """Return what tells the runs of a job apart, which may be several: how each was called."""
    return {"job": job.name, "arguments": sys.argv[1:]}


def folder_of(trainer: "FederatedTrainer", ranks: Ranks, checkpoint: Path | None, held: ExitStack) -> RunFolder:
    """Return the folder of the run that goes on, which is locked, or a new one, and lock it."""
    own = None if checkpoint is None else run_of(checkpoint)
    if own is not None:
        return RunFolder(own)
    if ranks.rank:
        return RunFolder(trainer.default_root_dir)  # process 0 makes one and tells
    new = RunFolder.create(*home(trainer))
    held.callback(lock_run(new.path).close)
    return new
