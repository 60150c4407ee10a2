"""The files of a finished run as they are read: whether summary.json says what it should, and tables of figures."""

import csv
import json
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from fedgram.errors import DataError

__all__ = ["read_columns", "read_summary", "undamaged"]

_NEEDED = ("method", "task", "seed", "final")
"""What summary.json must say at least."""


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_count(value: Any) -> bool:
    return _is_figure(value) and value >= 0


def _is_figure(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and _fits(value)


def _fits(value: float) -> bool:
    """Say whether a number of JSON, which may have any number of digits, is one that can be computed with."""
    try:
        float(value)
    except OverflowError:
        return False
    return True


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value)


def _are_metrics(value: Any) -> bool:
    return isinstance(value, dict) and all(figure is None or _is_figure(figure) for figure in value.values())


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _are_versions(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(item, str) for item in value.values())


def _are_settings(value: Any) -> bool:
    return isinstance(value, dict) and all(
        key not in value or (_is_figure(value[key]) and value[key] > 0)
        for key in ("trainer.clients", "trainer.participation")
    )


_Check = tuple[str, Callable[[Any], bool]]
_TEXT: _Check = ("a text", _is_text)
_WHOLE: _Check = ("a whole number", _is_whole)
_COUNT: _Check = ("a number of at least 0", _is_count)
_METRICS: _Check = ("an object of numbers", _are_metrics)
_FIELDS: Mapping[str, _Check] = {
    **dict.fromkeys(("method", "task"), _TEXT),
    **dict.fromkeys(("seed", "rounds"), _WHOLE),
    **dict.fromkeys(("initial", "final"), _METRICS),
}
"""What each field of summary.json must be."""
_OPTIONAL: Mapping[str, _Check] = {
    **dict.fromkeys(("backbone", "personal_evaluation", "git_commit", "data_fingerprint"), _TEXT),
    **dict.fromkeys(("stopped", "stopping", "monitor"), _TEXT),
    "planned_rounds": _WHOLE,
    **dict.fromkeys(("parameters_up", "parameters_down", "bytes_up", "bytes_down", "client_flops"), _COUNT),
    **dict.fromkeys(("server_flops", "evaluated_samples", "seconds", "seconds_training", "peak_megabytes"), _COUNT),
    "best": _METRICS,
    "settings": ("an object with numbers for trainer.clients and trainer.participation", _are_settings),
    "devices": ("a list of texts", _are_texts),
    "versions": ("an object of texts", _are_versions),
}
"""What each of these must be where it is not null."""


@contextmanager
def undamaged(folder: Path) -> Iterator[None]:
    """Turn whatever reading damaged files of a run raises into one line that names its folder.

    Raises:
        DataError: a file is damaged, or can't be read.
    """
    try:
        yield
    except DataError:
        raise
    except (OSError, ValueError, TypeError, LookupError, RecursionError, OverflowError, csv.Error) as error:
        raise DataError(f"{folder} is damaged ({error}); run it again, or leave its folder out") from error


def read_summary(file: Path) -> dict[str, Any]:
    """Return what summary.json says.

    Raises:
        ValueError: it is no JSON, or what it says is not what a summary says; with the field.
    """
    found = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(found, dict):
        raise ValueError(f"{file.name} holds {_shown(found)} instead of an object")
    if missing := [key for key in _NEEDED if key not in found]:
        raise ValueError(f"{file.name} does not say {', '.join(missing)}")
    for key, (expected, fits) in {**_FIELDS, **_OPTIONAL}.items():
        is_absent = key not in found or (key in _OPTIONAL and found[key] is None)
        if not is_absent and not fits(found[key]):
            raise ValueError(f"{key} of {file.name} should be {expected}, and is {_shown(found[key])}")
    return found


def _shown(value: Any, most: int = 40) -> str:
    """Return how a value is written in JSON, cut to what a message can hold."""
    text = json.dumps(value, default=str)
    return text if len(text) <= most else f"{text[:most]}..."


def read_columns(file: Path) -> dict[str, np.ndarray]:
    """Return the columns of a table of figures, float64; nan for an empty cell.

    Raises:
        ValueError: a cell is no figure, or a row has more or fewer cells than the header.
    """
    with file.open(newline="", encoding="utf-8") as lines:
        header, *rows = [row for row in csv.reader(lines) if row] or [[]]
    for number, row in enumerate(rows, 1):
        if len(row) != len(header):
            raise ValueError(f"row {number} of {file.name} has {len(row)} cells, and the header {len(header)}")
    cells = zip(*rows, strict=True) if rows else [()] * len(header)
    return {
        name: np.array([float(cell or math.nan) for cell in column], np.float64)
        for name, column in zip(header, cells, strict=True)
    }
