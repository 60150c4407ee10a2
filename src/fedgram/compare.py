"""Tables and pictures over runs, read from their folders."""

import argparse
import csv
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedgram.errors import DataError

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.table import Table

__all__ = ["comparison", "draw", "find_runs", "main"]

Summary = dict[str, Any]

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_PICTURES = (".png", ".svg", ".pdf")
_LINES = ("-", "--", "-.", ":")


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
    return [(folder, _read(file)) for folder, file in found.items()]


def _read(file: Path) -> Summary:
    try:
        return dict(json.loads(file.read_text()))
    except ValueError as error:
        raise DataError(f"{file} is damaged ({error}); run it again, or leave its folder out") from error


def comparison(runs: Sequence[tuple[Path, Summary]]) -> "Table":
    """Return a table with one row per run: the metric before and after, what was sent, and the time."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    metric = _metric(runs[0][1])
    table = Table(
        title=_title(runs), box=SIMPLE_HEAD, padding=(0, 1), pad_edge=False, collapse_padding=True, show_edge=False
    )
    table.add_column("run", no_wrap=True)
    for column in (f"{metric}\nbefore", "\nafter", "parameters\nup", "\ndown", "MB\nup", "\ndown", "seconds"):
        table.add_column(column, justify="right", no_wrap=True)
    for folder, summary in runs:
        mark = "*" if summary.get("personal_evaluation") == "own" else ""
        table.add_row(f"{summary['method']}{mark} [dim]{folder.name}[/dim]", *_cells(summary, metric))
    if any(summary.get("personal_evaluation") == "own" for _, summary in runs):
        table.caption = "* models of clients, each on its own share of the split: not to be compared with one model's"
    return table


def _title(runs: Sequence[tuple[Path, Summary]]) -> str:
    return "; ".join(dict.fromkeys(f"{summary['task']}, {summary['rounds']} rounds" for _, summary in runs))


def draw(runs: Sequence[tuple[Path, Summary]]) -> "Figure":
    """Return a picture of the metric against the round and against the megabytes sent, one line per run.

    Runs of one method share a colour (of Okabe and Ito's palette, told apart by the colour-blind) and a line style.
    """
    from matplotlib.figure import Figure

    metric = _metric(runs[0][1])
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    methods = list(dict.fromkeys(summary["method"] for _, summary in runs))
    for folder, summary in runs:
        number = methods.index(summary["method"])
        style = {"color": _COLOURS[number % len(_COLOURS)], "linestyle": _LINES[number % len(_LINES)], "marker": "."}
        rows = _evaluated(folder / "metrics.csv", metric)
        values = [float(row[metric]) for row in rows]
        axes[0].plot([int(row["round"]) for row in rows], values, label=summary["method"], **style)
        axes[1].plot([float(r["megabytes_up"]) + float(r["megabytes_down"]) for r in rows], values, **style)
    axes[0].set(xlabel="round", ylabel=f"{metric} ({runs[0][1]['task']})")
    axes[1].set(xlabel="megabytes sent, up and down, all clients")
    handles = dict(zip(*reversed(axes[0].get_legend_handles_labels()), strict=True))
    axes[0].legend(handles.values(), handles.keys())
    return figure


def _evaluated(file: Path, metric: str) -> list[dict[str, str]]:
    with file.open(newline="") as lines:
        return [row for row in csv.DictReader(lines) if row.get(metric)]


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

    parser = argparse.ArgumentParser("fedgram compare", description="Compare finished runs in a table and a picture.")
    parser.add_argument("runs", nargs="*", type=Path, default=[Path("runs")], help="folders of runs, or above them")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the curves as well: .png, .svg or .pdf")
    given = parser.parse_args(arguments)
    runs = find_runs(given.runs)
    console = Console()
    console.print(comparison(runs))
    if given.plot is not None:
        if given.plot.suffix not in _PICTURES:
            raise DataError(f"--plot {given.plot}: the name must end in one of {', '.join(_PICTURES)}")
        given.plot.parent.mkdir(parents=True, exist_ok=True)
        draw(runs).savefig(given.plot, dpi=120)
        console.print(f"picture: {given.plot}")
    roots = sorted({str(folder.parent.parent) for folder, _ in runs})
    console.print(f"curves: tensorboard --logdir {roots[0] if len(roots) == 1 else '.'}")
