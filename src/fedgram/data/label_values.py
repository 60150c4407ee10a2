"""From the values of a column of labels to the names of classes, or to scores; what is doubtful is refused.

Labels of a CSV or TSV file are text as written. They are taken for numbers only where all of them are whole numbers, or
where a regression was asked for. The labels of other sources have types, which count.
"""

import datetime
import math
import re
from collections.abc import Callable, Container, Iterable, Sequence
from decimal import Decimal
from functools import lru_cache
from numbers import Integral, Real
from typing import Any

import numpy as np

from fedgram.data.columns import Place, notice, short
from fedgram.errors import DataError

__all__ = ["Key", "is_number", "key_of", "listed", "names_among", "names_of_classes", "rows_where", "scores_of"]

Key = tuple[type, Any]
"""A label and its type: True, 1 and 1.0 are equal in Python."""

_NUMBER = re.compile(r"0|-?[1-9][0-9]*")
_CODE = re.compile(r"0[0-9]+")
_MISSING = frozenset(
    ("nan", "none", "null", "na", "n/a", "#n/a", "<na>", "nat", "nil", "-", "--", "?", ".", "missing", "undefined")
)
"""What programs and people write for a value that is missing, in lower case."""
_LARGEST_SCORE = float(np.finfo(np.float32).max)


def key_of(value: Any) -> Key:
    """Return a label with its type."""
    return type(value), value


def is_number(name: str) -> bool:
    """Say whether the name of a class is a whole number as it is usually written, which 01, +1 and 1.0 are not."""
    return _NUMBER.fullmatch(name) is not None


def listed(names: Iterable[Any], most: int = 10) -> str:
    """Show the first of some names.

    >>> listed(["a", "b", "c"], most=2)
    "'a', 'b', ..."
    """
    names = list(names)
    return ", ".join(short(name) for name in names[:most]) + (", ..." if len(names) > most else "")


def rows_where(labels: Sequence[Any], place: Place, condition: Callable[[Any], bool]) -> str:
    """Name the rows whose label is such, for a message."""
    return place.rows([row for row, label in enumerate(labels) if condition(label)])


def names_of_classes(labels: Sequence[Any], place: Place, typed: bool, permitted: int | None) -> dict[Key, str]:
    """Return the name of the class that each label of a column stands for.

    Args:
        labels: the column.
        place: where it comes from.
        typed: whether the source tells numbers from text.
        permitted: as many classes as were asked for, if a number was: so many different labels need no further check.

    Raises:
        DataError: if labels are missing, of several types, or such that what is a class is a guess; with the rows.
    """
    kind = _kind_of_all(labels, place)
    values = dict.fromkeys(labels)
    if kind == "number":
        return _names_of_numbers(labels, place)
    if kind != "text":
        return {key_of(value): str(value) for value in values}
    _check_blanks(labels, place)
    if typed or any(map(_CODE.fullmatch, values)):
        _check_missing_words(labels, place, lambda text: is_number(text) or _CODE.fullmatch(text) is not None)
        return {key_of(value): value for value in values}
    return _names_of_untyped(labels, place, permitted)


def names_among(labels: Sequence[Any], place: Place, typed: bool, known: Container[str]) -> dict[Key, str]:
    """Return the name of each label of a column, as the classes are known already: those of another split.

    Raises:
        DataError: if labels are missing, of several types, or have white space around them; with the rows.
    """
    kind = _kind_of_all(labels, place)
    values = {key_of(label): label for label in labels}
    if kind == "number":
        return {key: str(int(value) if _is_whole(value) else value) for key, value in values.items()}
    if kind != "text":
        return {key: str(value) for key, value in values.items()}
    _check_blanks(labels, place)
    return {key: text if typed or text in known else _usual(text) for key, text in values.items()}


def _usual(text: str) -> str:
    """Return a whole number as it is usually written, other text as it is."""
    number = _number(text)
    whole = number is not None and _is_whole(number) and not _CODE.fullmatch(text)
    return str(int(number)) if whole and number is not None else text


# --- what kinds of labels there are ---


