"""How far the runs of a sweep are, as their folders tell."""

import hashlib
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from fedgram.files import atomic_write
from fedgram.runs.folder import RunFolder, versions
from fedgram.runs.lock import FolderLock, is_locked
from fedgram.sweep.plan import Point

__all__ = ["Standing", "command", "lock", "look", "remember", "stand"]

State = Literal["finished", "running", "cut off", "new", "changed"]
_RECORD = "sweep.json"


@dataclass(frozen=True)
class Standing:
    """How far a run is.

    Attributes:
        state: "finished"; "running", in another process of this machine; "cut off", so that it goes on where its last
            checkpoint stands; "new"; or "changed": there are runs of its name, but the sweep's file or its base config
            says something else now.
        folder: that of the run that is finished, or goes on.
        first_version: the first version_N that belongs to what the sweep says now.
    """

    state: State
    folder: Path | None
    first_version: int

    @property
    def summary(self) -> dict[str, Any]:
        """What the summary of a finished run says."""
        found = None if self.folder is None else RunFolder(self.folder).read_json("summary.json")
        return dict(found or {})


def look(point: Point, root: Path) -> Standing:
    """Return how far a run is whose sweep keeps its runs in a folder."""
    own = root / point.name
    busy = is_locked(own) or _has_busy_run(own)
    return Standing("running", None, max(versions(own), default=0)) if busy else stand(point, root)


def stand(point: Point, root: Path) -> Standing:
    """Return how far a run is that no other process is at."""
    own = root / point.name
    numbers = sorted(versions(own))
    record = _read(own / _RECORD)
    if record.get("digest") != _digest(point):
        return Standing("changed" if numbers else "new", None, max(numbers, default=-1) + 1)
    first = int(record["first_version"])
    folders = [RunFolder(own / f"version_{number}") for number in reversed(numbers) if number >= first]
    finished = [folder.path for folder in folders if (folder.path / "summary.json").exists()]
    if finished:
        return Standing("finished", finished[0], first)
    begun = [folder.path for folder in folders if folder.round_checkpoints()]
    return Standing("cut off", begun[0], first) if begun else Standing("new", None, first)


def lock(point: Point, root: Path) -> FolderLock | None:
    """Keep other sweeps from a run until the lock is closed, here and in every process that inherits it.

    Returns:
        The lock; None where another process, a sweep or a fit, is at the run.
    """
    own = root / point.name
    found = FolderLock.take(own)
    if found is None or not _has_busy_run(own):
        return found
    found.close()
    return None


def _has_busy_run(own: Path) -> bool:
    """Say whether a process is at one of the runs of a name."""
    return any(is_locked(own / f"version_{number}") for number in versions(own))


def remember(point: Point, root: Path, standing: Standing) -> None:
    """Note what a run was started with, so that `look` can tell whether it is what the sweep says later."""
    own = root / point.name
    own.mkdir(parents=True, exist_ok=True)
    record = {"digest": _digest(point), "first_version": standing.first_version, "settings": point.settings}
    atomic_write(own / _RECORD, (json.dumps(record, indent=2) + "\n").encode())


def command(point: Point, root: Path, standing: Standing) -> list[str]:
    """Return the command that starts a run, or has it go on."""
    where = ["--trainer.default_root_dir", str(root), "--trainer.name", point.name]
    resume = ["--ckpt_path", str(standing.folder)] if standing.state == "cut off" else []
    return [sys.executable, "-m", "fedgram", "fit", *point.settings, *where, *resume]


def _digest(point: Point) -> str:
    """Return a hash of what the base config and the run's overrides say, whatever their order and comments are."""
    base = yaml.safe_load(point.base.read_text())
    text = json.dumps([base, dict(point.overrides)], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def _read(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError):
        return {}
