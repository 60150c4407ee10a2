"""Tables in Markdown."""

from collections.abc import Collection, Sequence

__all__ = ["markdown_table"]


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]], numbers: Collection[str]) -> list[str]:
    """Return the lines of a table, of which some columns, by their heads, hold numbers.

    >>> markdown_table(["method", "up"], [["FedIT", "128"]], numbers=["up"])
    ['| method | up |', '|---|---:|', '| FedIT | 128 |']
    """
    rule = "|" + "".join("---:|" if name in numbers else "---|" for name in head)
    return [f"| {' | '.join(head)} |", rule, *(f"| {' | '.join(row)} |" for row in rows)]
