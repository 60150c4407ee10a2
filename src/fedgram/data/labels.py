"""What the labels of a task are called, and how those of a data set become numbers."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from fedgram.data.reading import RawSplit, may_be_unlabelled
from fedgram.errors import DataError

__all__ = ["LabelScheme"]


@dataclass(frozen=True)
class LabelScheme:
    """The labels of a task, as the training split shows them.

    Args:
        kind: ``index`` for classes numbered from 0, ``name`` for classes given by name, ``score`` for a regression.
        names: one name for each class; ``("score",)`` for a regression.
    """

    kind: Literal["index", "name", "score"]
    names: tuple[str, ...]

    @classmethod
    def of(cls, train: RawSplit, num_labels: int | None) -> "LabelScheme":
        """Find the labels of a task.

        Names come from the source where it has them, else from the sorted set of the strings or truth values that
        occur; numbers name themselves.

        Args:
            train: the training split.
            num_labels: how many labels there are; None to find out; 1 for a regression.

        Raises:
            DataError: if the labels are no classes, or there is only one, or there are not ``num_labels`` of them.
        """
        if num_labels == 1:
            return cls("score", ("score",))
        values = _labelled(train, "train")
        if any(isinstance(value, str | bool) for value in values):
            names = train.label_names or tuple(sorted({str(value) for value in values}))
            scheme = cls("name", names)
        else:
            largest = max(_integer(value, row, "train") for row, value in enumerate(values))
            scheme = cls("index", train.label_names or tuple(map(str, range(num_labels or max(0, largest) + 1))))
        if len(scheme.names) < 2:
            raise DataError(
                f"the train split has the single label {scheme.names[0]!r}, which leaves nothing to learn;"
                " set num_labels if others may occur, or to 1 for a regression"
            )
        if num_labels is not None and num_labels != len(scheme.names):
            raise DataError(
                f"num_labels is {num_labels}, but the train split has the {len(scheme.names)} labels"
                f" {_listed(scheme.names)}; set num_labels to {len(scheme.names)}, or leave it out"
            )
        return scheme

    def encode(self, raw: RawSplit, split: str) -> np.ndarray:
        """Turn the labels of a split into numbers: int64 ``(samples,)``, or float64 for a regression.

        A test split may be unlabelled: no labels, or none but missing ones and -1. Its labels are -1 then (NaN for a
        regression).

        Raises:
            DataError: if a label is missing, or is not one of the task; with its row.
        """
        if may_be_unlabelled(split) and (raw.labels is None or all(value in (None, -1) for value in raw.labels)):
            return self._unlabelled(len(raw))
        values = _labelled(raw, split)
        if self.kind == "score":
            return np.array([_score(value, row, split) for row, value in enumerate(values)], np.float64)
        if self.kind == "index":
            return np.array([self._index(value, row, split) for row, value in enumerate(values)], np.int64)
        positions = {name: position for position, name in enumerate(self.names)}
        return np.array([self._position(value, row, split, positions) for row, value in enumerate(values)], np.int64)

    def _unlabelled(self, samples: int) -> np.ndarray:
        return np.full(samples, np.nan) if self.kind == "score" else np.full(samples, -1, np.int64)

    def _index(self, value: Any, row: int, split: str) -> int:
        index = _integer(value, row, split)
        if not 0 <= index < len(self.names):
            raise DataError(
                f"{_where(row, split)}: label {index} lies outside the allowed range 0..{len(self.names) - 1};"
                " number the labels from 0 and remove unlabelled rows, or set num_labels to the number of classes"
            )
        return index

    def _position(self, value: Any, row: int, split: str, positions: dict[str, int]) -> int:
        if str(value) not in positions:
            raise DataError(
                f"{_where(row, split)}: label {value!r} does not occur in the train split, whose labels are"
                f" {_listed(self.names)}; correct it, or add such samples to the train split"
            )
        return positions[str(value)]


def _where(row: int, split: str) -> str:
    return f"{split} split, row {row} (counted from 0)"


def _listed(names: tuple[str, ...]) -> str:
    return ", ".join(map(repr, names[:10])) + (", ..." if len(names) > 10 else "")


def _labelled(raw: RawSplit, split: str) -> list[Any]:
    """Return the labels, of which none may be missing."""
    if raw.labels is None:
        raise DataError(f"the {split} split has no labels; only a test split may be without")
    if None in raw.labels:
        raise DataError(f"{_where(raw.labels.index(None), split)}: the label is missing; add it or remove the row")
    return raw.labels


def _integer(value: Any, row: int, split: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value // 1:
        raise DataError(
            f"{_where(row, split)}: label {value!r} is not a whole number, as those of a classification numbered from 0"
            " must be; correct it, use names for all labels, or set num_labels to 1 for a regression"
        )
    return int(value)


def _score(value: Any, row: int, split: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not np.isfinite(value):
        raise DataError(
            f"{_where(row, split)}: label {value!r} is not a finite number, as num_labels: 1 (a regression) needs;"
            " correct it, or set num_labels to the number of classes"
        )
    return float(value)
