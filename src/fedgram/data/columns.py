"""The samples of one split by column, and how messages name a row among them."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

from lightning.fabric.utilities.rank_zero import rank_zero_only

from fedgram.errors import DataError

__all__ = ["Columns", "Place", "check_columns", "check_texts", "may_be_unlabelled", "notice", "short"]

logger = logging.getLogger(__name__)

_SHOWN = 5
"""As many rows as a message names of those that it is about."""


@lru_cache(maxsize=256)  # a split is read by prepare_data and again by setup
def notice(message: str, level: int = logging.WARNING) -> None:
    """Log one line about a file that is read all the same, once and in one process only."""
    if getattr(rank_zero_only, "rank", 0) == 0:
        logger.log(level, "%s", message)


def may_be_unlabelled(split: str) -> bool:
    """Say whether a split is a test split, or a further part of one such as ``test_mismatched``."""
    return split.partition("_")[0] == "test"


@dataclass(frozen=True)
class Place:
    """Where samples come from, for messages.

    Args:
        split: the name of the split.
        file: the file that it was read from, if there is one.
        lines: the line of the file at which each sample begins, counted from 1; None where it has no lines.

    >>> print(Place("train", "a.csv", [2, 3, 4]).rows([1, 2]))
    train split (a.csv), rows 2, 3 (counted from 1 without the header; lines 3, 4)
    """

    split: str
    file: str | None = None
    lines: Sequence[int] | None = None

    def __str__(self) -> str:
        return f"{self.split} split" + (f" ({self.file})" if self.file else "")

    def rows(self, rows: Sequence[int]) -> str:
        """Name rows, given by their indices from 0: all of a few, else the first few and how many there are."""
        shown, more = rows[:_SHOWN], ", ..." if len(rows) > _SHOWN else ""
        noun = "row" if len(rows) == 1 else "rows" if not more else f"{len(rows)} rows:"
        numbers = ", ".join(str(row + 1) for row in shown) + more
        return f"{self}, {noun} {numbers} (counted from 1{self._lines_of(shown, more)})"

    def _lines_of(self, rows: Sequence[int], more: str) -> str:
        if self.lines is None:
            return ""
        header = " without the header" if self.lines[0] > 1 else ""
        return f"{header}; line{'s' * (len(rows) > 1)} {', '.join(str(self.lines[row]) for row in rows)}{more}"


@dataclass(frozen=True, eq=False)
class Columns:
    """The samples of one split, as a source gives them.

    ``columns[name]`` is the list of a column's values, of which a missing one is None.

    Args:
        column_names: in their order.
        size: how many samples there are.
        load: returns the values of a column.
        file: the name of the file that they come from, if there is one.
        lines: the line of the file at which each sample begins, counted from 1.
        typed: whether the source tells numbers from text; of a CSV or TSV file all values are text.
        class_names: the names of classes 0, 1, ... in the columns whose values are such numbers, as the source has it.
    """

    column_names: Sequence[str]
    size: int
    load: Callable[[str], list[Any]]
    file: str | None = None
    lines: Sequence[int] | None = None
    typed: bool = True
    class_names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, name: str) -> list[Any]:
        return self.load(name)

    def shown(self, name: str, rows: Sequence[int]) -> list[Any]:
        """Return some values of a column, classes by their names, as a table for people has them."""
        values, names = self[name], self.class_names.get(name)
        chosen = [values[row] for row in rows]
        if names is None:
            return chosen
        return [names[value] if type(value) is int and 0 <= value < len(names) else value for value in chosen]

    def place(self, split: str) -> Place:
        """Say where the samples of a split come from."""
        return Place(split, self.file, self.lines)

    def renamed(self, names: Mapping[str, str]) -> "Columns":
        """Return the samples with other names for some columns, as new names by old."""
        old = {names.get(name, name): name for name in self.column_names}
        load = self.load
        new = [names.get(name, name) for name in self.column_names]
        return replace(self, column_names=new, load=lambda name: load(old[name]))

    def without_header(self, names: Sequence[str]) -> "Columns":
        """Return the samples of a file that has no header, so that its first sample was taken for one."""
        old = dict(zip(names, self.column_names, strict=True))
        lines = None if self.lines is None else [1, *self.lines]
        first_row = {name: cell or None for name, cell in old.items()}
        load = self.load
        return replace(
            self,
            column_names=list(names),
            size=self.size + 1,
            load=lambda name: [first_row[name], *load(old[name])],
            lines=lines,
        )


def check_columns(columns: Columns, needed: Sequence[str], split: str, remedy: str) -> None:
    """Refuse a split without samples, or without columns that it must have.

    Args:
        columns: the split.
        needed: the names of the columns.
        split: its name, for messages.
        remedy: what to do where columns are missing.

    Raises:
        DataError: if there is no sample, or no such column, or two of one name.
    """
    names = list(columns.column_names)
    missing = [column for column in needed if column not in names]
    if missing:
        raise DataError(
            f"the {columns.place(split)} has no column {', '.join(map(repr, missing))}; it has"
            f" {', '.join(map(repr, names))}: {remedy}{_separated_otherwise(columns)}"
        )
    twice = [column for column in needed if names.count(column) > 1]
    if twice:
        raise DataError(f"the {columns.place(split)} has several columns {twice[0]!r}; rename all but one")
    if not len(columns):
        raise DataError(f"the {columns.place(split)} is empty; give it samples, or leave it out")


def _separated_otherwise(columns: Columns) -> str:
    """Point out a file of one column whose header holds what else may separate columns."""
    if len(columns.column_names) != 1 or columns.typed:
        return ""
    signs = {";": "semicolons", "\t": "tabs", ",": "commas"}
    found = [name for sign, name in signs.items() if sign in columns.column_names[0]]
    return f" (columns seem to be separated by {found[0]}: .csv needs commas, .tsv tabs)" if found else ""


def check_texts(values: list[Any], column: str, place: Place | str) -> list[str]:
    """Return the values of a column, of which each must be a string; blank ones are logged.

    Args:
        values: the column.
        column: its name.
        place: where it comes from, or the name of the split.

    Raises:
        DataError: if one is not; with its row.
    """
    place = Place(place) if isinstance(place, str) else place
    for row, value in enumerate(values):
        if not isinstance(value, str):
            came = "is missing" if value is None or value != value else f"is {short(value)}, not a string"
            raise DataError(f"{place.rows([row])}: {column!r} {came}; fill it in or remove the row")
        if not value.isascii() and not _is_unicode(value):
            raise DataError(
                f"{place.rows([row])}: {column!r} holds half of a surrogate pair, which is no character;"
                " correct it or remove the row"
            )
    if blank := [row for row, value in enumerate(values) if not value or value.isspace()]:
        notice(
            f"{place.rows(blank)}: {column!r} is blank, and a sample like the others; remove such rows if it is none"
        )
    return list(values)


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def short(value: Any) -> str:
    """Return how a value is written, cut to a length that a message can hold."""
    shown = repr(value)
    return shown if len(shown) <= 60 else shown[:57] + "..."
