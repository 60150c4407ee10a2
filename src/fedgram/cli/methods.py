"""``fedgram methods``: every method, where it comes from, what it sends, and how much of it for a given backbone."""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from fedgram.cli.arguments import OneLineParser
from fedgram.method_facts import read_methods

if TYPE_CHECKING:
    from fedgram.cost import Payloads

__all__ = ["Entry", "entries", "main"]

_DESCRIPTION = (
    "List all methods: paper, what travels, whether aggregation is exact, and whether clients may differ in rank."
)
_EXAMPLES = """\
With options of fit it also tells how many parameters one client sends and is sent in a round (adapters, without the
head; after the first round, to a client that has missed none; the most, where only training can tell):

  fedgram methods
  fedgram methods --config configs/quickstart.yaml
  fedgram methods --config configs/roberta_qnli.yaml --method.rank 8
  fedgram fit --method.help FLoRG        what a method's own options are
"""


@dataclass(frozen=True)
class Entry:
    """What is told of a kind of a method.

    Attributes:
        name: of the method, and of the kind where it has several.
        paper: authors and year.
        arxiv: its number there.
        travels: what is sent.
        exact: whether the server's ΔW is the weighted mean of the clients'.
        heterogeneous: whether clients may have ranks of their own.
        sent: parameters of one client's adapters up and down in a round, the most where only training can tell; None
            where there is no backbone.
    """

    name: str
    paper: str
    arxiv: str
    travels: str
    exact: bool
    heterogeneous: bool
    sent: tuple[int, int] | None = None

    def cells(self) -> list[str]:
        """Return the cells of its row."""
        told = [self.name, self.paper, self.arxiv, self.travels, _yes(self.exact), _yes(self.heterogeneous)]
        return told + ([] if self.sent is None else [f"{count:,}" for count in self.sent])


def _yes(flag: bool) -> str:
    return "yes" if flag else "-"


_WIDTH = 116
"""Columns of a terminal that all cells fit into."""
_NOTE = "exact: the server's update is the mean of the clients'; ranks: clients may differ in rank"
_HEAD = ["method", "paper", "arXiv", "travels", "exact", "ranks"]
_SENT = ["up", "down"]


def entries(sent: "Mapping[str, Payloads] | None" = None) -> list[Entry]:
    """Return what is told of every kind of every method.

    Args:
        sent: what is sent, by the name of the kind.
    """
    return [
        Entry(
            name,
            f"{method.paper.authors}, {method.paper.year}",
            method.paper.arxiv or "-",
            method.travels,
            method.exact,
            method.heterogeneous,
            None if sent is None else (sent[name].most["up"].adapter, sent[name].most["down"].adapter),
        )
        for method in read_methods()
        for name in method.variants or [method.name]
    ]


def main(given: Sequence[str]) -> None:
    """Run ``fedgram methods``.

    Raises:
        FedgramError: the options can't be understood, or a method does not fit the backbone.
    """
    parser = OneLineParser(
        "fedgram methods",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--markdown", action="store_true", help="print a Markdown table")
    options, further = parser.parse_own(given)
    sent = None
    if further:
        from fedgram.cli.lightning import traffic_of

        sent = traffic_of(further)
    _print(entries(sent), markdown=options.markdown)


def _print(rows: Sequence[Entry], *, markdown: bool) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    from fedgram.markdown import markdown_table

    head = _HEAD + ([] if rows[0].sent is None else _SENT)
    console = Console()
    if markdown:
        lines = markdown_table(head, [row.cells() for row in rows], numbers=_SENT)
        console.print("\n".join(lines), soft_wrap=True, markup=False, highlight=False)
        return
    table = Table(box=SIMPLE_HEAD, padding=(0, 1), pad_edge=False, show_edge=False)
    for name in head:
        justify: Literal["left", "right"] = "right" if name in _SENT else "left"
        table.add_column(name, justify=justify, no_wrap=name != "travels", min_width=20 if name == "travels" else None)
    for row in rows:
        table.add_row(*row.cells())
    console.width = max(console.width, _WIDTH)
    console.print(table)
    console.print(_NOTE, style="dim")
