"""A run's folder: ``<default_root_dir>/<name>/version_N/``, and the files in it."""

import csv
import io
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from fedgram.errors import CheckpointError, ConfigurationError
from fedgram.files import atomic_write, remove_leftovers

__all__ = ["RunFolder", "find_checkpoints", "find_run_of"]

_ALIASES = ("last", "best")
_START = "slurm.json"


class Table:
    """A CSV file that grows by rows and may gain columns; every write replaces the whole file at once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[dict[str, Any]] = []
        if path.exists():
            with path.open(newline="") as file:
                self.rows = [dict(row) for row in csv.DictReader(file)]

    def extend(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Add rows and write the file; a table without rows has none."""
        self.rows += [dict(row) for row in rows]
        self._write()

    def keep_until(self, round_number: int) -> None:
        """Drop the rows of rounds after one: those of a round that did not count."""
        self.rows = [row for row in self.rows if int(row["round"]) <= round_number]
        self._write()

    def _write(self) -> None:
        if not self.rows:
            self.path.unlink(missing_ok=True)
            return
        columns = list(dict.fromkeys(column for row in self.rows for column in row))
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        atomic_write(self.path, text.getvalue().encode())


class RunFolder:
    """The files of one run.

    Args:
        path: the folder.

    Attributes:
        metrics: metrics.csv, one row a round; round 0 is the evaluation before training.
        communication: communication.csv: round, direction, part, clients, parameters, bytes.
        diagnostics: diagnostics.csv: figures about the aggregation, one row a round and layer.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.metrics = Table(path / "metrics.csv")
        self.communication = Table(path / "communication.csv")
        self.diagnostics = Table(path / "diagnostics.csv")

    @classmethod
    def create(cls, root: Path, name: str) -> "RunFolder":
        """Make the next version_N of a name."""
        parent = root / name
        try:
            parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigurationError(f"trainer.default_root_dir: can't make {parent} ({error.strerror})") from error
        number = max(_versions(parent), default=-1) + 1
        while True:  # another process may take the number first
            try:
                (parent / f"version_{number}").mkdir()
                return cls(parent / f"version_{number}")
            except FileExistsError:
                number += 1

    def round_checkpoint(self, round_number: int) -> Path:
        """Return the path of the checkpoint that is made after a round."""
        return self.path / "checkpoints" / f"round_{round_number:06d}.safetensors"

    def round_checkpoints(self) -> list[Path]:
        """Return the checkpoints of rounds that are there, the newest first."""
        return sorted((self.path / "checkpoints").glob("round_*.safetensors"), reverse=True)

    def checkpoint(self, alias: str) -> Path:
        """Return the path of the checkpoint ``last`` or ``best``; the last is that of the newest round."""
        if alias == "last":
            return next(iter(self.round_checkpoints()), self.round_checkpoint(0))
        return self.path / "checkpoints" / f"{alias}.safetensors"

    def keep_checkpoints(self, count: int) -> None:
        """Delete the checkpoints of all but the newest rounds."""
        for path in self.round_checkpoints()[count:]:
            path.unlink()

    def rewind(self, round_number: int) -> None:
        """Drop what was written about rounds after one, their checkpoints, and the summary, which is of the end.

        What a kill has left half written goes as well.
        """
        remove_leftovers([self.path, self.path / "checkpoints"])
        for path in self.round_checkpoints():
            if path > self.round_checkpoint(round_number):
                path.unlink()
        (self.path / "summary.json").unlink(missing_ok=True)
        for table in (self.metrics, self.communication, self.diagnostics):
            table.keep_until(round_number)

    def remember_start(self, start: Mapping[str, Any]) -> None:
        """Note by which job and command the run was started, for `find_run_of`."""
        self.write_json(_START, start)

    def write_json(self, name: str, content: Mapping[str, Any]) -> None:
        """Write a JSON file."""
        atomic_write(self.path / name, (json.dumps(content, indent=2) + "\n").encode())

    def read_json(self, name: str) -> Any:
        """Return what a JSON file says; None if there is none."""
        path = self.path / name
        return json.loads(path.read_text()) if path.exists() else None

    def write_text(self, name: str, content: str) -> None:
        """Write a text file."""
        atomic_write(self.path / name, content.encode())


def find_checkpoints(ckpt_path: str, root: Path, name: str) -> list[Path]:
    """Return the files that ``--ckpt_path`` means, the one to be preferred first.

    That is a path alone; ``best`` of the newest run of a name; or for ``last``, and for the folder of a run, the
    checkpoints of its rounds from the newest on.

    Raises:
        CheckpointError: there is none.
    """
    if ckpt_path not in _ALIASES:
        path = Path(ckpt_path)
        return (RunFolder(path).round_checkpoints() if path.is_dir() else []) or [path]
    for number in sorted(_versions(root / name), reverse=True):
        folder = RunFolder(root / name / f"version_{number}")
        if folder.checkpoint(ckpt_path).exists():
            return folder.round_checkpoints() if ckpt_path == "last" else [folder.checkpoint(ckpt_path)]
    raise CheckpointError(
        f"--ckpt_path {ckpt_path}: no run in {root / name} has such a checkpoint; leave ckpt_path out to start anew, "
        "or set trainer.name and trainer.default_root_dir to the run's"
    )


def find_run_of(start: Mapping[str, Any], root: Path, name: str) -> "RunFolder | None":
    """Return the newest run of a name that was started by this job and command; None if there is none."""
    for number in sorted(_versions(root / name), reverse=True):
        folder = RunFolder(root / name / f"version_{number}")
        if folder.read_json(_START) == start:
            return folder
    return None


def _versions(parent: Path) -> list[int]:
    if not parent.is_dir():
        return []
    matches = (re.fullmatch(r"version_(\d+)", child.name) for child in parent.iterdir())
    return [int(match[1]) for match in matches if match]
