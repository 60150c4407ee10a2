"""Tables that are made once and shown on a terminal, as Markdown, LaTeX, HTML and CSV."""

import csv
import html
import io
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import TYPE_CHECKING, Any, Literal

from fedgram.comparison.markup import latex_row, latex_text, markdown_row, markdown_text, sentence

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table as RichTable
    from rich.text import Text

__all__ = ["Cell", "Column", "Table", "csv_text"]

_UNBROKEN = 12
"""Characters that a column of words keeps on a narrow terminal."""
_GAP = "  "
"""What stands between columns that have a header in common, as wide as that between others."""
_PAGE = 80
"""Characters of a line that a page of LaTeX has room for."""


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        header: what stands above it.
        group: what stands above that, once for neighbours that have it in common.
        words: whether it holds words, which stand on the left and may be broken into lines, and not numbers.
        rank: of columns that a narrow terminal has no room for, those of the highest rank go first, together; those
            of rank 0 always stay.
        keys: what it is called in options: its name, and perhaps others.
        best: whether the highest or the lowest value of its cells is the best; of some there is no best.
    """

    header: str
    group: str = ""
    words: bool = False
    rank: int = 0
    keys: tuple[str, ...] = ()
    best: Literal["highest", "lowest"] | None = None

    @property
    def name(self) -> str:
        """Both headers in one line."""
        return f"{self.group} {self.header}".strip()


@dataclass(frozen=True)
class Cell:
    """A cell of a table.

    Attributes:
        text: what readers see.
        bold: whether it is the best of its kind.
        values: what programs read, in full precision, by the names of columns in a CSV file.
        value: what rows are sorted by, and which is the best: a number, nan where it is unknown, or a text.
        shown: the value as readers see it, where the text holds more: those that are shown alike are equally good.
    """

    text: str = "-"
    bold: bool = False
    values: Mapping[str, Any] = field(default_factory=dict)
    value: float | str = math.nan
    shown: str = ""


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        title: what stands above it.
        columns: the columns.
        rows: the rows, a cell for each column.
        notes: what stands below it, a sentence or so each.
        keys: what a CSV file says in each of its rows besides.
        tied: headers above columns: a note that begins with one and a colon is shown with those columns alone.
    """

    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    notes: tuple[str, ...] = ()
    keys: Mapping[str, Any] = field(default_factory=dict)
    tied: frozenset[str] = frozenset()

    @property
    def _shown_notes(self) -> list[str]:
        absent = self.tied - {column.group for column in self.columns}
        return [note for note in self.notes if note.partition(":")[0] not in absent]

    def rich(self, width: int) -> "RenderableType":
        """Return it for a terminal of so many characters: without columns of high rank where it is too narrow.

        Numbers are never cut off. If even the columns that always stay are too wide, then words are broken into lines,
        and at last the table is wider than the terminal.
        """
        from rich.console import Group
        from rich.text import Text

        table = self._fitted(width)
        grid = table._grid()
        grid.width = min(_width(grid), max(width, _least_width(table, grid)))
        return Group(Text(self.title, style="italic"), grid, *(Text(note, style="dim") for note in table._shown_notes))

    def left_out(self, width: int) -> list[str]:
        """Return what a terminal of so many characters has no room for, neighbours of a group in one."""
        gone = [column for column in self.columns if column not in self._fitted(width).columns]
        names = []
        for group, columns in groupby(gone, key=lambda column: column.group):
            headers = ", ".join(column.header for column in columns)
            names.append(f"{group} ({headers})" if group else headers)
        return names

    def _fitted(self, width: int) -> "Table":
        table = self
        while _width(table._grid()) > width and any(column.rank for column in table.columns):
            table = table._without_highest()
        return table

    def _without_highest(self) -> "Table":
        """Return it without the columns of the highest rank."""
        highest = max(column.rank for column in self.columns)
        kept = [index for index, column in enumerate(self.columns) if column.rank < highest]
        rows = tuple(tuple(row[index] for index in kept) for row in self.rows)
        return replace(self, columns=tuple(self.columns[index] for index in kept), rows=rows)

    def _grid(self) -> "RichTable":
        from rich.box import SIMPLE_HEAD
        from rich.table import Table as RichTable
        from rich.text import Text

        grid = RichTable(box=SIMPLE_HEAD, padding=(0, 1), pad_edge=False, collapse_padding=True, show_edge=False)
        spans, has_groups = self._spans(), any(column.group for column in self.columns)
        for name, start, end in spans:
            words, header = self._may_break(start, end), self._line(start, end)
            top = f"{_spanning(name, header.cell_len if end > start + 1 else 0)}\n" if has_groups else ""
            grid.add_column(
                Text(top) + header, justify="left" if words else "right", no_wrap=not words, overflow="fold"
            )
        for row in self.rows:
            grid.add_row(*(self._line(start, end, row) for _, start, end in spans))
        return grid

    def _may_break(self, start: int, end: int) -> bool:
        """Return whether the cells under one header are words, which may be broken into lines."""
        return end == start + 1 and self.columns[start].words

    def _line(self, start: int, end: int, row: "Sequence[Cell] | None" = None) -> "Text":
        """Return some neighbouring cells of a row, or the headers of their columns, in one line of fixed places."""
        from rich.text import Text

        line = Text()
        for index in range(start, end):
            column, text = self.columns[index], self._cell_text(index, row)
            if end > start + 1:
                widest = max(self._cell_text(index, other).cell_len for other in (None, *self.rows))
                text.align("left" if column.words else "right", widest)
            line = Text.assemble(line, _GAP if index > start else "", text)
        return line

    def _cell_text(self, index: int, row: "Sequence[Cell] | None") -> "Text":
        from rich.text import Text

        if row is None:
            return Text(self.columns[index].header)
        return Text(row[index].text, style="bold" if row[index].bold else "")

    def markdown(self) -> str:
        """Return it as Markdown, the best in bold."""
        lines = [f"**{markdown_text(self.title)}**", ""] if self.title else []
        lines.append(markdown_row(markdown_text(column.name) for column in self.columns))
        lines.append(markdown_row("---" if column.words else "---:" for column in self.columns))
        for row in self.rows:
            texts = (markdown_text(cell.text) for cell in row)
            lines.append(markdown_row(f"**{t}**" if cell.bold else t for t, cell in zip(texts, row, strict=True)))
        if self._shown_notes:
            lines += ["", *(f"- {markdown_text(note)}" for note in self._shown_notes)]
        return "\n".join(lines) + "\n"

    def latex(self, label: str = "") -> str:
        r"""Return it as a LaTeX table for the package booktabs, the best in \textbf, in a comment what a page cuts off.

        Args:
            label: what \ref calls it, behind "tab:"; by default it is made of the title.
        """
        lines = [f"% no room for {', '.join(gone)}: --columns chooses"] if (gone := self.left_out(_PAGE)) else []
        return "\n".join([*lines, *self._fitted(_PAGE)._latex(label or self.slug)]) + "\n"

    @property
    def slug(self) -> str:
        """The title in small letters, digits and hyphens."""
        return re.sub("[^a-z0-9]+", "-", self.title.lower()).strip("-")

    def _latex(self, label: str) -> list[str]:
        lines = [
            r"\begin{table}",
            r"  \centering",
            rf"  \caption{{{latex_text(self.title)}}}",
            rf"  \label{{tab:{label}}}",
            rf"  \begin{{tabular}}{{{''.join('l' if column.words else 'r' for column in self.columns)}}}",
            r"    \toprule",
            *self._latex_groups(),
            latex_row(latex_text(column.header) for column in self.columns),
            r"    \midrule",
        ]
        for row in self.rows:
            texts = (latex_text(cell.text) for cell in row)
            lines.append(latex_row(rf"\textbf{{{t}}}" if c.bold else t for t, c in zip(texts, row, strict=True)))
        lines += [r"    \bottomrule", r"  \end{tabular}"]
        if self._shown_notes:
            lines.append(rf"  \par\footnotesize {' '.join(sentence(latex_text(note)) for note in self._shown_notes)}")
        return [*lines, r"\end{table}"]

    def _groups(self) -> list[tuple[str, int, int]]:
        """Return the headers above headers, each with the columns that it spans: its first, and that after its last."""
        spans, start = [], 0
        for name, columns in groupby(self.columns, key=lambda column: column.group):
            end = start + len(list(columns))
            spans.append((name, start, end))
            start = end
        return spans

    def _spans(self) -> list[tuple[str, int, int]]:
        """Return the same with each column apart that has no header above its own."""
        return [
            span
            for name, start, end in self._groups()
            for span in ([(name, start, end)] if name else [("", index, index + 1) for index in range(start, end)])
        ]

    def _latex_groups(self) -> list[str]:
        spans = self._groups()
        if not any(name for name, _, _ in spans):
            return []
        cells = (rf"\multicolumn{{{end - start}}}{{c}}{{{latex_text(name)}}}" for name, start, end in spans)
        rules = " ".join(rf"\cmidrule(lr){{{start + 1}-{end}}}" for name, start, end in spans if name)
        return [latex_row(cells), f"    {rules}"]

    def html(self) -> str:
        """Return it as an HTML table, the best in <b>, that scrolls where it is wide, with its notes below.

        Cells of numbers are of class number, those of the first column, which stays in sight, of class first.
        """
        kinds = [_kind(column, index) for index, column in enumerate(self.columns)]
        rows = (
            "".join(f"<td{kind}>{_html(cell)}</td>" for kind, cell in zip(kinds, row, strict=True)) for row in self.rows
        )
        body = "\n".join(f"<tr>{row}</tr>" for row in rows)
        notes = "".join(f"<li>{html.escape(note)}</li>" for note in self._shown_notes)
        return (
            f'<p class="title">{html.escape(self.title)}</p>\n<div class="scroll" tabindex="0">\n<table>\n<thead>\n'
            f"{self._html_head(kinds)}\n</thead>\n<tbody>\n{body}\n</tbody>\n</table>\n</div>\n"
            + (f'<ul class="notes">{notes}</ul>\n' if notes else "")
        )

    def _html_head(self, kinds: Sequence[str]) -> str:
        """Return the rows of headers: those without one above them are two rows high, if there are any above others."""
        heads = [f"<th{kind}>{html.escape(c.header)}</th>" for kind, c in zip(kinds, self.columns, strict=True)]
        if not any(column.group for column in self.columns):
            return f"<tr>{''.join(heads)}</tr>"
        tops = (
            f'<th class="group" colspan="{end - start}">{html.escape(name)}</th>'
            if name
            else heads[start].replace("<th", '<th rowspan="2"', 1)
            for name, start, end in self._spans()
        )
        below = (head for head, column in zip(heads, self.columns, strict=True) if column.group)
        return f"<tr>{''.join(tops)}</tr>\n<tr>{''.join(below)}</tr>"

    def records(self) -> list[dict[str, Any]]:
        """Return its rows for programs."""
        return [dict(self.keys) | {k: v for cell in row for k, v in cell.values.items()} for row in self.rows]


