"""A run's folder: ``<default_root_dir>/<name>/version_N/``, and the files in it."""

import csv
import io
import json
import math
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from itertools import takewhile
from pathlib import Path
from typing import Any

from fedgram.errors import CheckpointError, located
from fedgram.files import append, atomic_write, remove_leftovers, writing

__all__ = [
    "UNTRAINED",
    "RunFolder",
    "column_of",
    "find_checkpoints",
    "find_run_of",
    "is_loss",
    "newest_checkpoints",
    "run_of",
    "versions",
]

UNTRAINED = "none"
"""What ``--ckpt_path`` is for the model that training starts from."""
_ALIASES = ("last", "best")
_START = "slurm.json"


def is_loss(metric: str) -> bool:
    """Say whether a key of an evaluation is the loss on the split, or on a further part of it."""
    return metric.partition("_")[0] == "loss"


def column_of(metric: str) -> str:
    """Return the column of metrics.csv that a key of an evaluation stands in.

    >>> column_of("accuracy"), column_of("loss")
    ('accuracy', 'val_loss')
    """
    return f"val_{metric}" if is_loss(metric) else metric


class Table:
    """A CSV file that grows by rows and may gain columns.

    Rows are appended, so that what a round costs does not depend on the rounds before it; a new column, which is rare,
    replaces the whole file at once. A kill may leave rows half written at the end. They are of a round that did not
    count: `keep_until` drops them, and so does the first write of a table that is opened anew.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._columns: list[str] = []
        self._is_known = False  # whether this object has written the file, so that it can be appended to

    def extend(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Add rows; a table without rows has no file."""
        new = [dict(row) for row in rows]
        if not new:
            return
        has_columns = set(self._columns).issuperset(column for row in new for column in row)
        if self._is_known and has_columns and self.path.exists():
            append(self.path, self._lines(new))
        else:
            self._replace([*self._read(), *new])

    def amend(self, round_number: int, further: Mapping[str, Any]) -> None:
        """Add columns to the row of a round."""
        rows = self._read()
        self._replace([{**row, **further} if _round_of(row) == round_number else row for row in rows])

    def keep_until(self, round_number: int) -> None:
        """Drop the rows from the first one on that is of a later round, or that is no whole row."""
        self._replace(list(takewhile(lambda row: _round_of(row) <= round_number, self._read())))

    def _read(self) -> list[dict[str, Any]]:
        """Return the rows of the file, without a last line that is not whole."""
        if not self.path.is_file():
            return []
        whole = self.path.read_bytes().rpartition(b"\n")[0]
        return list(csv.DictReader(io.StringIO(whole.decode(errors="replace"), newline="")))

    def _replace(self, rows: list[dict[str, Any]]) -> None:
        """Write the file anew with some rows."""
        self._columns = list(dict.fromkeys(column for row in rows for column in row))
        self._is_known = True
        if rows:
            header = dict(zip(self._columns, self._columns, strict=True))
            atomic_write(self.path, self._lines([header, *rows]))
        else:
            self.path.unlink(missing_ok=True)

    def _lines(self, rows: list[dict[str, Any]]) -> bytes:
        text = io.StringIO()
        csv.DictWriter(text, self._columns, restval="", lineterminator="\n").writerows(rows)
        return text.getvalue().encode()


