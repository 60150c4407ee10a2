"""What a run's model scores on a split: kept in the run's folder by test and validate, and read by comparisons.

The result of a split after a round is one file, ``results/SPLIT_round_NNNNNN.json``, which a repeated evaluation
replaces. ``best`` and ``last`` are rounds, which summary.json names, so that a run that goes on has its former results.
"""

import json
import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fedgram.errors import LockedError, OutputError
from fedgram.runs.folder import RunFolder, run_of
from fedgram.runs.lock import FolderLock

__all__ = ["Result", "keep_result", "read_result"]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Result:
    """What a model scores on a split.

    Attributes:
        split: the split, with its further parts, such as MNLI's validation_mismatched.
        round: the round after which the model was saved.
        checkpoint: the file that it was saved in.
        task: what the data is called.
        metrics: the loss and the metrics, those of further parts with a suffix; nan where one is undefined.
        samples: how many samples each part has.
        personal_evaluation: how the models of clients were judged; None where there is one model.
        split_fingerprint: a digest of the samples: results of others are not to be compared.
    """

    split: str
    round: int
    checkpoint: str
    task: str
    metrics: Mapping[str, float]
    samples: Mapping[str, int]
    personal_evaluation: str | None
    split_fingerprint: str


def keep_result(checkpoint: Path, result: Result) -> Path | None:
    """Write a result into the folder of the run that a checkpoint lies in, and log where it is, or why it is nowhere.

    Args:
        checkpoint: the file of the model.
        result: what it scores.

    Returns:
        The file that was written; None where the checkpoint lies in no run's folder, where another process is at the
        run, or where the system refuses to write.
    """
    folder = run_of(checkpoint)
    if folder is None:
        log.info("the result is not kept: %s lies in no run's folder", checkpoint)
        return None
    own = RunFolder(folder)
    path = own.result(result.split, result.round)
    try:
        lock = FolderLock.take(folder)
        if lock is None:
            raise LockedError(f"another process is at this run: {folder}; repeat the command when it has ended")
        try:
            own.write_json(str(path.relative_to(folder)), asdict(result))
        finally:
            lock.close()
    except (LockedError, OutputError) as error:
        log.warning("the result is not kept with the run: %s", error)
        return None
    log.info("kept in %s, where fedgram compare --split %s reads it", path, result.split)
    return path


def read_result(folder: Path, split: str, round_number: int) -> Result | None:
    """Return the result of a split after a round; None if there is none.

    Args:
        folder: the run's.
        split: such as test.
        round_number: the round.

    Raises:
        ValueError: the file is no result of that split and round, with what is wrong.
        OSError: it can't be read.
    """
    path = RunFolder(folder).result(split, round_number)
    if not path.exists():
        return None
    found = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(found, dict):
        raise ValueError(f"{path.name} holds no object")
    for key, (expected, fits) in _FIELDS.items():
        if key not in found or not fits(found[key]):
            raise ValueError(f"{key} of {path.name} should be {expected}, and is {json.dumps(found.get(key))[:40]}")
    if (found["split"], found["round"]) != (split, round_number):
        raise ValueError(f"{path.name} is of the {found['split']} split after round {found['round']}")
    metrics = {key: math.nan if value is None else float(value) for key, value in found["metrics"].items()}
    return Result(**{key: found[key] for key in _FIELDS} | {"metrics": metrics})


def _is_figure(value: Any) -> bool:
    return value is None or isinstance(value, float) or (isinstance(value, int) and abs(value) < 2**62)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**62


_FIELDS: Mapping[str, tuple[str, Callable[[Any], bool]]] = {
    **dict.fromkeys(
        ("split", "checkpoint", "task", "split_fingerprint"), ("a text", lambda value: isinstance(value, str))
    ),
    "round": ("a whole number", _is_count),
    "metrics": (
        "an object of numbers",
        lambda value: isinstance(value, dict) and all(map(_is_figure, value.values())),
    ),
    "samples": (
        "an object of whole numbers",
        lambda value: isinstance(value, dict) and all(map(_is_count, value.values())),
    ),
    "personal_evaluation": ("null, own or all", lambda value: value in (None, "own", "all")),
}
"""What each entry of a file must be."""
