import csv
import io
import re
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from fedgram.comparison.tables import Cell, Column, Table, csv_text

COLUMNS = (
    Column("method", words=True),
    Column("up", "parameters"),
    Column("down", "parameters", rank=1),
    Column("seconds", rank=2),
)
ROWS = (
    (
        Cell("FLoRG_a|b", values={"method": "FLoRG_a|b"}),
        Cell("1,234,567", True, {"up": 1234567}),
        Cell("-1.20", values={"down": -1.2000000000000002}),
        Cell("3.50e12", values={"seconds": float("nan")}),
    ),
    (Cell("<Fed>&IT*", values={"method": "<Fed>&IT*"}), Cell("2 ± 1", values={"up": 2}), Cell(), Cell()),
)
TABLE = Table("rte_x, 3 rounds", COLUMNS, ROWS, ("100 % of 5 & more", "in bold."), {"task": "rte"})


def shown(table, width):
    console = Console(width=width, file=io.StringIO(), color_system="standard", force_terminal=True)
    console.print(table.rich(width), crop=False)
    return console.file.getvalue()


def plain(text):
    return re.sub(r"\x1b\[[\d;]*m", "", text)


def test_a_terminal_shows_title_headers_in_two_lines_rows_and_notes():
    lines = [line.rstrip() for line in plain(shown(TABLE, 80)).splitlines()]
    assert lines[0] == "rte_x, 3 rounds"
    assert lines[1].split() == ["──", "parameters", "──"]
    assert lines[2].split() == ["method", "up", "down", "seconds"]
    assert lines[4].split() == ["FLoRG_a|b", "1,234,567", "-1.20", "3.50e12"]
    assert lines[5].split() == ["<Fed>&IT*", "2", "±", "1", "-", "-"]
    assert lines[-2:] == ["100 % of 5 & more", "in bold."]


def test_a_terminal_shows_the_best_in_bold():
    body = shown(TABLE, 80).splitlines()[4:]
    assert re.findall(r"\x1b\[1m *([^\x1b ]+)", "\n".join(body)) == ["1,234,567"]


def test_what_looks_like_markup_is_shown_as_it_is():
    table = Table("[b]t", (Column("[i]c"),), ((Cell("[0.70, 0.80]"),),), ("[x]",))
    for text in ("[b]t", "[i]c", "[0.70, 0.80]", "[x]"):
        assert text in plain(shown(table, 80))


@pytest.mark.parametrize(("width", "gone"), [(80, []), (35, ["seconds"]), (26, ["parameters (down)", "seconds"])])
def test_a_narrow_terminal_loses_columns_of_the_highest_rank_first_and_says_which(width, gone):
    out = plain(shown(TABLE, width))
    assert "1,234,567" in out
    assert "FLoRG_a|b" in out
    assert ("3.50e12" not in out) == ("seconds" in gone)
    assert ("-1.20" not in out) == ("parameters (down)" in gone)
    assert TABLE.left_out(width) == gone


def test_columns_of_one_rank_go_together():
    table = Table("", (Column("m"), Column("up", "MB", rank=1), Column("down", "MB", rank=1)), ())
    assert "MB" not in plain(shown(table, 5))
    assert table.left_out(5) == ["MB (up, down)"]


@given(st.integers(1, 120), st.lists(st.integers(0, 10**15), min_size=1, max_size=4))
def test_no_number_is_ever_cut_off(width, numbers):
    table = Table("t", (Column("words", words=True),), ((Cell("a name of several words"),),))
    table = Table(
        "t",
        (*table.columns, *(Column("n") for _ in numbers)),
        ((Cell("a name of several words"), *(Cell(f"{number:,}") for number in numbers)),),
    )
    out = plain(shown(table, width))
    row = " ".join(out.splitlines()[3:])
    assert [word for word in row.split() if word[0].isdigit()] == [f"{number:,}" for number in numbers]


def test_words_are_broken_before_the_table_grows_wider_than_the_terminal():
    table = Table("", (Column("m", words=True), Column("n")), ((Cell("word " * 8), Cell("1,234,567")),))
    assert max(map(len, plain(shown(table, 40)).splitlines())) <= 40
    assert max(map(len, plain(shown(table, 10)).splitlines())) <= 24


def test_markdown_has_aligned_columns_bold_and_escaped_signs():
    assert TABLE.markdown() == (
        "**rte_x, 3 rounds**\n"
        "\n"
        "| method | parameters up | parameters down | seconds |\n"
        "| --- | ---: | ---: | ---: |\n"
        "| FLoRG_a\\|b | **1,234,567** | -1.20 | 3.50e12 |\n"
        "| \\<Fed>&IT\\* | 2 ± 1 | - | - |\n"
        "\n"
        "- 100 % of 5 & more\n"
        "- in bold.\n"
    )


