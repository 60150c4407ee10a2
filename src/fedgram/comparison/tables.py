"""Tables that are made once and shown on a terminal, as Markdown, LaTeX, HTML and CSV."""

import csv
import html
import io
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table as RichTable

__all__ = ["Cell", "Column", "Table", "csv_text"]

_UNBROKEN = 12
"""Characters that a column of words keeps on a narrow terminal."""
_LATEX = {
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "|": r"\textbar{}",
    "^": r"\textasciicircum{}",
    **{sign: f"${sign}$" for sign in "<>"},
    "±": r"$\pm$",
}


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        header: what stands above it.
        group: what stands above that, once for neighbours that have it in common.
        words: whether it holds words, which stand on the left and may be broken into lines, and not numbers.
        rank: of columns that a narrow terminal has no room for, those of the highest rank go first, together; those
            of rank 0 always stay.
    """

    header: str
    group: str = ""
    words: bool = False
    rank: int = 0

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
    """

    text: str = "-"
    bold: bool = False
    values: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        title: what stands above it.
        columns: the columns.
        rows: the rows, a cell for each column.
        notes: what stands below it, a sentence or so each.
        keys: what a CSV file says in each of its rows besides.
    """

    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    notes: tuple[str, ...] = ()
    keys: Mapping[str, Any] = field(default_factory=dict)

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
        return Group(Text(self.title, style="italic"), grid, *(Text(note, style="dim") for note in self.notes))

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
        above, has_groups = "", any(column.group for column in self.columns)
        for column in self.columns:
            top = f"{column.group if column.group != above else ''}\n" if has_groups else ""
            grid.add_column(
                Text(f"{top}{column.header}"),
                justify="left" if column.words else "right",
                no_wrap=not column.words,
                overflow="fold",
            )
            above = column.group
        for row in self.rows:
            grid.add_row(*(Text(cell.text, style="bold" if cell.bold else "") for cell in row))
        return grid

    def markdown(self) -> str:
        """Return it as Markdown, the best in bold."""
        lines = [f"**{_markdown(self.title)}**", ""] if self.title else []
        lines.append(_markdown_row(_markdown(column.name) for column in self.columns))
        lines.append(_markdown_row("---" if column.words else "---:" for column in self.columns))
        for row in self.rows:
            texts = (_markdown(cell.text) for cell in row)
            lines.append(_markdown_row(f"**{t}**" if cell.bold else t for t, cell in zip(texts, row, strict=True)))
        if self.notes:
            lines += ["", *(f"- {_markdown(note)}" for note in self.notes)]
        return "\n".join(lines) + "\n"

    def latex(self) -> str:
        r"""Return it as a LaTeX table for the package booktabs, the best in \textbf."""
        lines = [
            r"\begin{table}",
            r"  \centering",
            rf"  \caption{{{_latex(self.title)}}}",
            rf"  \begin{{tabular}}{{{''.join('l' if column.words else 'r' for column in self.columns)}}}",
            r"    \toprule",
            *self._latex_groups(),
            _latex_row(_latex(column.header) for column in self.columns),
            r"    \midrule",
        ]
        for row in self.rows:
            texts = (_latex(cell.text) for cell in row)
            lines.append(_latex_row(rf"\textbf{{{t}}}" if c.bold else t for t, c in zip(texts, row, strict=True)))
        lines += [r"    \bottomrule", r"  \end{tabular}"]
        if self.notes:
            lines.append(rf"  \par\footnotesize {' '.join(_sentence(_latex(note)) for note in self.notes)}")
        return "\n".join([*lines, r"\end{table}"]) + "\n"

    def _groups(self) -> list[tuple[str, int, int]]:
        """Return the headers above headers, each with the columns that it spans: its first, and that after its last."""
        spans, start = [], 0
        for name, columns in groupby(self.columns, key=lambda column: column.group):
            end = start + len(list(columns))
            spans.append((name, start, end))
            start = end
        return spans

    def _latex_groups(self) -> list[str]:
        spans = self._groups()
        if not any(name for name, _, _ in spans):
            return []
        cells = (rf"\multicolumn{{{end - start}}}{{c}}{{{_latex(name)}}}" for name, start, end in spans)
        rules = " ".join(rf"\cmidrule(lr){{{start + 1}-{end}}}" for name, start, end in spans if name)
        return [_latex_row(cells), f"    {rules}"]

    def html(self) -> str:
        """Return it as an HTML table with its notes below, the best in <b>; cells of numbers are of class number."""
        tops = "".join(f'<th colspan="{end - start}">{html.escape(name)}</th>' for name, start, end in self._groups())
        kinds = ["" if column.words else ' class="number"' for column in self.columns]
        heads = "".join(f"<th{k}>{html.escape(c.header)}</th>" for k, c in zip(kinds, self.columns, strict=True))
        rows = (
            "".join(f"<td{kind}>{_html(cell)}</td>" for kind, cell in zip(kinds, row, strict=True)) for row in self.rows
        )
        body = "\n".join(f"<tr>{row}</tr>" for row in rows)
        notes = "".join(f"<li>{html.escape(note)}</li>" for note in self.notes)
        return (
            f"<table>\n<caption>{html.escape(self.title)}</caption>\n<thead>\n<tr>{tops}</tr>\n<tr>{heads}</tr>\n"
            f"</thead>\n<tbody>\n{body}\n</tbody>\n</table>\n" + (f'<ul class="notes">{notes}</ul>\n' if notes else "")
        )

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


def _width(grid: "RichTable") -> int:
    """Return how wide a table is that nothing is broken in."""
    from rich.console import Console
    from rich.measure import Measurement

    console = Console(width=100_000)
    return Measurement.get(console, console.options, grid).maximum


def _least_width(table: Table, grid: "RichTable") -> int:
    """Return how narrow a table can be made by breaking words alone."""
    spare = 0
    for index, column in enumerate(table.columns):
        if column.words:
            texts = [column.header, *(row[index].text for row in table.rows)]
            spare += max(0, max(map(len, texts)) - _UNBROKEN)
    return _width(grid) - spare


def _markdown_row(texts: Iterable[str]) -> str:
    return f"| {' | '.join(texts)} |"


def _markdown(text: str) -> str:
    return re.sub(r"([\\|*<])", r"\\\1", text)


def _latex_row(texts: Iterable[str]) -> str:
    return rf"    {' & '.join(texts)} \\"


def _latex(text: str) -> str:
    """Return a text with what LaTeX reads as commands escaped, minus signs and powers of ten in mathematics."""
    escaped = "".join(_LATEX.get(character, character) for character in text)
    escaped = re.sub(r"(?<![\w.])-(?=\d)", "$-$", escaped)
    return re.sub(r"\b(\d+(?:\.\d+)?)e(-?\d+)\b", r"$\1\\times10^{\2}$", escaped)


def _sentence(text: str) -> str:
    return text if text.endswith(".") else f"{text}."


def _html(cell: Cell) -> str:
    return f"<b>{html.escape(cell.text)}</b>" if cell.bold else html.escape(cell.text)
