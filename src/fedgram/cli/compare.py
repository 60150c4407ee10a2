"""``fedgram compare``: tables, pictures and a report over finished runs, and the paper's numbers beside them."""

import argparse
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from fedgram.cli.arguments import OneLineParser
from fedgram.comparison import Group, Run, check_comparable, find_difference, group_runs, read_runs
from fedgram.comparison.caveats import caveats
from fedgram.comparison.figures import is_share
from fedgram.comparison.judgement import SPLITS, Judgement, judged, lacking
from fedgram.comparison.overview import View, group_tables, run_table
from fedgram.comparison.panels import PICTURE_TYPES, save_picture
from fedgram.comparison.paper import check_matches, group_for_paper, load, match
from fedgram.comparison.paper_tables import paper_tables
from fedgram.comparison.selection import select
from fedgram.comparison.statistics import INTERVALS
from fedgram.comparison.tables import Table, csv_text
from fedgram.errors import ConfigurationError, DataError, OutputError
from fedgram.files import atomic_write

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["main", "make_parser"]

_UNBOUNDED = 1000
"""Characters of a line where nobody looks at a terminal: room for all columns."""
_DESCRIPTION = """\
Compare finished runs. Runs that differ in the seed alone are repetitions of one: of those, the table tells the mean
with its 95 % interval, what sets it apart from the best other method, and what it cost. Runs of other data, tasks,
partitions or backbones are refused, with the difference.
"""
_EXAMPLES = """\
examples:
  fedgram compare                                        every run below runs/
  fedgram compare runs/quickstart --target 0.75          what each method takes to an accuracy of 75 %
  fedgram compare runs/paper_table4 --by task --by rank  a table for each task and rank
  fedgram compare runs --metric f1 --interval bootstrap
  fedgram compare runs --split test                      what fedgram test has found, after each run's best round
  fedgram compare runs --each                            a row for each run, whatever it is of
  fedgram compare runs --columns method,accuracy,megabytes_up,seconds --sort -megabytes_up
  fedgram compare runs --csv runs.csv --latex runs.tex --plot curves.svg
  fedgram compare runs --report report.html              tables, pictures and settings in one file
  fedgram compare runs/paper_table1 --paper table1       FLoRG's paper beside your runs

Of runs of equal settings and seed, the last version counts. With few seeds prefer --interval t: the bootstrap of three
is too narrow. On a narrow terminal, and on a page of LaTeX, some columns are left out: --columns chooses. The other
files have them all, and --csv has them in full precision.
"""


@dataclass(frozen=True)
class _Answer:
    """What a comparison says: of which groups, in which tables, and what weakens it."""

    view: View
    groups: Sequence[Group]
    tables: Sequence[Table]
    warnings: Sequence[str]


