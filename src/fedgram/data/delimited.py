"""CSV and TSV files: rows of fields, all of them text.

A CSV file has quotes as RFC 4180 has them. A TSV file has none, as the files of GLUE: its ``"`` are characters. One
that was evidently written with quotes nevertheless, as pandas does, is read with them, and that is logged.
"""

import csv
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from fedgram.data.columns import Columns, notice
from fedgram.data.files import cannot_read, text_lines
from fedgram.errors import DataError

__all__ = ["read_delimited"]

_QUOTED = re.compile(r'"(?:[^"]|"")*"', re.DOTALL)
_LINE_END = re.compile(r"\r\n|\r|\n")


@dataclass(frozen=True)
class _Records:
    """The rows of a file.

    Args:
        header: the names of the columns.
        rows: as many fields each.
        lines: the line at which each row begins, counted from 1.
    """

    header: list[str]
    rows: list[list[str]]
    lines: list[int]


def read_delimited(path: Path, text: Sequence[str]) -> Columns:
    """Read a .csv or .tsv file with a header; blank lines are skipped, empty fields are missing values.

    Args:
        path: the file.
        text: the columns that hold text, which unlike those of labels have few values twice.

    Raises:
        DataError: if a row has more or fewer fields than the header, or a quote is not closed; with the line.
    """
    records = _parse(path, ",", text) if path.suffix.lower() == ".csv" else _tab_separated(path, text)
    if not records.rows:
        raise cannot_read(path, "it has no samples")

    def load(name: str) -> list[Any]:
        column = records.header.index(name)
        return [row[column] or None for row in records.rows]

    return Columns(records.header, len(records.rows), load, path.name, records.lines, typed=False)


def _tab_separated(path: Path, text: Sequence[str]) -> _Records:
    try:
        records = _parse(path, "\t", None)
    except DataError:
        # With a quoted tab or line break in it, a row has another number of fields.
        if (quoted := _quoted_tabs(path, text)) is None:
            raise
        return quoted
    if _is_written_with_quotes(records) and (quoted := _quoted_tabs(path, text)) is not None:
        return quoted
    return records


def _quoted_tabs(path: Path, text: Sequence[str]) -> _Records | None:
    """Read a TSV file as one with quotes, if it is."""
    try:
        records = _parse(path, "\t", text)
    except DataError:
        return None
    notice(
        f'{path} is read with quotes as a CSV file has them: every " in it is part of a quoted field;'
        ' where a " shall be a character, write its texts without quotes around them, or use JSON lines'
    )
    return records


def _is_written_with_quotes(records: _Records) -> bool:
    """Say whether a program wrote this TSV file that quotes fields.

    Such a program quotes every field with a ``"`` in it, and doubles that; or it quotes all, the header too. In a file
    without quotes, some ``"`` stands alone.
    """
    cells = [cell for row in (records.header, *records.rows) for cell in row if '"' in cell]
    if not cells or not all(_QUOTED.fullmatch(cell) for cell in cells):
        return False
    return any('""' in cell[1:-1] for cell in cells) or any('"' in name for name in records.header)


def _parse(path: Path, separator: str, quoted_texts: Sequence[str] | None) -> _Records:
    """Read the rows of a file, with quotes if the columns of text are given (see `_check_swallowed`), else without."""
    quoting: Literal[0, 3] = csv.QUOTE_NONE if quoted_texts is None else csv.QUOTE_MINIMAL
    with text_lines(path, "") as lines, _fields_of_any_length():
        reader = csv.reader(lines, delimiter=separator, quoting=quoting, strict=True)
        records = _Records([], [], [])
        for line, row in _numbered(reader, path, records):
            if not records.header:
                records.header.extend(row)
            else:
                records.rows.append(row)
                records.lines.append(line)
    _check_widths(records, path, separator)
    if quoted_texts is not None:
        _check_swallowed(records, path, separator, quoted_texts)
    return records


