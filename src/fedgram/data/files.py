"""Local files of samples: text in Unicode, JSON and Parquet."""

import codecs
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any, TextIO

from fedgram.data.columns import Columns, notice
from fedgram.errors import DataError

__all__ = ["cannot_read", "read_json", "read_parquet", "readable", "text_lines"]

_LINE_END = re.compile(rb"\r\n|\r|\n")
# The longer marks first: UTF-32's begins with UTF-16's.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def cannot_read(path: Path, reason: str, remedy: str | None = None) -> DataError:
    """Return the error for a file that is not what its name promises."""
    wanted = f"expected a well-formed {path.suffix.lower()} file with at least one sample"
    return DataError(f"cannot read {path}: {reason}; {remedy or f'{wanted}: correct it, or leave the split out'}")


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turn an error of the system, such as a missing permission, into one line that does not blame what a file holds.

    Raises:
        DataError: the system refused to read.
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise cannot_read(path, reason, "see to its permissions, and to the disk that it is on") from error


@contextmanager
def text_lines(path: Path, newline: str | None) -> Iterator[Iterator[str]]:
    r"""Open a file in UTF-8, or in the Unicode encoding that its byte order mark tells, and give its lines.

    Args:
        path: the file.
        newline: as `open` takes it: None to have all line ends as ``\n``, ``""`` to leave them.

    Raises:
        DataError: if it has other bytes; with the line of the first.
    """
    encoding = _encoding(path)
    with path.open(encoding=encoding, newline=newline) as file:
        try:
            yield _without_nul(file, path)
        except UnicodeError as error:
            raise _undecodable(path, encoding) from error


def _encoding(path: Path) -> str:
    with path.open("rb") as file:
        start = file.read(4)
    return next((name for mark, name in _MARKS if start.startswith(mark)), "utf-8")


def _without_nul(file: TextIO, path: Path) -> Iterator[str]:
    for number, line in enumerate(file, 1):
        if "\0" in line:
            raise cannot_read(
                path,
                f"line {number} holds a NUL character, as in binary files and in UTF-16 without a byte order mark",
                "save it as text in UTF-8",
            )
        yield line


def _undecodable(path: Path, encoding: str) -> DataError:
    if encoding not in ("utf-8", "utf-8-sig"):
        reason = f"it begins with the byte order mark of {encoding.upper()}, but goes on otherwise"
        return cannot_read(path, reason, "save it as UTF-8")
    content = path.read_bytes()
    try:
        content.decode()
    except UnicodeDecodeError as error:
        line = 1 + len(_LINE_END.findall(content, 0, error.start))
        byte = content[error.start : error.start + 1]
        perhaps = byte.decode("cp1252", "replace")
        return cannot_read(
            path,
            f"byte 0x{byte.hex()} in line {line} is not UTF-8 (in Latin-1 it would be {perhaps!r})",
            f"save the file as UTF-8, as by: iconv -f WINDOWS-1252 -t UTF-8 {path.name} > utf8_{path.name}",
        )
    return cannot_read(path, "it changed while it was read")


# --- JSON ---


def read_json(path: Path) -> Columns:
    """Read JSON lines (an object a line), an array of objects, or one object of columns of equal length.

    Raises:
        DataError: if it is none of that; with the line.
    """
    with text_lines(path, None) as lines:
        numbered = enumerate(lines, 1)
        number, first = next(((number, line) for number, line in numbered if not line.isspace()), (0, ""))
        if first.lstrip().startswith("["):
            return _of_rows(_array(path, number, chain([first], (line for _, line in numbered))), None, path)
        rows, places = _objects(path, chain([(number, first)] if number else [], numbered))
    if len(rows) == 1 and (columns := _as_columns(rows[0])) is not None:
        return columns_of(columns, path)
    return _of_rows(rows, places, path)


def _array(path: Path, number: int, lines: Iterator[str]) -> list[Any]:
    found = _decoded("".join(lines), path, number)
    return found if isinstance(found, list) else [found]