def main(arguments: Sequence[str]) -> None:
    """Run ``fedgram compare``.

    Raises:
        UsageError: an option can't be understood.
        DataError: the runs can't be read or compared.
        ConfigurationError: options contradict each other.
        OutputError: a file can't be written.
    """
    from rich.console import Console

    given = make_parser().parse_args(_with_minus(arguments))
    _check_options(given)
    runs = read_runs(given.runs)
    judgement = Judgement.of(given.split, given.at, runs)
    runs = judged(runs, judgement)
    _check_metric(runs, given.metric, given.target)
    answer = _answer(given, runs, judgement)
    answer = replace(answer, tables=select(answer.tables, given.columns, given.sort))
    console = Console()
    _show(console, answer)
    for path in _write(given, answer):
        console.print(f"written: {path}", markup=False, highlight=False, soft_wrap=True)
    root = given.runs[0] if len(given.runs) == 1 else os.path.commonpath([path.resolve() for path in given.runs])
    console.print(f"curves: tensorboard --logdir {root}", markup=False, highlight=False, soft_wrap=True)


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of ``fedgram compare``."""
    parser = OneLineParser(
        "fedgram compare",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("runs", nargs="*", type=Path, default=[Path("runs")], help="folders of runs, or above them")
    what = parser.add_argument_group("what is compared")
    what.add_argument(
        "--by",
        action="append",
        default=[],
        metavar="KEY",
        help="a table for each value of a setting: rank, rho, participation, task, lr or another; may be given again",
    )
    what.add_argument("--metric", metavar="M", help="accuracy, f1, loss or what else was evaluated; or the task's")
    what.add_argument(
        "--target",
        type=float,
        metavar="X",
        help="rounds, parameters, megabytes and FLOPs until the metric is at least X (a loss: at most X), such as 0.8",
    )
    what.add_argument(
        "--interval", choices=list(INTERVALS), default="t", help="how intervals over seeds are made; default: t"
    )
    what.add_argument("--each", action="store_true", help="a row for each run instead of means over seeds")
    what.add_argument(
        "--split",
        choices=SPLITS,
        help="judge by this split: validation by default, or test, as fedgram test has found",
    )
    what.add_argument(
        "--at",
        choices=("last", "best"),
        help="judge after the last round, or the best one by the validation split; default: last, and of test best",
    )
    what.add_argument(
        "--columns", metavar="A,B", help="these columns, in this order, by the names that a wrong one lists"
    )
    what.add_argument(
        "--sort", metavar="[-]COLUMN", help="sort by a column, with a minus from the highest down; default: best first"
    )
    what.add_argument("--paper", metavar="TABLE", help="FLoRG's paper beside your runs: table1 to table12")
    what.add_argument("--force", action="store_true", help="compare runs that can't be, and say what differs")
    files = parser.add_argument_group("files")
    files.add_argument("--csv", type=Path, metavar="FILE", help="the tables for programs, in full precision")
    files.add_argument("--markdown", type=Path, metavar="FILE", help="the tables as Markdown")
    files.add_argument("--latex", type=Path, metavar="FILE", help="the tables as LaTeX, for the package booktabs")
    files.add_argument("--plot", type=Path, metavar="FILE", help="curves by round and by MB: .png, .svg or .pdf")
    files.add_argument("--pictures", type=Path, metavar="FOLDER", help="all pictures, as PNG and SVG")
    files.add_argument("--report", type=Path, metavar="FILE", help="one HTML file with tables, pictures and settings")
    return parser


def _with_minus(arguments: Sequence[str]) -> list[str]:
    """Join ``--sort -COLUMN``, where argparse would take the second for an option."""
    text = "\0".join(arguments)  # which no argument can hold
    return re.sub(r"(?<![^\0])--sort\0(-[^-\0])", r"--sort=\1", text).split("\0") if text else []


def _check_options(given: argparse.Namespace) -> None:
    """Refuse what can't be asked for together, before anything is read."""
    if given.plot is not None and given.plot.suffix not in PICTURE_TYPES:
        raise ConfigurationError(f"--plot {given.plot}: the name must end in one of {', '.join(PICTURE_TYPES)}")
    asked = {"by": given.by, "metric": given.metric, "target": given.target is not None, "each": given.each}
    asked |= {option: getattr(given, option) is not None for option in ("columns", "sort", "split", "at")}
    if given.paper:
        load(given.paper)
        if others := [option for option, is_asked in asked.items() if is_asked]:
            raise ConfigurationError(f"--{others[0]} can't be given with --paper: its tables say what they are of")
    if given.each and given.target is not None:
        raise ConfigurationError("--target can't be given with --each: it is told of methods, so leave one of them out")


def _check_metric(runs: Sequence[Run], metric: str | None, target: float | None) -> None:
    known = dict.fromkeys(key for run in runs for key in (*run.summary["final"], *run.judged_by))
    if metric is not None and metric not in known:
        raise DataError(f"--metric {metric}: no run was evaluated so; there are {', '.join(known)}")
    counts = metric or runs[0].metric
    if target is not None and is_share(counts) and not 0 <= target <= 1:
        raise ConfigurationError(f"--target {target:g}: {counts} is a share, so give it between 0 and 1, such as 0.8")


def _answer(given: argparse.Namespace, runs: Sequence[Run], judgement: Judgement) -> _Answer:
    if given.paper:
        return _paper_answer(given, runs)
    view = View(given.metric, given.target, given.interval, tuple(given.by), judgement)
    groups, without = group_runs(runs, view.by), lacking(runs, judgement)
    if not given.each:
        warnings = [*without, *_checked(groups, given.force)]
        return _Answer(view, groups, group_tables(groups, view), [*warnings, *caveats(groups, view)])
    warnings = without + (_checked(groups, given.force) if given.plot or given.pictures or given.report else [])
    by_task: dict[str, list[Run]] = {}
    for run in runs:
        by_task.setdefault(str(run.summary["task"]), []).append(run)
    tables = [run_table(of_task, view.metric, judgement) for of_task in by_task.values()]
    return _Answer(view, groups, tables, warnings)


