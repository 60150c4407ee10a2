"""What the labels of a task are called, and how those of a data set become numbers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from fedgram.data.columns import Place, may_be_unlabelled, notice
from fedgram.data.label_values import (
    Key,
    is_number,
    key_of,
    listed,
    names_among,
    names_of_classes,
    rows_where,
    scores_of,
)
from fedgram.data.reading import RawSplit
from fedgram.errors import DataError

__all__ = ["MOST_CLASSES", "LabelScheme"]

MOST_CLASSES = 1000
"""More different labels are taken for classes only where num_labels says so."""
_FEW_CLASSES = 20
"""As many may be classes even if most of them occur once."""


@dataclass(frozen=True)
class LabelScheme:
    """The labels of a task, as the training split shows them.

    Args:
        kind: ``class`` for a classification, ``score`` for a regression.
        names: one name for each class; ``("score",)`` for a regression.
        are_positions: whether a number that is no name stands for the class at this position, counted from 0: the names
            are those of a source that stores such numbers.
    """

    kind: Literal["class", "score"]
    names: tuple[str, ...]
    are_positions: bool = False

    @classmethod
    def of(cls, train: RawSplit, num_labels: int | None) -> "LabelScheme":
        """Find the labels of a task.

        Classes are those that the source has names for, else the different labels that occur: in the order of numbers
        where all are numbers, else in that of text.

        Args:
            train: the training split.
            num_labels: how many labels there are, of which some need not occur where they are numbers; None to find
                out; 1 for a regression.

        Raises:
            DataError: if the labels are no classes, or there is only one, or there are not ``num_labels`` of them.
        """
        if num_labels == 1:
            return cls("score", ("score",))
        place = _place_of(train, "train")
        if train.label_names:
            names = _distinct(train.label_names, place)
        else:
            names = _found_names(_labels_of(train, place), place, train.typed, num_labels)
        if len(names) < 2:
            raise DataError(
                f"the {place} has the single label {names[0]!r}, which leaves nothing to learn;"
                " set num_labels if others may occur, or to 1 for a regression"
            )
        if num_labels not in (None, len(names)):
            raise DataError(
                f"num_labels is {num_labels}, but the {place} has the {len(names)} labels {listed(names)}; set"
                f" num_labels to {len(names)}, or leave it out"
            )
        _mention_lookalikes(names, place)
        return cls("class", names, bool(train.label_names))

    def encode(self, raw: RawSplit, split: str) -> np.ndarray:
        """Turn the labels of a split into numbers: int64 ``(samples,)``, or float64 for a regression.

        A test split may be unlabelled: no labels, or none but missing ones and -1. Its labels are -1 then (NaN for a
        regression).

        Raises:
            DataError: if a label is missing, or is not one of the task; with its row.
        """
        if may_be_unlabelled(split) and (raw.labels is None or all(value in _UNLABELLED for value in raw.labels)):
            return np.full(len(raw), np.nan) if self.kind == "score" else np.full(len(raw), -1, np.int64)
        place = _place_of(raw, split)
        labels = _labels_of(raw, place)
        if raw.label_names:
            labels = _by_name(labels, raw.label_names, place)
        if self.kind == "score":
            return _scores(labels, place)
        positions = self._positions(labels, raw, place)
        return np.array([positions[key_of(label)] for label in labels], np.int64)

    def _positions(self, labels: Sequence[Any], raw: RawSplit, place: Place) -> dict[Key, int]:
        """Return the number of the class of each label that occurs."""
        numbers = {name: position for position, name in enumerate(self.names)}
        if not raw.label_names and self.are_positions and not any(map(is_number, self.names)):
            numbers = {str(position): position for position in range(len(self.names))} | numbers
        names = names_among(labels, place, raw.typed or bool(raw.label_names), numbers)
        unknown = {key for key, name in names.items() if name not in numbers}
        if unknown:
            rows = rows_where(labels, place, lambda label: key_of(label) in unknown)
            first = next(label for label in labels if key_of(label) in unknown)
            raise DataError(
                f"{rows}: label {first!r} does not occur in the train split, whose labels are {listed(self.names)};"
                " correct it, add such samples to the train split, or remove the rows"
            )
        return {key: numbers[name] for key, name in names.items()}


_UNLABELLED = (None, -1, "-1", "-1.0")


def _place_of(raw: RawSplit, split: str) -> Place:
    return raw.place or Place(split)


def _labels_of(raw: RawSplit, place: Place) -> list[Any]:
    if raw.labels is None:
        raise DataError(f"the {place} has no labels; only a test split may be without")
    return raw.labels


def _distinct(names: tuple[str, ...], place: Place) -> tuple[str, ...]:
    if len(set(names)) < len(names):
        raise DataError(f"the {place} has several classes of one name among {listed(names)}; name each differently")
    return names


def _by_name(labels: list[Any], names: tuple[str, ...], place: Place) -> list[Any]:
    """Put the names of classes in the place of their numbers, in a split whose source has names.

    A label that is a name already stays. Whatever else is there is refused: -1 is that of a sample without a label.
    """
    known: dict[Key, str] = {key_of(name): name for name in names}
    if not any(map(is_number, names)):  # text that is a number is a position, unless it may be a name
        known |= {key_of(str(position)): name for position, name in enumerate(names)}
    known |= {key_of(position): name for position, name in enumerate(names)}
    keys = [key_of(_plain(label)) for label in labels]
    odd = [row for row, key in enumerate(keys) if key not in known]
    if odd:
        value = labels[odd[0]]
        came = "the label is missing" if value in _UNLABELLED else f"label {value!r} is none of the classes"
        raise DataError(
            f"{place.rows(odd)}: {came}; expected 0..{len(names) - 1} or one of {listed(names)}:"
            " correct it, or remove the row"
        )
    return [known[key] for key in keys]


def _plain(label: Any) -> Any:
    """Return a number of any type as an int if it is whole."""
    whole = isinstance(label, int | float | np.integer) and type(label) is not bool and label == label // 1
    return int(label) if whole else label


def _found_names(labels: list[Any], place: Place, typed: bool, num_labels: int | None) -> tuple[str, ...]:
    """Return the names of the classes that occur, and with ``num_labels`` of numbered ones that do not."""
    found = set(names_of_classes(labels, place, typed, num_labels).values())
    if all(map(is_number, found)):
        numbers = sorted(map(int, found))
        _check_unlabelled(labels, numbers, place, num_labels)
        return tuple(map(str, _filled_up(numbers, num_labels, place)))
    if num_labels == 2 and found <= {"True", "False"}:
        return ("False", "True")
    _check_count(sorted(found), labels, place, num_labels)
    return tuple(sorted(found))


def _filled_up(numbers: list[int], count: int | None, place: Place) -> Sequence[int]:
    """Return the numbers of classes, with those up to a count that do not occur."""
    if count is None or len(numbers) == count:
        return numbers
    if len(numbers) < count:
        for start in (0, 1):
            if start <= numbers[0] and numbers[-1] < start + count:
                return range(start, start + count)
    raise DataError(
        f"num_labels is {count}, but the {place} has the {len(numbers)} labels {listed(numbers)}, which are neither"
        f" within 0..{count - 1} nor within 1..{count}; set num_labels to {len(numbers)}, or leave it out"
    )


def _check_unlabelled(labels: list[Any], numbers: list[int], place: Place, num_labels: int | None) -> None:
    """Refuse -1 beside classes that are numbered from 0 or above: many data sets mark samples without a label so."""
    ambiguous = numbers[0] == -1 and len(numbers) > 2 and num_labels != len(numbers)
    if ambiguous:
        raise DataError(
            f"{rows_where(labels, place, lambda label: float(label) == -1)}: label -1 stands beside"
            f" {listed(numbers[1:])}, as of a sample without a label; remove such rows, or if it is a class set"
            f" num_labels to {len(numbers)}"
        )
    _check_count(numbers, labels, place, num_labels)


def _check_count(names: Sequence[Any], labels: list[Any], place: Place, num_labels: int | None) -> None:
    """Refuse more different labels than classes there may be: an id, a time or free text."""
    several = len(names) > _FEW_CLASSES and 2 * len(names) > len(labels)
    if num_labels is None and (len(names) > MOST_CLASSES or several):
        raise DataError(
            f"the {place} has {len(names)} different labels in {len(labels)} rows, such as {listed(names, 3)}; choose"
            f" the column of the classes as label, set num_labels to {len(names)} if these are classes, or to 1 for a"
            " regression"
        )


def _mention_lookalikes(names: Sequence[str], place: Place) -> None:
    """Log classes that differ in the case of letters alone, or are one number as codes and as numbers."""
    seen: dict[str, str] = {}
    for name in names:
        first = seen.setdefault(name.casefold().lstrip("0") or "0", name)
        if first != name:
            notice(f"{place}: {first!r} and {name!r} are two classes; write the label in one way if they are one")
            return


def _scores(labels: list[Any], place: Place) -> np.ndarray:
    scores = scores_of(labels, place)
    if len(scores) > 1 and (scores == scores[0]).all():
        notice(f"{place}: all {len(scores)} scores are {scores[0]:g}, so that no correlation with them is defined")
    return scores
