"""The classes of data as a run has them, which its model answers with, whatever order the data has them in."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from fedgram.data.label_values import listed
from fedgram.errors import DataError

__all__ = ["places_of", "renumber"]


def renumber(data: Any, classes: Sequence[str]) -> str:
    """Number the classes of data as they are in a list, which may have more than the data; return what was changed.

    Args:
        data: a `fedgram.data.FederatedData` after its `setup`, with `label_names` if it has classes.
        classes: the names of the classes, in the order of their numbers.

    Raises:
        DataError: the data has a class that is not in the list, or no classes at all.
    """
    names = _classes_of(data)
    if names == list(classes):
        return ""
    places = places_of(names, classes)
    if places is None:
        raise DataError(
            f"the model was trained for the classes {listed(classes)}, and the data has {listed(names) or 'none'}; "
            "give data whose classes have those names, or the --ckpt_path of another run"
        )
    numbers = np.array(places, np.int64)
    for split, table in data.tables.items():
        labels = np.asarray(table.labels)
        data.tables[split] = replace(table, labels=np.where(labels < 0, labels, numbers[labels]))
    data.label_names, data.group_names = list(classes), list(classes)
    return f"the classes of the data, {listed(names)}, are numbered as the model's: {listed(classes)}"


def _classes_of(data: Any) -> list[str]:
    """Return the names of the data's classes; none for a regression, and for a task without classes."""
    names = list(getattr(data, "label_names", []))
    return names if len(names) > 1 else []


def places_of(names: Sequence[str], classes: Sequence[str]) -> list[int] | None:
    """Return where each name stands among the classes; None where one is missing, or there are no names.

    Names that differ in case or surrounding spaces alone are one, unless that makes two of a side alike.

    >>> places_of(["Good", "bad"], ["bad", "fair", "good"]), places_of(["good", "ugly"], ["bad", "good"])
    ([2, 0], None)
    """
    for spelt in (list, _folded):
        ours, theirs = spelt(names), spelt(classes)
        if ours and len(set(ours)) == len(ours) and len(set(theirs)) == len(theirs) and set(ours) <= set(theirs):
            return [theirs.index(name) for name in ours]
    return None


def _folded(names: Sequence[str]) -> list[str]:
    return [name.strip().casefold() for name in names]
