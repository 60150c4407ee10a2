"""Data files of all kinds, each with what is in it: made by plain Python, and by nothing of what reads them."""

import csv
import io
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

WORDS = ["good", "fine", "great", "bad", "poor", "dull", "the", "film", "plot", "cast", "was", "is"]
ODD = [
    "NA",
    "null",
    "nan",
    "007",
    "1e5",
    "=1+1",
    "#",
    "'",
    "naïve",
    "电影",
    "🎬",
    "Ω",
    "%s",
    "{x}",
    "\\n",
    "\u00a0",
    "<b>",
]
FORMATS = ("csv", "tsv", "jsonl", "json", "parquet")
TEXT_FORMATS = FORMATS[:4]
STEMS = ("rows", "my rows", "rows[1]", "a*b", "x::y", "строки", "$rows", "_rows", "rows.v2", "100%")


@dataclass
class DataFile:
    """A data file, and what a reader must find in it.

    Attributes:
        path: the file.
        settings: of the data.
        texts: the columns of texts, each with the rows in order.
        labels: the name of each row's class, or the score.
        classes: the names of the classes; none of a regression.
        fault: what is wrong with it; empty where nothing is, so that it must be read.
        note: how it came about.
    """

    path: Path
    settings: dict[str, Any]
    texts: list[list[str]]
    labels: list[Any]
    classes: set[str]
    fault: str = ""
    note: str = ""


@dataclass
class Draft:
    """A file in the making: rows of cells as they are to be written."""

    kind: str
    header: list[str]
    rows: list[list[Any]]
    dice: random.Random
    fault: str = ""
    encoding: str = "utf-8"
    end: str = "\n"
    damage: Callable[[bytes], bytes] = field(default=lambda content: content)


# --- labels ---


def _labels(kind: str, typed: bool, dice: random.Random) -> tuple[list[Any], dict[str, str]]:
    """Return how classes are written, and what each is called: by `str` of what is written."""
    kinds: dict[str, list[Any]] = {
        "words": ["bad", "good", "so so"],
        "many": [f"class {number}" for number in range(15)],
        "odd": ["$", "_x", "a,b", "ça", "电影", "x" * 80, "it's", "100 %"],
        "from zero": [0, 1, 2],
        "from one": [1, 2, 3, 4, 5],
        "codes": [200, 404, 500],
        "negative": [-7, 3, 20],
        "written codes": ["01", "1", "2"],
        "null words": ["None", "ok", "NA"],
        "dates": ["2020-01-01", "2021-05-06"],
        "truth": [True, False],
        "whole floats": [1.0, 2.0, 3.0],
        "versions": ["v1.0", "v1.1", "v2"],
    }
    written = kinds[kind]
    names = {str(value): str(int(value)) if isinstance(value, float) else str(value) for value in written}
    count = dice.randint(2, len(written))
    chosen = dice.sample(written, max(count, 3) if kind in ("written codes", "null words", "versions") else count)
    return chosen if typed else [str(value) for value in chosen], names


LABEL_KINDS = ("words", "many", "odd", "from zero", "from one", "codes", "negative", "written codes", "null words")
LABEL_KINDS += ("dates", "truth", "whole floats", "versions", "scores", "whole scores")


def _scores(kind: str, rows: int, typed: bool, dice: random.Random) -> list[Any]:
    made = [dice.randint(-5, 5) if kind == "whole scores" else dice.choice([1e-3, 1.0, 1e6]) * dice.gauss(0, 1)
            for _ in range(rows)]  # fmt: skip
    return made if typed else [dice.choice([repr, "{:.6e}".format])(value) for value in made]


# --- texts ---


def _text(kind: str, dice: random.Random) -> str:
    words = dice.choices(WORDS, k=dice.randint(3, 12))
    for _ in range(dice.choice([0, 0, 1, 3])):
        words.insert(dice.randrange(len(words) + 1), dice.choice(ODD))
    if dice.random() < 0.2:
        words.insert(dice.randrange(len(words) + 1), dice.choice(['"quoted"', "a, b", "it's;", "x|y"]))
    if kind in ("csv", "jsonl", "json", "parquet") and dice.random() < 0.1:
        words.insert(dice.randrange(1, len(words)), "one\ntwo\tthree")
    if dice.random() < 0.02:
        words *= 400
    return " ".join(words)


# --- files ---