def csv_text(tables: Iterable[Table]) -> str:
    """Return tables as one CSV file, in full precision; what is unknown is empty."""
    records = [record for table in tables for record in table.records()]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(key for record in records for key in record)), restval="")
    writer.writeheader()
    writer.writerows({key: "" if value != value else value for key, value in record.items()} for record in records)
    return text.getvalue().replace("\r\n", "\n")


def _spanning(name: str, width: int) -> str:
    """Return a header that stands above columns of some width together: in the middle of a line.

    >>> _spanning("MB", 10), _spanning("MB", 5)
    ('─── MB ───', '  MB ')
    """
    rule = "─" * ((width - len(name) - 2) // 2)
    return f"{rule} {name} {rule}".strip().center(width) if name and width else name


def _width(grid: "RichTable") -> int:
    """Return how wide a table is that nothing is broken in."""
    from rich.console import Console
    from rich.measure import Measurement

    console = Console(width=100_000)
    return Measurement.get(console, console.options, grid).maximum


def _least_width(table: Table, grid: "RichTable") -> int:
    """Return how narrow a table can be made by breaking words alone."""
    spare = 0
    for _, index, end in table._spans():
        if table._may_break(index, end):
            texts = [table.columns[index].header, *(row[index].text for row in table.rows)]
            spare += max(0, max(map(len, texts)) - _UNBROKEN)
    return _width(grid) - spare


def _kind(column: Column, index: int) -> str:
    """Return the attribute of a cell's classes."""
    classes = ["number"] * (not column.words) + ["first"] * (index == 0)
    return f' class="{" ".join(classes)}"' if classes else ""


def _html(cell: Cell) -> str:
    return f"<b>{html.escape(cell.text)}</b>" if cell.bold else html.escape(cell.text)
