"""Which run a fit goes on with, and from which of its checkpoints; the run's folder is locked meanwhile."""

import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from fedgram.distributed.slurm import Job, current_job
from fedgram.errors import ConfigurationError
from fedgram.federation.session import Session
from fedgram.runs.checkpoint import Checkpoint, load_first
from fedgram.runs.folder import UNTRAINED, RunFolder, find_checkpoints, find_run_of, run_of
from fedgram.runs.lock import lock_run

__all__ = ["checkpoint_to_go_on_from", "folder_of", "lock_run_that_goes_on", "start_of"]


def lock_run_that_goes_on(session: Session, ckpt_path: str | None, held: ExitStack) -> str | None:
    """Return the path of the run or checkpoint to go on from, with the run's folder locked; None for a new run.

    Process 0 looks for it and tells the others, which so look for checkpoints in a folder that nobody else changes.
    """
    found: str | None = None
    ranks = session.ranks
    with ranks.apart():
        if ranks.rank == 0:
            found = _place_to_go_on_from(session, ckpt_path)
            folder = None if found is None else run_of(find_checkpoints(found, *session.home)[0])
            if folder is not None:
                held.callback(lock_run(folder).close)
    return ranks.broadcast(found)


def _place_to_go_on_from(session: Session, ckpt_path: str | None) -> str | None:
    """Return the path of a run's folder or checkpoint; None for a new run."""
    if ckpt_path == UNTRAINED:
        return None
    if ckpt_path is None:
        begun = _run_of_requeued_job(session)
        return str(begun.path) if begun is not None and begun.round_checkpoints() else None
    if Path(ckpt_path).stem == "best":
        raise ConfigurationError("a run goes on where it stands, with --ckpt_path last; best is for validate and test")
    folder = run_of(find_checkpoints(ckpt_path, *session.home)[0]) if ckpt_path == "last" else None
    return ckpt_path if folder is None else str(folder)


def checkpoint_to_go_on_from(session: Session, place: str | None) -> tuple[Path, Checkpoint] | tuple[None, None]:
    """Return the checkpoint that a run goes on from, with its path; nothing for a new run."""
    if place is None:
        return None, None
    path, checkpoint = load_first(find_checkpoints(place, *session.home))
    if checkpoint.round > session.settings.rounds:
        raise ConfigurationError(
            f"trainer.rounds is {session.settings.rounds}, but {path} stands at round {checkpoint.round}; set it to "
            "that or more"
        )
    return path, checkpoint


def _run_of_requeued_job(session: Session) -> RunFolder | None:
    """Return the run that this SLURM job began before it was requeued, if it was and did."""
    job = current_job()
    if job is None or not job.restarts:
        return None
    return find_run_of(start_of(job), *session.home)


def start_of(job: Job) -> dict[str, Any]:
    """Return what tells the runs of a job apart, which may be several: how each was called."""
    return {"job": job.name, "arguments": sys.argv[1:]}


def folder_of(session: Session, checkpoint: Path | None, held: ExitStack) -> RunFolder:
    """Return the folder of the run that goes on, which is locked, or a new one, and lock it."""
    own = None if checkpoint is None else run_of(checkpoint)
    if own is not None:
        return RunFolder(own)
    if session.ranks.rank:
        return RunFolder(session.settings.root)  # process 0 makes one and tells
    new = RunFolder.create(*session.home)
    held.callback(lock_run(new.path).close)
    return new