def _written(draft: Draft) -> bytes:
    if draft.kind == "parquet":
        return _parquet(draft)
    if draft.kind == "csv":
        text = io.StringIO()
        quoting = draft.dice.choice([csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
        csv.writer(text, lineterminator=draft.end, quoting=quoting).writerows([draft.header, *draft.rows])
        content = text.getvalue()
    elif draft.kind == "tsv":
        content = "".join("\t".join(map(str, row)) + draft.end for row in [draft.header, *draft.rows])
    else:
        items = [dict(zip(draft.header, row, strict=False)) for row in draft.rows]
        ascii_only = draft.dice.random() < 0.5
        lines = [json.dumps(item, ensure_ascii=ascii_only) for item in items]
        content = draft.end.join(lines) + draft.end if draft.kind == "jsonl" else f"[{','.join(lines)}]"
    return content.encode(draft.encoding)


def _parquet(draft: Draft) -> bytes:
    import pyarrow
    from pyarrow import parquet

    columns = dict(zip(draft.header, map(list, zip(*draft.rows, strict=True)), strict=True))
    table = pyarrow.table(columns or {name: [] for name in draft.header})
    sink = io.BytesIO()
    parquet.write_table(table, sink, compression=draft.dice.choice(["snappy", "zstd", "none"]), row_group_size=50)
    return sink.getvalue()


def _own_reading(content: bytes, draft: Draft) -> list[list[str]]:
    """Read a CSV or TSV file by the csv module, or by splitting lines: the rows below the header."""
    text = content.decode(draft.encoding).removeprefix("\ufeff")
    if draft.kind == "csv":
        return [row for row in csv.reader(io.StringIO(text, newline="")) if row][1:]
    return [line.split("\t") for line in text.split(draft.end) if line][1:]


# --- what may be wrong ---

Fault = Callable[[Draft, int, int], None]
"""Spoils a row of a draft, whose label is in some column."""


def _cell(value: Any, column: int | None = None) -> Fault:
    def spoil(draft: Draft, row: int, label: int) -> None:
        draft.rows[row][label if column is None else column] = value

    return spoil


def _all_labels(make: Callable[[int], Any]) -> Fault:
    def spoil(draft: Draft, row: int, label: int) -> None:
        for number, cells in enumerate(draft.rows):
            cells[label] = make(number)

    return spoil


def _damage(change: Callable[[bytes], bytes]) -> Fault:
    def spoil(draft: Draft, row: int, label: int) -> None:
        draft.damage = change

    return spoil


def _text_of(extra: str) -> Fault:
    def spoil(draft: Draft, row: int, label: int) -> None:
        draft.rows[row][0] = f"{draft.rows[row][0]}{extra}"

    return spoil


def _ragged(draft: Draft, row: int, label: int) -> None:
    draft.rows[row].append("one more")


def _short(draft: Draft, row: int, label: int) -> None:
    del draft.rows[row][1:]


def _no_column(draft: Draft, row: int, label: int) -> None:
    draft.header[label] = "another"


def _no_rows(draft: Draft, row: int, label: int) -> None:
    draft.rows.clear()


FAULTS: dict[str, tuple[str, tuple[str, ...], Fault]] = {
    # what is wrong: the kind of labels it is wrong for, the formats that can have it, and how it is done
    "a label is missing": ("words", ("csv", "tsv"), _cell("")),
    "a label is null": ("from one", ("jsonl", "json", "parquet"), _cell(None)),
    "a label is blank": ("words", FORMATS, _cell("  ")),
    "a label has spaces": ("words", FORMATS, _cell(" good")),
    "NaN among numbers": ("from zero", ("csv", "tsv"), _cell("NaN")),
    "a word among numbers": ("codes", ("csv", "tsv", "jsonl", "json"), _cell("unclear")),
    "hexadecimal among numbers": ("from one", ("csv", "tsv"), _cell("0x1")),
    "a fraction": ("from one", ("csv", "tsv", "jsonl", "json"), _cell(1.5)),
    "a number in two writings": ("from one", ("csv", "tsv"), _cell("1.0")),
    "labels of two types": ("from one", ("jsonl", "json"), _cell("1")),
    "truth among numbers": ("from zero", ("jsonl", "json"), _cell(True)),
    "an object as label": ("words", ("jsonl", "json"), _cell({"a": 1})),
    "identifiers as labels": ("words", FORMATS, _all_labels(lambda number: f"id-{number}")),
    "times as labels": ("words", FORMATS, _all_labels(lambda number: 1_700_000_000 + 61 * number)),
    "a single class": ("words", FORMATS, _all_labels(lambda number: "good")),
    "a score is a word": ("scores", ("csv", "tsv", "jsonl", "json"), _cell("high")),
    "a score is infinite": ("scores", FORMATS, _cell(float("inf"))),
    "a score is NaN": ("scores", ("csv", "tsv", "parquet"), _cell(float("nan"))),
    "a score is missing": ("scores", ("jsonl", "json", "parquet"), _cell(None)),
    "a text is missing": ("words", ("jsonl", "json", "parquet"), _cell(None, 0)),
    "a text is empty": ("words", ("csv", "tsv"), _cell("", 0)),
    "a text is a number": ("words", ("jsonl", "json"), _cell(17, 0)),
    "a text is a list": ("words", ("jsonl", "json"), _cell(["good"], 0)),
    "a NUL character": ("words", ("csv", "tsv"), _text_of("\0")),
    "a row is too long": ("words", ("csv", "tsv"), _ragged),
    "a row is too short": ("words", ("csv", "tsv"), _short),
    "no such column": ("words", FORMATS, _no_column),
    "no rows": ("words", FORMATS, _no_rows),
    "nothing at all": ("words", FORMATS, _damage(lambda content: b"")),
    "bytes of another encoding": (
        "words",
        TEXT_FORMATS,
        _damage(lambda content: content.replace(b"film", b"fi\xe9lm")),
    ),
    "cut off": ("words", ("json", "parquet"), _damage(lambda content: content[: len(content) * 2 // 3])),
    "binary": ("words", FORMATS, _damage(lambda content: bytes(range(256)) * 8)),
    "a line that is no JSON": ("words", ("jsonl",), _damage(lambda content: content + b"{'text': 'a film'}\n")),
    "a quote that nothing closes": ("words", ("csv",), _damage(lambda content: content + b'"a good film,good\n')),
}


def make_files(folder: Path, count: int) -> Iterator[DataFile]:
    """Make files, of which every second has something wrong with it: every fault in turn."""
    names = list(FAULTS)
    for number in range(count):
        place = folder / str(number)
        place.mkdir()
        yield make_file(place, number, names[number // 2 % len(names)] if number % 2 else "")


def make_file(folder: Path, seed: int, fault: str = "") -> DataFile:
    """Make a file, with something wrong with it or not.

    Args:
        folder: where to.
        seed: decides all else.
        fault: one of `FAULTS`.
    """
    dice = random.Random(seed)
    labels_of, formats, spoil = FAULTS[fault] if fault else (dice.choice(LABEL_KINDS), FORMATS, _cell(None))
    kind = dice.choice(formats)
    typed = kind not in ("csv", "tsv")
    size = dice.choice([60, 60, 120, 250] if fault else [40, 60, 90, 250, 2_000])
    pair = dice.random() < 0.3
    texts = [[_text(kind, dice) for _ in range(size)] for _ in range(1 + pair)]
    regression = "scores" in labels_of
    if regression:
        written, names = _scores(labels_of, size, typed, dice), {}
        labels: list[Any] = [float(value) for value in written]
    else:
        classes, names = _labels(labels_of, typed, dice)
        written = [*classes, *dice.choices(classes, k=size - len(classes))]
        labels = [names[str(value)] for value in written]
    columns = dice.choice([["text", "label"], ["null", "a:b"], ["$t", "_y"], ["Text ", "True"]])
    header = [columns[0], *["second"][: int(pair)], columns[1], *["extra"][: dice.randint(0, 1)]]
    rows = [[*cells, value, *["x,y" if kind == "csv" else "x"][: len(header) - 2 - pair]]
            for *cells, value in zip(*texts, written, strict=True)]  # fmt: skip
    draft = Draft(kind, header, rows, dice, fault)
    if kind != "parquet":
        draft.encoding = dice.choice(["utf-8", "utf-8", "utf-8-sig"] if fault else ["utf-8", "utf-8-sig", "utf-16"])
        draft.end = dice.choice(["\n", "\r\n"])
    if fault:
        spoil(draft, dice.randrange(10, size), 1 + pair)
    content = _written(draft)
    if not fault and kind in ("csv", "tsv"):
        expected = [list(map(str, row)) for row in rows]
        assert _own_reading(content, draft) == expected, "the maker is wrong"
    path = folder / f"{dice.choice(STEMS)}.{kind}"
    path.write_bytes(draft.damage(content))
    settings = {"path": str(path), "text": [columns[0], *["second"][: int(pair)]], "label": columns[1]}
    settings |= {"num_labels": 1} if regression else {}
    note = f"seed {seed}: {kind}, {size} rows, {labels_of}, {draft.encoding}, {draft.end!r}, pair {pair}"
    return DataFile(path, settings, texts, labels, set() if regression else set(labels), fault, note)
