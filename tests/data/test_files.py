import json

import pytest

from fedgram.data.columns import check_columns, check_texts
from fedgram.data.reading import read_file
from fedgram.errors import DataError

ROWS = [{"text": "café", "label": 1}, {"text": "naïve", "label": 0}]
CSV = "text,label\ncafé,1\nnaïve,0\n"
CONTENTS = {
    ".csv": CSV,
    ".tsv": CSV.replace(",", "\t"),
    ".jsonl": "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS),
    ".json": json.dumps(ROWS, ensure_ascii=False, indent=1),
}


def read(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_file(path, ["text"])


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("suffix", CONTENTS)
def test_a_byte_order_mark_tells_the_encoding(tmp_path, suffix, encoding):
    found = read(tmp_path / f"a{suffix}", CONTENTS[suffix].encode(encoding))
    assert list(found.column_names) == ["text", "label"]
    assert found["text"] == ["café", "naïve"]


@pytest.mark.parametrize("suffix", CONTENTS)
def test_another_encoding_is_refused_with_its_line(tmp_path, suffix):
    line = next(n for n, line in enumerate(CONTENTS[suffix].split("\n"), 1) if "é" in line)
    with pytest.raises(
        DataError, match=rf"a{suffix}: byte 0xe9 in line {line} is not UTF-8 \(in Latin-1 .* 'é'\); .*iconv"
    ):
        read(tmp_path / f"a{suffix}", CONTENTS[suffix].encode("latin-1"))


def test_a_late_line_of_another_encoding(tmp_path):
    content = b"text,label\r\n" + b"plain,1\r\n" * 30_000 + b"caf\xe9,0\r\n"
    with pytest.raises(DataError, match=r"byte 0xe9 in line 30002 is not UTF-8"):
        read(tmp_path / "a.csv", content)


@pytest.mark.parametrize("suffix", CONTENTS)
def test_utf_16_without_a_mark_is_refused(tmp_path, suffix):
    content = CONTENTS[suffix].replace("é", "e").replace("ï", "i")
    with pytest.raises(DataError, match=r"line 1 holds a NUL character, as .*UTF-16 .*save it as text in UTF-8"):
        read(tmp_path / f"a{suffix}", content.encode("utf-16-le"))


def test_utf_16_that_breaks_off(tmp_path):
    with pytest.raises(DataError, match=r"begins with the byte order mark of UTF-16, but goes on otherwise"):
        read(tmp_path / "a.csv", CSV.encode("utf-16")[:-1])


@pytest.mark.parametrize(
    "name", ["a [2].csv", "a*.csv", "what?.csv", "x::y.csv", "a: b.csv", "s3:x.csv", " a .csv", "~a.csv", "%20.CSV"]
)
def test_a_path_is_a_path(tmp_path, name):
    for other in ("a2.csv", "ab.csv", "whats.csv"):
        (tmp_path / other).write_text("text,label\nwrong,1\n")
    assert read(tmp_path / name, CSV)["text"] == ["café", "naïve"]
    parquet = tmp_path / name.lower().replace(".csv", ".parquet")
    import pandas

    with parquet.open("wb") as file:
        pandas.DataFrame(ROWS).to_parquet(file)
    assert read_file(parquet, ["text"])["label"] == [1, 0]


@pytest.mark.parametrize(
    "content",
    [
        CONTENTS[".json"],
        CONTENTS[".jsonl"],
        CONTENTS[".jsonl"].replace("\n", "\r\n\r\n"),
        CONTENTS[".jsonl"].rstrip(),
        "\n\n" + CONTENTS[".json"],
        json.dumps({"text": ["café", "naïve"], "label": [1, 0]}),
        json.dumps({"text": ["café", "naïve"], "label": [1, 0]}, indent=2),
    ],
)
@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
def test_json_of_every_shape(tmp_path, content, suffix):
    found = read(tmp_path / f"a{suffix}", content)
    assert (found["text"], found["label"]) == (["café", "naïve"], [1, 0])


def test_columns_that_some_rows_lack(tmp_path):
    found = read(tmp_path / "a.jsonl", '{"text": "a"}\n\n{"label": 1, "text": "b"}\n')
    assert found.column_names == ["text", "label"]
    assert found["label"] == [None, 1]
    assert found.lines == [1, 3]
    with pytest.raises(DataError, match=r"train split \(a\.jsonl\), row 2 \(counted from 1; line 3\): 'text' is 1"):
        check_texts(["a", 1], "text", found.place("train"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"text": "a"}\n\n{"text": "b"', r"line 3, column 13 is not JSON \(Expecting"),
        ('{"text": "a"}\n{"text": "b"} {"text": "c"}\n', r"line 2, column 15 is not JSON \(Extra data"),
        ('[{"text": "a"},\n{"text": }]', r"line 2, column 10 is not JSON"),
        ('{\n"text": "a"\n"label": 1}', r"line 3, column 1 is not JSON"),
        ('{"text": "a", "text": "b"}', r"line 1 is not JSON that can be read \(an object has 'text' twice\)"),
        ('{"text": "a"}\n5\n', r"line 2 is no object"),
        ('[{"text": "a"}, "b"]', r"row 2 is no object"),
        ("[]", "it has no samples"),
        ("null", r"line 1 is no object with the columns of a sample"),
        ("[null]", r"row 1 is no object with the columns of a sample"),
        ('{"text": "a"}\nnull\n', r"line 2 is no object with the columns of a sample"),
        ('{"text": ' * 100_000, r"line 1 is not JSON that can be read"),
        (" \n\n", "it has no samples"),
        ("[" * 100_000, r"line 1 is not JSON that can be read"),
        ('{"label": ' + "9" * 5000 + "}", r"line 1 is not JSON that can be read \(Exceeds the limit"),
    ],
)
def test_malformed_json(tmp_path, content, message):
    with pytest.raises(DataError, match=rf"cannot read .*a\.jsonl: {message}"):
        read(tmp_path / "a.jsonl", content)


def test_half_of_a_surrogate_pair_is_no_text(tmp_path):
    found = read(tmp_path / "a.jsonl", '{"text": "fine \\ud83d\\ude00"}\n{"text": "half \\ud83d"}\n')
    with pytest.raises(DataError, match=r"row 2 .*half of a surrogate pair"):
        check_texts(found["text"], "text", found.place("train"))


def test_parquet_keeps_types_and_names_of_classes(tmp_path):
    import datasets

    names = ["no", "yes"]
    features = {
        "text": datasets.Value("string"),
        "label": datasets.ClassLabel(names=names),
        "n": datasets.Value("int8"),
    }
    rows = {"text": ["a", "b"], "label": [1, None], "n": [3, 4]}
    datasets.Dataset.from_dict(rows, datasets.Features(features)).to_parquet(tmp_path / "a.parquet")
    found = read_file(tmp_path / "a.parquet", ["text"])
    assert {name: found[name] for name in found.column_names} == rows
    assert found.class_names == {"label": ("no", "yes")}
    assert found.typed


def test_notes_of_a_parquet_file_that_cannot_be_read(tmp_path, caplog):
    import pyarrow
    from pyarrow.parquet import write_table

    table = pyarrow.table({"text": ["a"]}).replace_schema_metadata({b"huggingface": b"{"})
    write_table(table, tmp_path / "damaged.parquet")
    with caplog.at_level("WARNING", logger="fedgram"):
        assert read_file(tmp_path / "damaged.parquet", ["text"]).class_names == {}
    assert "damaged.parquet: what datasets noted of its classes cannot be read" in caplog.text


@pytest.mark.parametrize(
    ("header", "hint"), [("text;label", "by semicolons"), ("text\tlabel", "by tabs"), ("texts", None)]
)
def test_columns_that_are_separated_otherwise(tmp_path, header, hint):
    found = read(tmp_path / "a.csv", f"{header}\n{header}\n")
    with pytest.raises(DataError, match=r"train split \(a\.csv\) has no column 'text'; it has") as caught:
        check_columns(found, ["text"], "train", "rename it")
    assert (hint or "separated") in str(caught.value) or hint is None
    assert ("separated" in str(caught.value)) == (hint is not None)


def test_two_columns_of_one_name(tmp_path):
    found = read(tmp_path / "a.csv", "text,text,x,x\na,b,1,2\n")
    check_columns(found, [], "train", "")
    with pytest.raises(DataError, match=r"has several columns 'text'; rename all but one"):
        check_columns(found, ["text"], "train", "")
