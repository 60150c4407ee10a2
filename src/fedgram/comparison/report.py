"""One HTML file with all that a comparison says."""

import html
from collections.abc import Sequence
from pathlib import Path

from fedgram.comparison.runs import Group
from fedgram.comparison.tables import Table
from fedgram.files import atomic_write

__all__ = ["write_report"]


def write_report(
    path: Path,
    groups: Sequence[Group],  # noqa: ARG001
    tables: Sequence[Table],
    metric: str | None,  # noqa: ARG001
    by: Sequence[str],  # noqa: ARG001
    warnings: Sequence[str],
) -> None:
    """Write a report."""
    items = "".join(f"<li>{html.escape(warning)}</li>" for warning in warnings)
    content = "\n".join(table.html() for table in tables)
    atomic_write(path, f"<!doctype html>\n<meta charset=utf-8>\n{content}<ul>{items}</ul>\n".encode())