def _objects(path: Path, lines: Iterator[tuple[int, str]]) -> tuple[list[Any], list[int]]:
    """Read an object from each line; or from all lines one object, where the first alone is none."""
    rows: list[Any] = []
    places: list[int] = []
    for number, line in lines:
        if not rows and line.strip() in ("{", "{}"):  # an object that is spread over lines
            return [_decoded("".join([line, *(line for _, line in lines)]), path, number)], [number]
        if not line.isspace():
            rows.append(_decoded(line, path, number))
            places.append(number)
    return rows, places


def _decoded(text: str, path: Path, number: int) -> Any:
    """Read a value of JSON that begins in some line."""
    try:
        return _DECODER.decode(text)
    except json.JSONDecodeError as error:
        line = number + error.lineno - 1
        reason = f"line {line}, column {error.colno} is not JSON ({error.msg})"
    except (ValueError, RecursionError) as error:
        reason = f"line {number} is not JSON that can be read ({error})"
    raise cannot_read(path, reason, "expected one object a line, or one array of objects: correct it")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"an object has {next(name for name in names if names.count(name) > 1)!r} twice")
    return found


_DECODER = json.JSONDecoder(object_pairs_hook=_object)


def _as_columns(found: Any) -> dict[str, list[Any]] | None:
    """Return an object that holds nothing but lists of one length, as pandas and datasets write columns."""
    if not isinstance(found, dict) or not found or not all(isinstance(value, list) for value in found.values()):
        return None
    return found if len({len(value) for value in found.values()}) == 1 else None


def columns_of(columns: Mapping[str, list[Any]], path: Path) -> Columns:
    """Return columns that are in memory already."""
    return Columns(list(columns), len(next(iter(columns.values()))), columns.__getitem__, path.name)


def _of_rows(rows: list[Any], lines: Sequence[int] | None, path: Path) -> Columns:
    for index, row in enumerate(rows):
        if not isinstance(row, dict):
            where = f"row {index + 1}" if lines is None else f"line {lines[index]}"
            raise cannot_read(path, f'{where} is no object with the columns of a sample, such as {{"text": ...}}')
    if not rows:
        raise cannot_read(path, "it has no samples")
    names = list(dict.fromkeys(chain.from_iterable(rows)))
    return Columns(names, len(rows), lambda name: [row.get(name) for row in rows], path.name, lines)


# --- Parquet ---


def read_parquet(path: Path) -> Columns:
    """Read a Parquet file, with the names of classes where `datasets` wrote a column of the type ClassLabel.

    Raises:
        DataError: if it is none.
    """
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    try:
        with path.open("rb") as file:  # by itself, pyarrow would take a name with :// for an address
            table = ParquetFile(file).read()
    except (ArrowException, OSError, NotImplementedError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # the system's, and not pyarrow's
            raise
        raise cannot_read(path, (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")) from error
    if not table.num_rows:
        raise cannot_read(path, "it has no samples")
    names = list(table.column_names)

    def load(name: str) -> list[Any]:
        return list(table.column(names.index(name)).to_pylist())

    return Columns(names, table.num_rows, load, path.name, class_names=_class_names(table.schema.metadata, path))


def _class_names(metadata: Mapping[bytes, bytes] | None, path: Path) -> dict[str, tuple[str, ...]]:
    """Take the names of classes out of what `datasets` notes in a file."""
    try:
        features = json.loads((metadata or {}).get(b"huggingface", b"{}")).get("info", {}).get("features", {})
        return {
            name: tuple(map(str, feature["names"]))
            for name, feature in features.items()
            if isinstance(feature, dict) and feature.get("_type") == "ClassLabel"
        }
    except (ValueError, AttributeError, KeyError, TypeError) as error:
        notice(f"{path}: what datasets noted of its classes cannot be read ({error!r}), and is left aside")
        return {}