def _kind_of_all(labels: Sequence[Any], place: Place) -> str:
    """Return the kind of all labels, of which none may be missing."""
    kinds: dict[Any, str] = {kind: _kind(kind) for kind in set(map(type, labels))}
    if type(None) in kinds:
        raise DataError(
            f"{rows_where(labels, place, lambda label: label is None)}: the label is missing; add it, or remove the row"
        )
    if "other" in kinds.values():
        row = next(row for row, label in enumerate(labels) if kinds[type(label)] == "other")
        raise DataError(
            f"{place.rows([row])}: label {short(labels[row])} is a {type(labels[row]).__name__}; expected a number,"
            " text or a truth value: choose another column as label, or convert it"
        )
    if len(set(kinds.values())) > 1:
        raise _mixed(labels, place, kinds)
    return next(iter(kinds.values()))


@lru_cache
def _kind(kind: Any) -> str:
    for known, name in (
        (str, "text"),
        ((bool, np.bool_), "truth value"),
        ((Real, Decimal), "number"),
        ((datetime.date, datetime.time), "date"),
    ):
        if issubclass(kind, known):
            return name
    return "other"


def _mixed(labels: Sequence[Any], place: Place, kinds: dict[type, str]) -> DataError:
    """Return the error for labels of several kinds, which names the rows of the rarer ones."""
    counts: dict[str, int] = {}
    for label in labels:
        counts[kinds[type(label)]] = counts.get(kinds[type(label)], 0) + 1
    usual = max(counts, key=lambda kind: counts[kind])
    odd = [row for row, label in enumerate(labels) if kinds[type(label)] != usual]
    example = next(row for row, label in enumerate(labels) if kinds[type(label)] == usual)
    return DataError(
        f"{place.rows(odd)}: label {short(labels[odd[0]])} is a {kinds[type(labels[odd[0]])]}, but"
        f" {short(labels[example])} in row {example + 1} and {counts[usual] - 1} others are of the kind {usual};"
        " write all labels in one way"
    )


# --- numbers that a source has as numbers ---


def _names_of_numbers(labels: Sequence[Any], place: Place) -> dict[Key, str]:
    """Return whole numbers as they are usually written: of 2.0 it is 2."""
    values = {key_of(label): label for label in labels}
    if any(value != value for value in values.values()):  # NaN
        rows = rows_where(labels, place, lambda label: label != label)
        raise DataError(f"{rows}: the label is missing (NaN); add it, or remove the row")
    odd = {key for key, value in values.items() if not _is_whole(value)}
    if odd:
        raise _not_whole(labels, place, lambda label: key_of(label) in odd)
    names = {key: str(int(value)) for key, value in values.items()}
    _check_writings(labels, place, names)
    return names


def _is_whole(value: Any) -> bool:
    return isinstance(value, Integral) or (math.isfinite(value) and value == int(value))


def _not_whole(labels: Sequence[Any], place: Place, condition: Callable[[Any], bool]) -> DataError:
    first = next(label for label in labels if condition(label))
    return DataError(
        f"{rows_where(labels, place, condition)}: label {short(first)} is not a whole number, as those of a"
        " classification must be; correct it, use names for all labels, or set num_labels to 1 for a regression"
    )


def _check_writings(labels: Sequence[Any], place: Place, names: dict[Key, str]) -> None:
    """Refuse a number that is written in several ways, such as 1 and 1.0."""
    writings: dict[str, Key] = {}
    for key, name in names.items():
        first = writings.setdefault(name, key)
        if first != key:
            rows = rows_where(labels, place, lambda label, key=key: key_of(label) == key)  # type: ignore[misc]
            raise DataError(
                f"{rows}: label {key[1]} is written {first[1]} elsewhere; write a number in one way if they are one"
                " class, else use names"
            )


# --- texts ---


def _check_blanks(labels: Sequence[str], place: Place) -> None:
    """Refuse labels that are blank, or that white space tells from others."""
    odd = [text for text in dict.fromkeys(labels) if text != text.strip() or not text]
    if not odd:
        return
    blank = [text for text in odd if not text.strip()]
    if blank:
        rows = rows_where(labels, place, lambda label: not label.strip())
        raise DataError(f"{rows}: the label is blank; add it, or remove the row")
    rows = rows_where(labels, place, lambda label: label != label.strip())
    raise DataError(f"{rows}: white space surrounds label {short(odd[0])}; remove it")