def _paper_answer(given: argparse.Namespace, runs: Sequence[Run]) -> _Answer:
    table = load(given.paper)
    by, groups = group_for_paper(runs)
    matches = match(table, groups, by)
    check_matches(table, matches, runs)
    fitting = {run for own in matches for found in own.groups.values() for group in found for run in group.runs}
    used = [group for group in groups if fitting.issuperset(group.runs)]
    view = View(interval=given.interval, by=by)
    warnings = [*_checked(used, given.force), *(caveats(used, view) if table.is_of_metrics else [])]
    return _Answer(view, used, paper_tables(table, matches, given.interval), warnings)


def _checked(groups: Sequence[Group], force: bool) -> list[str]:
    """Refuse groups that can't be compared, or if that is not wanted, return what differs."""
    if not force:
        check_comparable(groups)
    difference = find_difference(groups)
    return [difference] if difference else []


def _show(console: "Console", answer: _Answer) -> None:
    """Print the tables, as wide as the terminal or, into a file, as they are, and the warnings."""
    width = console.width if console.is_terminal or "COLUMNS" in os.environ else _UNBOUNDED
    for table in answer.tables:
        console.print(table.rich(width), crop=False)
        console.print()
    left_out = dict.fromkeys(name for table in answer.tables for name in table.left_out(width))
    if left_out:
        where = "a wider terminal shows them, and so do --columns, --csv and --markdown"
        text = f"No room for {', '.join(left_out)}: {where}."
        console.print(text, markup=False, highlight=False, style="dim")
    for warning in answer.warnings:
        console.print(f"warning: {warning}", markup=False, highlight=False, style="yellow")


def _write(given: argparse.Namespace, answer: _Answer) -> list[Path]:
    """Write the files that are asked for, and return their paths."""
    written: list[Path] = []
    for option, write in _WRITERS.items():
        path = getattr(given, option)
        try:
            written += write(path, answer) if path is not None else []
        except OutputError as error:
            raise OutputError(f"--{option}: {error}") from error
    return written


def _write_csv(path: Path, answer: _Answer) -> list[Path]:
    atomic_write(path, csv_text(answer.tables).encode())
    return [path]


def _write_markdown(path: Path, answer: _Answer) -> list[Path]:
    atomic_write(path, "\n".join(table.markdown() for table in answer.tables).encode())
    return [path]


def _write_latex(path: Path, answer: _Answer) -> list[Path]:
    labels: list[str] = []
    for table in answer.tables:
        count = sum(other.slug == table.slug for other in answer.tables[: len(labels)])
        labels.append(f"{table.slug}-{count + 1}" if count else table.slug)
    texts = (table.latex(label) for table, label in zip(answer.tables, labels, strict=True))
    atomic_write(path, "\n".join(texts).encode())
    return [path]


def _write_plot(path: Path, answer: _Answer) -> list[Path]:
    from fedgram.comparison.pictures import draw_curves

    save_picture(draw_curves(answer.groups, answer.view.metric, answer.view.by), path)
    return [path]


def _write_pictures(path: Path, answer: _Answer) -> list[Path]:
    from fedgram.comparison.pictures import write_pictures

    return write_pictures(answer.groups, path, answer.view.metric, answer.view.by, answer.view.judgement)


def _write_report(path: Path, answer: _Answer) -> list[Path]:
    from fedgram.comparison.report import write_report

    write_report(path, answer.groups, answer.tables, answer.view, answer.warnings)
    return [path]


_WRITERS: Mapping[str, Callable[[Path, _Answer], list[Path]]] = {
    "csv": _write_csv,
    "markdown": _write_markdown,
    "latex": _write_latex,
    "plot": _write_plot,
    "pictures": _write_pictures,
    "report": _write_report,
}
"""What writes the file, or the files, that an option asks for."""
