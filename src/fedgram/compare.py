"""Tables over runs, read from their folders."""

import argparse
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedgram.errors import DataError

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["comparison", "find_runs", "main"]

Summary = dict[str, Any]


def find_runs(paths: Iterable[Path]) -> list[tuple[Path, Summary]]:
    """Return the folders below some paths that hold a finished run, with what their summary.json says.

    Raises:
        DataError: there is none.
    """
    paths = list(paths)
    found = {file.parent: file for path in paths for file in sorted(path.rglob("summary.json"))}
    if not found:
        raise DataError(
            f"no finished run below {', '.join(map(str, paths))}: there is no summary.json; run fedgram fit"
        )
    return [(folder, json.loads(file.read_text())) for folder, file in found.items()]


def comparison(runs: Sequence[tuple[Path, Summary]]) -> "Table":
    """Return a table with one row per run: the metric before and after, what was sent, and the time."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    metric = _metric(runs[0][1])
    table = Table(title=f"{runs[0][1]['task']}, {runs[0][1]['rounds']} rounds", box=SIMPLE_HEAD, padding=(0, 1))
    table.add_column("run", no_wrap=True)
    for column in (f"{metric}\nbefore", "\nafter", "numbers\nup", "\ndown", "MB\nup", "\ndown", "seconds"):
        table.add_column(column, justify="right", no_wrap=True)
    for folder, summary in runs:
        table.add_row(f"{summary['method']} [dim]{folder.name}[/dim]", *_cells(summary, metric))
    return table


def _metric(summary: Summary) -> str:
    """Return the first metric that is not the loss."""
    return next((key for key in summary["final"] if key != "loss"), "loss")


def _cells(summary: Summary, metric: str) -> list[str]:
    def share(when: str) -> str:
        value = summary[when].get(metric)
        return "-" if value is None else f"{value:.4f}"

    return [
        share("initial"),
        share("final"),
        f"{summary['parameters_up']:,}",
        f"{summary['parameters_down']:,}",
        f"{summary['bytes_up'] / 1e6:.2f}",
        f"{summary['bytes_down'] / 1e6:.2f}",
        f"{summary['seconds']:.1f}",
    ]


def main(arguments: Sequence[str]) -> None:
    """Run ``fedgram compare``."""
    from rich.console import Console

    parser = argparse.ArgumentParser("fedgram compare", description="Compare finished runs in a table.")
    parser.add_argument("runs", nargs="*", type=Path, default=[Path("runs")], help="folders of runs, or above them")
    parser.add_argument("--debug", action="store_true", help="show tracebacks of errors")
    runs = find_runs(parser.parse_args(arguments).runs)
    console = Console()
    console.print(comparison(runs))
    roots = sorted({str(folder.parent.parent) for folder, _ in runs})
    console.print(f"curves: tensorboard --logdir {roots[0] if len(roots) == 1 else '.'}")