def _check_missing_words(labels: Sequence[str], place: Place, is_numeric: Callable[[str], bool]) -> None:
    """Refuse a word such as NaN among numbers, and point it out among other words."""
    values = dict.fromkeys(labels)
    words = [text for text in values if text.lower() in _MISSING]
    others = [text for text in values if text.lower() not in _MISSING]
    if not words or not others:
        return
    rows = rows_where(labels, place, lambda label: label.lower() in _MISSING)
    if all(map(is_numeric, others)):
        raise DataError(
            f"{rows}: label {short(words[0])} stands among numbers such as {others[0]}, as if it were missing;"
            " remove such rows, or give it a number of its own if it is a class"
        )
    notice(f"{rows}: label {short(words[0])} is a class like the others; remove such rows if it means a missing one")


def _names_of_untyped(labels: Sequence[str], place: Place, permitted: int | None) -> dict[Key, str]:
    """Return the names of labels that were read as text: whole numbers if all are, else the text itself."""
    numbers = {text: _number(text) for text in dict.fromkeys(labels)}
    words = [text for text, number in numbers.items() if number is None]
    if words:
        _check_missing_words(labels, place, lambda text: numbers[text] is not None)
        if len(words) < len(numbers):
            _check_words_among_numbers(labels, place, numbers, permitted)
        return {key_of(text): text for text in numbers}
    whole = {text: number for text, number in numbers.items() if number is not None and _is_whole(number)}
    if len(whole) < len(numbers):
        raise _not_whole(labels, place, lambda label: label not in whole)
    names = {key_of(text): _usual(text) for text in whole}
    _check_writings(labels, place, names)
    return names


def _number(text: str) -> float | None:
    """Return the number that a text is, as long as it is one without a doubt and can be told from its neighbours."""
    if is_number(text):
        return int(text) if len(text) < 300 else None
    try:
        number = float(text)
    except ValueError:
        return None
    certain = math.isfinite(number) and abs(number) < 2**53 and "_" not in text and text.isascii()
    return number if certain else None


def _check_words_among_numbers(
    labels: Sequence[str], place: Place, numbers: dict[str, float | None], permitted: int | None
) -> None:
    """Refuse words among numbers: those are classes, or one cell is wrong, and nothing here tells which."""
    if permitted == len(numbers):
        return
    words = [text for text, number in numbers.items() if number is None]
    count = sum(numbers[label] is None for label in labels)
    few_words = 2 * count <= len(labels)
    odd = words if few_words else [text for text, number in numbers.items() if number is not None]
    rows = rows_where(labels, place, lambda label: (numbers[label] is None) == few_words)
    usual, came = ("numbers", "is no number") if few_words else ("names", "is a number")
    raise DataError(
        f"{rows}: label {short(odd[0])} {came}, while the others are {usual}; correct the label, or if all are classes"
        f" set num_labels to {len(numbers)}: {listed(numbers)}"
    )


# --- scores ---


def scores_of(labels: Sequence[Any], place: Place) -> np.ndarray:
    """Return the targets of a regression, float64 ``(samples,)``.

    Raises:
        DataError: if one is no finite number; with the rows.
    """
    found = [_score(label) for label in labels]
    odd = [row for row, score in enumerate(found) if score is None]
    if odd:
        value = labels[odd[0]]
        came = "the label is missing" if value is None else f"label {short(value)} is not a finite number"
        raise DataError(
            f"{place.rows(odd)}: {came}, as num_labels: 1 (a regression) needs; correct it or remove the row, or set"
            " num_labels to the number of classes"
        )
    return np.array(found, np.float64)


def _score(label: Any) -> float | None:
    """Return a label as a number that float32 holds, None if it is none."""
    kind: Any = type(label)
    kind = _kind(kind)
    if kind not in ("number", "text") or (kind == "text" and "_" in label):
        return None
    try:
        score = float(label)
    except (ValueError, OverflowError):
        return None
    return score if abs(score) <= _LARGEST_SCORE else None
