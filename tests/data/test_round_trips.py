"""Whatever texts and labels are written to a file are read from it, in every format."""

import csv
import json
from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from fedgram.data.labels import LabelScheme
from fedgram.data.reading import raw_split, read_file

# Without NUL and halves of surrogate pairs, which are refused. Words that readers take for something else are likelier
# than chance would have them.
TEXTS = st.one_of(
    st.sampled_from(
        ["NA", "null", "nan", "007", "1e5", "True", "2020-01-01", "=1", "#", "'a'", 'a "b" c', '"', '""', "\n"]
    ),
    st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1),
)
LINES = TEXTS.filter(lambda text: not set(text) & set("\t\r\n"))
CLASSES = {
    ("a", "b b", "ç"): ("a", "b b", "ç"),
    ("3", "20", "-7"): ("-7", "3", "20"),
    ("01", "1", "x"): ("01", "1", "x"),
    ("None", "False", "2020-01-01"): ("2020-01-01", "False", "None"),
}


@st.composite
def splits(draw, texts):
    """Two texts and a label for each of some rows, of which the first have all classes; and the classes in order."""
    labels, expected = draw(st.sampled_from(list(CLASSES.items())))
    chosen = [*labels, *draw(st.lists(st.sampled_from(labels), max_size=5))]
    return [(draw(texts), draw(texts), label) for label in chosen], expected


def read(path, rows, expected):
    raw = raw_split(read_file(path, ["text", "b"]), ["text", "b"], "label", "train")
    scheme = LabelScheme.of(raw, None)
    assert raw.texts == tuple([row[column] for row in rows] for column in (0, 1))
    assert scheme.names == expected
    assert [scheme.names[position] for position in scheme.encode(raw, "train")] == [label for _, _, label in rows]


# With other line ends, the csv module writes a lone \r without quotes, which nobody can read.
@settings(max_examples=100, deadline=None)
@given(splits(TEXTS), st.sampled_from([("\r\n", csv.QUOTE_MINIMAL), ("\n", csv.QUOTE_ALL)]))
def test_csv(split, style):
    end, quoting = style
    with (
        TemporaryDirectory() as folder,
        (path := Path(folder, "a.csv")).open("w", encoding="utf-8", newline="") as file,
    ):
        csv.writer(file, lineterminator=end, quoting=quoting).writerows([("text", "b", "label"), *split[0]])
        file.flush()
        read(path, *split)


@settings(max_examples=100, deadline=None)
@given(splits(LINES), st.sampled_from(["\n", "\r\n"]))
def test_tsv_without_quotes(split, end):
    """A stray quote in the last row tells that there are none."""
    rows = [*split[0], ('a 5" disk', "b", split[0][0][2])]
    with TemporaryDirectory() as folder:
        path = Path(folder, "a.tsv")
        path.write_text(end.join(map("\t".join, [("text", "b", "label"), *rows])), "utf-8", newline="")
        read(path, rows, split[1])


@settings(max_examples=100, deadline=None)
@given(splits(TEXTS), st.booleans())
def test_json(split, is_array):
    rows = [dict(zip(("text", "b", "label"), row, strict=True)) for row in split[0]]
    with TemporaryDirectory() as folder:
        path = Path(folder, "a.jsonl")
        path.write_text(json.dumps(rows) if is_array else "\n".join(map(json.dumps, rows)))
        read(path, *split)


@settings(max_examples=50, deadline=None)
@given(splits(TEXTS))
def test_parquet(split):
    columns = dict(zip(("text", "b", "label"), map(list, zip(*split[0], strict=True)), strict=True))
    with TemporaryDirectory() as folder:
        parquet.write_table(pyarrow.table(columns), Path(folder, "a.parquet"))
        read(Path(folder, "a.parquet"), *split)