@contextmanager
def _fields_of_any_length() -> Iterator[None]:
    """Lift the limit of 131,072 characters that the csv module has for the whole process."""
    limit = csv.field_size_limit(sys.maxsize)
    try:
        yield
    finally:
        csv.field_size_limit(limit)


def _numbered(reader: Any, path: Path, records: _Records) -> Iterator[tuple[int, list[str]]]:
    """Give each row that is not blank with the line at which it begins."""
    before = 0
    try:
        for row in reader:
            if row or len(records.header) == 1:  # of a single column, an empty line may be a sample
                yield before + 1, row or [""]
            before = reader.line_num
    except csv.Error as error:
        raise cannot_read(
            path,
            f"{_row(len(records.rows), before + 1)} begins a field in quotes that does not end well ({error})",
            'close the quote, and write a " inside quotes twice',
        ) from error


def _row(index: int, line: int) -> str:
    return f"row {index + 1} (counted from 1 without the header; line {line})"


def _check_widths(records: _Records, path: Path, separator: str) -> None:
    width = len(records.header)
    if width == 1:  # empty lines at the end are none
        while records.rows and records.rows[-1] == [""]:
            records.rows.pop()
            records.lines.pop()
    row = next((index for index, row in enumerate(records.rows) if len(row) != width), None)
    if row is None:
        return
    name = "commas" if separator == "," else "tabs"
    quote = f'put fields with {name} in them into quotes ("...")' if separator == "," else f"no field may hold {name}"
    raise cannot_read(
        path,
        f"{_row(row, records.lines[row])} has {len(records.rows[row])} fields, but the header has {width}",
        f"correct the row: {quote}",
    )


def _check_swallowed(records: _Records, path: Path, separator: str, texts: Sequence[str]) -> None:
    """Refuse a field in quotes that holds what were rows of their own, if its quotes were characters.

    Two ``"`` that stand alone at the begin of a field and at the end of another are well-formed: the field between them
    has line breaks. It is taken for rows where its lines have as many fields as the header, and a value, such as a
    label, that rows of the file have in the same column.
    """
    suspects = [
        (index, column)
        for index, row in enumerate(records.rows)
        for column, cell in enumerate(row)
        if "\n" in cell or "\r" in cell
    ]
    if not suspects:
        return
    keys = [column for column, name in enumerate(records.header) if name not in texts]
    if not keys:
        where = _row(suspects[0][0], records.lines[suspects[0][0]])
        notice(f"{path}: {len(suspects)} fields in quotes have line breaks; the first is in {where}")
    known = {column: {row[column] for row in records.rows} for column in keys}
    for index, column in suspects:
        lines = _as_rows(records.rows[index], column, separator)
        if any(_are_rows(lines, known[key], key, column, len(records.header), separator) for key in keys):
            raise cannot_read(
                path,
                f"{_row(index, records.lines[index])} has a field in quotes that swallows the {len(lines) - 1} lines"
                " after it, which look like rows",
                'a " that is a character is written as "" inside of quotes; or use JSON lines or Parquet',
            )


def _are_rows(lines: list[list[str]], known: set[str], key: int, column: int, width: int, separator: str) -> bool:
    """Say whether the lines of a field in some column are rows, by another column of which the values are known."""
    found = [len(line) == width and line[key] in known for line in lines]
    # The row's own label stands in the first or the last line, whatever the field holds.
    others = found[1:] if key < column else found[:-1]
    return all(found) if separator == "," else any(others)  # a TSV file is to have no quotes: one line suffices


def _as_rows(row: list[str], column: int, separator: str) -> list[list[str]]:
    """Return the rows that a row would be if the quotes of a field were characters."""
    pieces = _LINE_END.split(row[column])
    before, after = row[:column], row[column + 1 :]
    found = [piece.split(separator) for piece in pieces]
    found[0], found[-1] = before + found[0], found[-1] + after
    return found
