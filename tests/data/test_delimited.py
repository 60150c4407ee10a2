import csv
import logging

import pytest

from fedgram.data import columns
from fedgram.data.delimited import read_delimited
from fedgram.errors import DataError


@pytest.fixture
def read(tmp_path):
    """Writes a file and reads it: the texts, the labels and where they begin."""

    def read(name, content, text=("text",), label="label"):
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        found = read_delimited(tmp_path / name, text)
        assert len(found) == len(found[label]) == len(found.lines)
        return found[text[0]], found[label], list(found.lines)

    return read


@pytest.fixture
def notices(caplog):
    columns.notice.cache_clear()
    with caplog.at_level(logging.INFO, logger="fedgram"):
        yield caplog


def test_all_is_text_and_empty_fields_are_missing(read):
    content = "text,label\nNA,01\n007,\n,1\nnull,None\n"
    assert read("a.csv", content) == (["NA", "007", None, "null"], ["01", None, "1", "None"], [2, 3, 4, 5])


@pytest.mark.parametrize("name", ["a.csv", "a.tsv"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_line_ends_and_blank_lines(read, name, end):
    sign = "," if name == "a.csv" else "\t"
    lines = ["", f"text{sign}label", f"good{sign}1", "", f"bad{sign}0", "", ""]
    for content in (end.join(lines), end.join(lines).rstrip(end)):
        assert read(name, content) == (["good", "bad"], ["1", "0"], [3, 5])


def test_line_ends_in_quotes_are_kept_and_counted(read):
    content = 'text,label\r\n"one\r\ntwo",1\r\n"three\rfour",0\r\n"five\n\nsix",1\r\nseven,0\r\n'
    texts, labels, lines = read("a.csv", content)
    assert texts == ["one\r\ntwo", "three\rfour", "five\n\nsix", "seven"]
    assert (labels, lines) == (["1", "0", "1", "0"], [2, 4, 6, 9])


def test_quotes_and_separators_in_quotes(read):
    content = 'label,text\n1,"a ""good"" film, once"\n0,an 8" disk\n1,"he said: ""no"""\n'
    assert read("a.csv", content)[0] == ['a "good" film, once', 'an 8" disk', 'he said: "no"']


def test_fields_of_any_length(read):
    limit = csv.field_size_limit()
    assert read("a.csv", f"text,label\n{'x' * 300_000},1\n")[0] == ["x" * 300_000]
    assert csv.field_size_limit() == limit


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("text,label\ngood,1\na, b,0\n", r"row 2 .*line 3\) has 3 fields, but the header has 2; .*into quotes"),
        ("text,label\ngood,1\n\nbad\n", r"row 2 .*line 4\) has 1 fields, but the header has 2"),
        ("text,label\ngood,1,\n", r"row 1 .*line 2\) has 3 fields"),
        ('text,label\n"a\nb",1\nbad,0,0\n', r"row 2 .*line 4\) has 3 fields"),
    ],
)
def test_a_row_of_another_width(read, content, message):
    with pytest.raises(DataError, match=rf"cannot read .*a\.csv: {message}"):
        read("a.csv", content)
    with pytest.raises(DataError, match=r"fields, but the header has 2; correct the row: no field may hold tabs"):
        read("a.tsv", content.replace(",", "\t"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('text,label\na,1\n"b,0\nc,1\n', r"row 2 .*line 3\) begins a field in quotes that does not end well"),
        ('text,label\na,1\n"b,0\nc,1\n"d,0\ne,1\n', r"row 2 .*line 3\) begins a field in quotes that does not end"),
        ('text,label\n"a" b,1\n', r"row 1 .*line 2\) begins a field in quotes that does not end"),
        # Well-formed by the letter: the field from "b to d" is one. Yet its lines are rows.
        ('text,label\na,1\n"b,0\nc,1\nd",0\ne,1\n', r"row 2 .*line 3\) .* swallows the 2 lines after it"),
        ('text,label\na,1\n"b,0\nd",0\ne,1\n', r"row 2 .*line 3\) .* swallows the 1 lines after it"),
        ('label,text\n1,a\n0,"b\n1,c\n0,d"\n1,e\n', r"row 2 .*line 3\) .* swallows the 2 lines after it"),
    ],
)
def test_a_quote_that_swallows_rows(read, content, message):
    with pytest.raises(DataError, match=rf"cannot read .*a\.csv: {message}"):
        read("a.csv", content)


def test_a_text_of_lines_that_are_no_rows(read):
    content = 'text,label\na,1\n"Dear Sir,\nthank you, and good bye,\nX",0\n"one\ntwo",1\n"1,2\n3,4",0\n'
    assert len(read("a.csv", content)[0]) == 4


def test_a_tab_separated_file_has_no_quotes(read, notices):
    content = 'text\tlabel\n"a stray one\t1\nfine\t0\nthe end"\t1\n"all of it"\t0\na "word"\t1\n'
    texts, labels, _ = read("a.tsv", content)
    assert texts == ['"a stray one', "fine", 'the end"', '"all of it"', 'a "word"']
    assert labels == ["1", "0", "1", "0", "1"]
    assert not notices.text


def test_doubled_quotes_beside_stray_ones_are_characters(read):
    content = 'text\tlabel\n"he said ""no"""\t1\na 5" disk\t0\n'
    assert read("a.tsv", content)[0] == ['"he said ""no"""', 'a 5" disk']


@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
@pytest.mark.parametrize(
    "texts",
    [['the "plot", not', "fine"], ["a\ttab", "fine"], ["two\nlines", "fine", 'and "quotes"'], ["plain", "fine"]],
)
def test_a_tab_separated_file_that_was_written_with_quotes(tmp_path, read, notices, texts, quoting):
    path = tmp_path / "b.tsv"
    with path.open("w", newline="") as file:
        csv.writer(file, delimiter="\t", quoting=quoting).writerows(
            [["text", "label"], *([text, "1"] for text in texts)]
        )
    assert read("a.tsv", path.read_bytes())[0] == texts
    assert ("a.tsv is read with quotes" in notices.text) == ('"' in path.read_text())


@pytest.mark.parametrize(
    "content",
    [
        'text\tlabel\na\t1\n"b\t0\nc\td\t1\ne"\t0\nf\t1\n',  # with quotes, rows would be swallowed
        'text\tlabel\n"a\tb"\t1\nan 8"\tdisk\t0\n',
        'text\tlabel\n"a\tb\t1\nc\t0\n',
    ],
)
def test_quotes_do_not_excuse_a_row_of_another_width(read, content):
    with pytest.raises(DataError, match=r"has 3 fields, but the header has 2"):
        read("a.tsv", content)


@pytest.mark.parametrize("name", ["a.csv", "a.tsv"])
def test_a_single_column(read, name):
    assert read(name, "text\ngood\n\nbad\n\n\n", label="text")[0] == ["good", None, "bad"]


@pytest.mark.parametrize("content", ["text,label\n", "\n\n", "text,label\n\n\n"])
def test_a_file_without_samples(read, content):
    with pytest.raises(DataError, match=r"it has no samples"):
        read("a.csv", content)


def test_line_breaks_in_a_file_of_texts_alone_are_mentioned(read, notices):
    assert len(read("a.csv", 'text\none\n"two\nthree"\nfour\n', label="text")[0]) == 3
    assert (
        "1 fields in quotes have line breaks; the first is in row 2 (counted from 1 without the header; line 3)"
        in notices.text
    )
