"""Which columns of tables are shown, in which order their rows stand, and what is the best of each column."""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from fedgram.comparison.statistics import best
from fedgram.comparison.tables import Cell, Column, Table
from fedgram.errors import ConfigurationError

__all__ = ["embolden", "leading", "select"]


def select(tables: Sequence[Table], columns: str | None = None, sort: str | None = None) -> list[Table]:
    """Return tables with some of their columns, and with their rows sorted.

    Args:
        tables: the tables, of which some may lack a column that others have.
        columns: the keys of columns, in order, with commas between them; all by default.
        sort: the key of the column that rows are sorted by, from the lowest on, or behind a minus from the highest on.

    Raises:
        ConfigurationError: no table has such a column.
    """
    found = list(tables)
    if sort is not None:
        key = sort.removeprefix("-")
        _check([key], "sort", tables)
        found = [_sorted(table, key, sort.startswith("-")) for table in found]
    if columns is not None:
        keys = [key.strip() for key in columns.split(",")]
        _check(keys, "columns", tables)
        found = [_with_columns(table, keys) for table in found]
    return found


def _check(keys: Sequence[str], option: str, tables: Sequence[Table]) -> None:
    known = list(dict.fromkeys(column.keys[0] for table in tables for column in table.columns))
    for key in keys:
        if all(_index(table, key) is None for table in tables):
            from fedgram.option_errors import nearest  # which imports jsonargparse

            question, names = nearest(key, known) if key else ".", ", ".join(known)
            raise ConfigurationError(f"--{option} {key!r}: there is no such column{question} There are {names}")


def _index(table: Table, key: str) -> int | None:
    """Return where a column stands; None where a table has none of that key."""
    return next((index for index, column in enumerate(table.columns) if key in column.keys), None)


def _sorted(table: Table, key: str, descending: bool) -> Table:
    """Return a table with its rows by a column: those without a figure last, and equal ones in their order."""
    index = _index(table, key)
    if index is None:
        return table
    known = [row for row in table.rows if not _is_unknown(row[index])]
    unknown = [row for row in table.rows if _is_unknown(row[index])]
    known.sort(key=lambda row: _order(row[index]), reverse=descending)
    return replace(table, rows=(*known, *unknown))


def _order(cell: Cell) -> tuple[str, float]:
    return (cell.value, 0.0) if isinstance(cell.value, str) else ("", cell.value)


def _is_unknown(cell: Cell) -> bool:
    return isinstance(cell.value, float) and math.isnan(cell.value)


def _with_columns(table: Table, keys: Sequence[str]) -> Table:
    """Return a table with the columns of some keys, none of which a narrow terminal leaves out."""
    chosen = [index for key in keys if (index := _index(table, key)) is not None]
    columns = tuple(replace(table.columns[index], rank=0) for index in chosen)
    return replace(table, columns=columns, rows=tuple(tuple(row[index] for index in chosen) for row in table.rows))


def embolden(table: Table, racing: Sequence[bool]) -> Table:
    """Return a table with the best cells of each column in bold, where there are worse ones.

    Cells are equally good where readers see the same figure.

    Args:
        table: the table.
        racing: which rows may be the best.
    """
    bold = [_best([row[index] for row in table.rows], column, racing) for index, column in enumerate(table.columns)]
    rows = (
        tuple(replace(cell, bold=number in bold[index]) for index, cell in enumerate(row))
        for number, row in enumerate(table.rows)
    )
    return replace(table, rows=tuple(rows))


def _best(cells: Sequence[Cell], column: Column, racing: Sequence[bool]) -> frozenset[int]:
    """Return where the best of a column's cells stand; nowhere if the column has no best."""
    if column.best is None:
        return frozenset()
    values = [float(cell.value) if races else np.nan for cell, races in zip(cells, racing, strict=True)]
    return leading(values, [cell.shown or cell.text for cell in cells], column.best == "lowest")


def leading(values: Sequence[float], shown: Sequence[str], lowest: bool) -> frozenset[int]:
    """Return where the best values stand if there are worse ones, with those that are shown alike; nan is none.

    Args:
        values: the values.
        shown: as readers see them.
        lowest: whether the lowest is the best, as of costs.

    >>> sorted(leading([0.501, 0.7001, 0.7002], ["0.50", "0.70", "0.70"], lowest=False))
    [1, 2]
    >>> sorted(leading([0.7001, 0.7002], ["0.70", "0.70"], lowest=False))
    []
    """
    known = [index for index, value in enumerate(values) if not np.isnan(value)]
    tops = {shown[index] for index in best(values, lowest)}
    found = frozenset(index for index in known if shown[index] in tops)
    return found if len(found) < len(known) else frozenset()
