"""How far the runs of a sweep are, as their folders tell."""

import hashlib
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from fedgram.files import atomic_write
from fedgram.run_folder import RunFolder, versions
from fedgram.sweep.plan import Point

__all__ = ["Standing", "command", "look", "remember"]

State = Literal["finished", "cut off", "new", "changed"]
_RECORD = "sweep.json"


@dataclass(frozen=True)
class Standing:
    """How far a run is.

    Attributes:
        state: "finished"; "cut off", so that it goes on where its last checkpoint stands; "new"; or "changed": there
            are runs of its name, but the sweep's file or its base config says something else now.
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
    numbers = sorted(versions(own))
    record = _read(own / _RECORD)
    if record.get("digest") != _digest(point):
        return Standing("changed" if numbers else "new", None, max(numbers, default=-1) + 1)
    first = int(record["first_version"])
    folders = [RunFolder(own / f"version_{number}") for number in reversed(numbers) if number >= first]
    for state, found in (
        ("finished", [folder for folder in folders if (folder.path / "summary.json").exists()]),
        ("cut off", [folder for folder in folders if folder.round_checkpoints()]),
    ):
        if found:
            return Standing(state, found[0].path, first)  # type: ignore[arg-type]
    return Standing("new", None, first)


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
    """Return a hash of the base config's content and of what the run sets."""
    text = json.dumps([point.base.read_text(), *_overrides(point.settings)])
    return hashlib.sha256(text.encode()).hexdigest()


def _overrides(settings: Sequence[str]) -> Sequence[str]:
    return settings[2:]  # without --config PATH, which may be moved


def _read(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError):
        return {}