def _round_of(row: Mapping[str, Any]) -> float:
    """Return the round that a row of text is about; infinity where it is no row of a table."""
    try:
        return int(row["round"])
    except (KeyError, TypeError, ValueError):
        return math.inf


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
        """Make the next version_N of a name.

        Raises:
            OutputError: the system refuses to.
        """
        with located("trainer.default_root_dir"), writing(root / name):
            (root / name).mkdir(parents=True, exist_ok=True)
            number = max(versions(root / name), default=-1) + 1
            while True:
                with suppress(FileExistsError):  # another process was first to take the number
                    (root / name / f"version_{number}").mkdir()
                    return cls(root / name / f"version_{number}")
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

    def result(self, split: str, round_number: int) -> Path:
        """Return the path of what the model after a round scores on a split."""
        return self.path / "results" / f"{split}_round_{round_number:06d}.json"

    def keep_checkpoints(self, count: int) -> None:
        """Delete the checkpoints of all but the newest rounds."""
        for path in self.round_checkpoints()[count:]:
            if not path.is_dir():  # which is none
                path.unlink()

    def rewind(self, round_number: int) -> None:
        """Drop what was written about rounds after one, and what a kill has left half written.

        A summary of rounds that are still there stays until `reopen`: a run that fails before has lost nothing.
        """
        later = [path for path in self.round_checkpoints() if path > self.round_checkpoint(round_number)]
        for path in later:
            _delete(path)
        remove_leftovers([self.path, self.path / "checkpoints", self.path / "results"])
        for table in (self.metrics, self.communication, self.diagnostics):
            table.keep_until(round_number)
        for path in (self.path / "results").glob("*_round_*.json"):
            if path > self.result(path.name.partition("_round_")[0], round_number):
                path.unlink()
        if later:  # else the summary is of what is left
            self.reopen()

    def reopen(self) -> None:
        """Delete the summary, which is of the end: the run goes on."""
        (self.path / "summary.json").unlink(missing_ok=True)

    def remember_start(self, start: Mapping[str, Any]) -> None:
        """Note by which job and command the run was started, for `find_run_of`."""
        self.write_json(_START, start)

    def write_json(self, name: str, content: Mapping[str, Any]) -> None:
        """Write a JSON file; a figure that is nan, which JSON does not know, is null in it."""
        atomic_write(self.path / name, (json.dumps(_without_nan(content), indent=2) + "\n").encode())

    def read_json(self, name: str) -> Any:
        """Return what a JSON file says; None if there is none."""
        path = self.path / name
        return json.loads(path.read_text()) if path.is_file() else None

    def write_text(self, name: str, content: str) -> None:
        """Write a text file."""
        atomic_write(self.path / name, content.encode())


def _delete(path: Path) -> None:
    """Delete a checkpoint that does not count, whatever kind of file it is.

    Raises:
        CheckpointError: it can't be deleted, as it is a folder, or in one that can't be written to.
    """
    try:
        path.unlink()
    except OSError as error:
        raise CheckpointError(
            f"the run goes on from an earlier round, but can't delete {path} ({error.strerror}); move it away"
        ) from error


def _without_nan(content: Any) -> Any:
    if isinstance(content, Mapping):
        return {key: _without_nan(value) for key, value in content.items()}
    return None if isinstance(content, float) and math.isnan(content) else content


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
    for number in sorted(versions(root / name), reverse=True):
        folder = RunFolder(root / name / f"version_{number}")
        if _is_there(folder.checkpoint(ckpt_path)):
            return folder.round_checkpoints() if ckpt_path == "last" else [folder.checkpoint(ckpt_path)]
    raise CheckpointError(
        f"--ckpt_path {ckpt_path}: no run in {root / name} has such a checkpoint; leave ckpt_path out to start anew, "
        "or set trainer.name and trainer.default_root_dir to the run's"
    )


def run_of(checkpoint: Path) -> Path | None:
    """Return the folder of the run that a checkpoint lies in; None where it lies elsewhere, or nowhere."""
    lies_in_run = checkpoint.parent.name == "checkpoints" and checkpoint.parent.is_dir()
    return checkpoint.parent.parent if lies_in_run else None


def newest_checkpoints(root: Path, name: str) -> list[Path]:
    """Return the files of the newest run of a name that has any: ``best`` if it is there, and the last ones."""
    for number in sorted(versions(root / name), reverse=True):
        folder = RunFolder(root / name / f"version_{number}")
        best = folder.checkpoint("best")
        if found := [*([best] if _is_there(best) else []), *folder.round_checkpoints()]:
            return found
    return []


def _is_there(path: Path) -> bool:
    """Say whether a folder has a name, also if that is a link which leads nowhere: what it is, reading it tells."""
    return path.is_symlink() or path.exists()


def find_run_of(start: Mapping[str, Any], root: Path, name: str) -> "RunFolder | None":
    """Return the newest run of a name that was started by this job and command; None if there is none."""
    for number in sorted(versions(root / name), reverse=True):
        folder = RunFolder(root / name / f"version_{number}")
        if folder.read_json(_START) == start:
            return folder
    return None


def versions(parent: Path) -> list[int]:
    """Return the N of the folders version_N that a name has, in no order."""
    if not parent.is_dir():
        return []
    matches = (re.fullmatch(r"version_(\d+)", child.name) for child in parent.iterdir())
    return [int(match[1]) for match in matches if match]