def test_latex_has_booktabs_spanning_headers_bold_and_escaped_signs():
    assert TABLE.latex() == (
        "\\begin{table}\n"
        "  \\centering\n"
        "  \\caption{rte\\_x, 3 rounds}\n"
        "  \\label{tab:rte-x-3-rounds}\n"
        "  \\begin{tabular}{lrrr}\n"
        "    \\toprule\n"
        "    \\multicolumn{1}{c}{} & \\multicolumn{2}{c}{parameters} & \\multicolumn{1}{c}{} \\\\\n"
        "    \\cmidrule(lr){2-3}\n"
        "    method & up & down & seconds \\\\\n"
        "    \\midrule\n"
        "    FLoRG\\_a\\textbar{}b & \\textbf{1,234,567} & $-$1.20 & $3.50\\times10^{12}$ \\\\\n"
        "    $<$Fed$>$\\&IT* & 2 $\\pm$ 1 & - & - \\\\\n"
        "    \\bottomrule\n"
        "  \\end{tabular}\n"
        "  \\par\\footnotesize 100 \\% of 5 \\& more. in bold.\n"
        "\\end{table}\n"
    )


def test_latex_without_headers_above_headers_has_one_line_of_them():
    latex = Table("t", (Column("a_1"), Column("b")), ()).latex()
    assert "multicolumn" not in latex
    assert "    a\\_1 & b \\\\\n" in latex


@given(st.text(alphabet=st.characters(codec="latin-1", exclude_categories=["Cc"])))
def test_latex_escapes_all_that_it_reads_as_commands(text):
    latex = Table("", (Column("c"),), ((Cell(text),),)).latex()
    (row,) = [line for line in latex.splitlines() if line.endswith("\\\\") and line != "    c \\\\"] or ["    \\\\"]
    cell = re.sub(r"\\text(backslash|asciitilde|asciicircum|bar)\{\}|\$(<|>|-|\\pm)\$|\\[&%$#_{}]", "", row[4:-3])
    cell = re.sub(r"\$[\d.]+\\times10\^\{-?\d+\}\$", "", cell)
    assert not set(cell) & set("&%$#_{}~^\\<>|")


class Reader(HTMLParser):
    def __init__(self):
        super().__init__()
        self.rows, self.bold, self.open, self.spans, self.items = [], [], [], [], []

    def handle_starttag(self, tag, attributes):
        self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("th", "td"):
            self.rows[-1].append("")
            self.spans.append(tuple(dict(attributes).get(key) for key in ("rowspan", "colspan")))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "b":
            self.bold.append(data)
        if self.open and self.open[-1] in ("th", "td", "b"):
            self.rows[-1][-1] += data
        elif self.open and self.open[-1] == "li":
            self.items.append(data)


def test_html_is_well_formed_with_spanning_headers_bold_and_escaped_signs():
    reader = Reader()
    reader.feed(TABLE.html())
    assert not reader.open
    assert reader.rows == [
        ["method", "parameters", "seconds"],
        ["up", "down"],
        *([cell.text for cell in row] for row in ROWS),
    ]
    assert reader.spans[:3] == [("2", None), (None, "2"), ("2", None)]
    assert reader.bold == ["1,234,567"]
    assert reader.items == list(TABLE.notes)
    assert "<Fed>" not in TABLE.html()
    assert TABLE.html().count('<td class="first">') == len(ROWS)  # which stays in sight
    assert '<th rowspan="2" class="first">method</th>' in TABLE.html()


def test_csv_has_full_precision_the_keys_of_its_tables_and_nothing_for_the_unknown():
    other = Table("", COLUMNS[:1], ((Cell(values={"method": "other", "p": 0.5}),),), keys={"task": "mrpc"})
    text = csv_text([TABLE, other])
    assert list(csv.DictReader(io.StringIO(text))) == [
        {"task": "rte", "method": "FLoRG_a|b", "up": "1234567", "down": "-1.2000000000000002", "seconds": "", "p": ""},
        {"task": "rte", "method": "<Fed>&IT*", "up": "2", "down": "", "seconds": "", "p": ""},
        {"task": "mrpc", "method": "other", "up": "", "down": "", "seconds": "", "p": "0.5"},
    ]
    assert "\r" not in text


def test_a_note_about_columns_is_shown_with_these_alone():
    columns = (*COLUMNS[:2], Column("in all", "seconds", rank=3))
    rows = tuple((*row[:2], Cell("1")) for row in ROWS)
    table = Table("t", columns, rows, ("seconds: of a run", "other: of all"), tied=frozenset(["seconds", "to 70 %"]))
    assert "seconds: of a run" in plain(shown(table, 80))
    assert "seconds: of a run" not in plain(shown(table, 25))
    assert "other: of all" in plain(shown(table, 25))
    without = Table("t", columns[:2], tuple(row[:2] for row in rows), table.notes, tied=table.tied)
    for text in (without.markdown(), without.latex(), without.html()):
        assert "of a run" not in text
        assert "of all" in text
