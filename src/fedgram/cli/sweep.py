"""``fedgram sweep``: run all of a sweep, list it, or write it as a SLURM job array."""

import argparse
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fedgram.cli.arguments import OneLineParser
from fedgram.errors import ConfigurationError, FedgramError, explain
from fedgram.packaged import find_sweep
from fedgram.sweep.array import write_array
from fedgram.sweep.plan import Point, Sweep, read_sweep
from fedgram.sweep.runner import Outcome, Progress, run_all
from fedgram.sweep.status import command, look, remember

if TYPE_CHECKING:
    from rich.console import Console

    from fedgram.cost import Estimate

__all__ = ["choices_of", "main", "make_parser", "overrides_of"]

_COLUMNS = ("up", "down", "client FLOPs", "memory")
"""What `--dry_run` tells of a run: bytes of all clients in all rounds, their operations, and a rank's memory."""
_WIDTH = 70
"""Characters of a line of its table besides the run's name, which no terminal shall cut off."""

_DESCRIPTION = """\
Run every point of a grid that has not finished yet: methods x seeds x anything. What was cut off goes on, what failed
does not stop the rest, and a second call does what the first left undone.
"""
_EXAMPLES = """\
All other options are options of fit, for every run; {axis} stands for a run's label on that axis of the grid:

  fedgram init sweep                        writes an example
  fedgram sweep quickstart                  one that comes with fedgram
  fedgram sweep configs/sweeps/quickstart.yaml --dry_run
  fedgram sweep configs/sweeps/paper_table1.yaml --small --data.path 'glue/{task}' --jobs 2
  fedgram sweep configs/sweeps/paper_table1.yaml --only model=roberta_large --only task=rte,wnli
  fedgram sweep configs/sweeps/paper_table1.yaml --slurm table1.sbatch && sbatch table1.sbatch
  fedgram compare runs/quickstart
"""


def main(given: Sequence[str]) -> None:
    """Run ``fedgram sweep``.

    Raises:
        ConfigurationError: the sweep or an option can't be understood.
        SystemExit: with 1 where a run failed, 130 after Ctrl-C, 75 after SIGTERM.
    """
    parser = make_parser()
    options, further = parser.parse_own(given)
    options.file = find_sweep(options.file)
    sweep = read_sweep(options.file, small=options.small, further=overrides_of(further)).only(choices_of(options.only))
    root = options.default_root_dir / sweep.name
    if options.print_command is not None:
        _print_command(sweep, root, options.print_command)
    elif options.dry_run:
        _list(sweep, root)
    elif options.slurm:
        _write_array(sweep, root, options.slurm, _again(options, further))
    else:
        _run(sweep, root, options.jobs)


def make_parser() -> OneLineParser:
    """Return the parser of ``fedgram sweep``, which leaves the options of fit over."""
    parser = OneLineParser(
        "fedgram sweep",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "file", type=Path, help="the sweep: a base config and a grid; or the name of one of fedgram's, as quickstart"
    )
    parser.add_argument("--small", action="store_true", help="with the small models that the file names for it")
    parser.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="AXIS=LABEL,...",
        help="the runs with one of these labels on an axis of the grid; may be given for several axes",
    )
    parser.add_argument("--jobs", type=_positive, default=1, metavar="N", help="runs at a time, which share the cores")
    parser.add_argument(
        "--dry_run", action="store_true", help="list the runs, how far they are and what they will cost"
    )
    parser.add_argument("--slurm", type=Path, metavar="FILE", help="write a SLURM job array instead of running")
    parser.add_argument("--default_root_dir", type=Path, default=Path("runs"), help="where the sweep has its folder")
    parser.add_argument("--print_command", type=int, metavar="N", help="print the command of run N, or nothing if done")
    return parser


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a number of at least 1, got {text}")
    return int(text)


def overrides_of(further: Sequence[str]) -> dict[str, str]:
    """Return options of fit, given as ``--key value`` or ``--key=value``, by key."""
    found: dict[str, str] = {}
    rest = list(further)
    while rest:
        key, equals, value = rest.pop(0).partition("=")
        if not key.startswith("--") or not (equals or rest):
            raise ConfigurationError(f"{key}: expected an option of fit with its value, such as --trainer.rounds 5")
        found[key.removeprefix("--")] = value if equals else rest.pop(0)
    return found


def _again(options: argparse.Namespace, further: Sequence[str]) -> list[str]:
    """Return the arguments that mean the same runs of the same sweep."""
    small = ["--small"] if options.small else []
    only = [word for choice in options.only for word in ("--only", choice)]
    root = ["--default_root_dir", str(options.default_root_dir)]
    return [str(options.file), *small, *only, *root, *further]


def choices_of(only: Sequence[str]) -> dict[str, list[str]]:
    """Return the labels that were asked for, by axis."""
    found: dict[str, list[str]] = {}
    for choice in only:
        axis, equals, labels = choice.partition("=")
        if not equals:
            raise ConfigurationError(f"--only {choice}: expected an axis and labels, such as method=FLoRG,FedIT")
        found.setdefault(axis, []).extend(labels.split(","))
    return found


def _print_command(sweep: Sweep, root: Path, number: int) -> None:
    if not 0 <= number < len(sweep.points):
        raise ConfigurationError(f"--print_command {number}: the sweep's runs are 0 to {len(sweep.points) - 1}")
    point = sweep.points[number]
    standing = look(point, root)
    if standing.state != "finished":
        remember(point, root, standing)
        sys.stdout.write(shlex.join(command(point, root, standing)) + "\n")


def _write_array(sweep: Sweep, root: Path, path: Path, given: Sequence[str]) -> None:
    tasks = [number for number, point in enumerate(sweep.points) if look(point, root).state != "finished"]
    if not tasks:
        raise ConfigurationError(f"all {len(sweep.points)} runs are finished; compare them: fedgram compare {root}")
    write_array(path, sweep.name, root, [sys.executable, "-m", "fedgram", "sweep", *given], tasks, len(tasks))
    _console().print(f"{len(tasks)} runs: sbatch {path}", soft_wrap=True)


def _list(sweep: Sweep, root: Path) -> None:
    """Print how far each run is and what it will cost by `fedgram.cost`, told once for all seeds."""
    from rich.table import Table

    console = _console()
    table = Table(box=None, padding=(0, 2, 0, 0))
    for name, side in (("run", "right"), ("name", "left"), ("state", "left"), *((name, "right") for name in _COLUMNS)):
        table.add_column(name, justify=side, no_wrap=True)  # type: ignore[arg-type]
    costs = _Costs()
    with console.status("") as status:
        for number, point in enumerate(sweep.points):
            status.update(f"what {point.name} costs ({number} of {len(sweep.points)})")
            state = look(point, root).state
            table.add_row(str(number), point.name, state, *costs.of(point, is_left=state != "finished"))
    console.width = max(console.width, _WIDTH + max(len(point.name) for point in sweep.points))
    console.print(table)
    for line in costs.remarks():
        console.print(line, soft_wrap=True, markup=False, highlight=False, style="dim")


class _Costs:
    """What runs cost, each kind of run told once, and the sum of those that are left."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, ...], Estimate | None] = {}
        self._left = [0, 0, 0]
        self._not_in_sum = 0
        self._reasons: dict[str, str] = {}
        self._is_auto = self._is_range = False

    def of(self, point: Point, is_left: bool) -> list[str]:
        """Return a run's cells."""
        from fedgram.cost.tables import bytes_of, short

        estimate = self._estimate(point)
        if estimate is None:
            self._not_in_sum += is_left
            return ["-"] * len(_COLUMNS)
        (cost,), setting = estimate.costs, estimate.setting
        flops = cost.all_flops
        self._is_auto |= setting.auto
        for index, figure in enumerate((cost.all_up.bytes, cost.all_down.bytes, flops or 0)):
            self._left[index] += figure * is_left
        self._is_range |= bool(cost.unknown and is_left)
        sent = (bytes_of(cost, name) for name in ("all_up", "all_down"))
        return [*sent, short(flops), short(cost.memory.total, "B")]

    def remarks(self) -> list[str]:
        """Return what stands below the table."""
        from fedgram.cost.tables import short

        up, down, flops = self._left
        lines = [f"what is left: {short(up, 'B')} up, {short(down, 'B')} down, {short(flops)} client FLOPs"]
        if self._is_range:
            lines[0] += ", at most: of some methods only training can tell what is sent"
        if self._not_in_sum:
            lines[0] += f", and {self._not_in_sum} runs of which it can't be told"
        lines.append("by fedgram cost, for the first seed, and samples as long as data.max_length")
        if self._is_auto:
            lines.append("memory: of one client at a time, where trainer.clients_per_block is auto")
        return [*lines, *(f"{name}: {reason}" for name, reason in self._reasons.items())]

    def _estimate(self, point: Point) -> "Estimate | None":
        key = tuple(setting for setting in point.settings if not setting.startswith("--trainer.seed="))
        if key not in self._known:
            self._known[key] = self._ask(point)
        return self._known[key]

    def _ask(self, point: Point) -> "Estimate | None":
        from fedgram.cli.lightning import cost_of

        try:
            return cost_of(point.settings)
        except FedgramError as error:
            self._reasons[point.name] = explain(error)
            return None


def _run(sweep: Sweep, root: Path, jobs: int) -> None:
    console = _console()
    console.print(f"{sweep.name}: {len(sweep.points)} runs in {root}", soft_wrap=True)
    changed = [point.name for point in sweep.points if look(point, root).state == "changed"]
    if changed:
        console.print(f"{len(changed)} of them have changed since they ran, and are run anew: {', '.join(changed)}")
    with _Display(console, len(sweep.points)) as display:
        outcomes, stopped = run_all(sweep.points, root, jobs, display)
    failed = [outcome for outcome in outcomes if outcome.has_failed]
    for outcome in failed:
        text = f"failed: {outcome.point.name} ({outcome.log}): {outcome.reason}"
        console.print(text, style="red", soft_wrap=True, markup=False, highlight=False)
    if stopped:
        console.print("stopped; the same command goes on with what is left")
        sys.exit(130 if stopped == "SIGINT" else 75)
    console.print(f"tables and pictures: fedgram compare {root}", soft_wrap=True)
    if failed:
        sys.exit(1)


class _Display:
    """Shows how far a sweep is: a bar on a terminal, else a line a run."""

    def __init__(self, console: "Console", total: int) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        self._console = console
        self._bar = Progress(
            BarColumn(bar_width=20), MofNCompleteColumn(), TextColumn("{task.description}"), console=console
        )
        self._task = self._bar.add_task("", total=total)

    def __enter__(self) -> "_Display":
        if self._console.is_terminal:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._console.is_terminal:
            self._bar.stop()

    def __call__(self, progress: Progress, ended: Outcome | None) -> None:
        self._bar.update(self._task, completed=progress.ended, description=_status(progress))
        if ended is not None:
            how = f"failed with exit code {ended.exit_code}" if ended.has_failed else "done"
            text = f"{ended.point.name}: {how}, {_duration(ended.seconds)}"
            if not self._console.is_terminal:
                text += f"; {_status(progress)}"
            self._console.print(text, soft_wrap=True, highlight=False)


def _status(progress: Progress) -> str:
    """Return how far a sweep is in a few words.

    >>> _status(Progress(3, finished=1, failed=1, elsewhere=1))
    '1 of 3 done, 1 failed, 1 running elsewhere, 0 left'
    """
    words = [f"{progress.finished} of {progress.total} done"]
    if progress.failed:
        words.append(f"{progress.failed} failed")
    if progress.elsewhere:
        words.append(f"{progress.elsewhere} running elsewhere")
    if progress.running:
        words.append("running " + ", ".join(progress.running))
    words.append(f"{len(progress.waiting)} left")
    seconds = progress.seconds_left(time.monotonic())
    return ", ".join([*words, f"about {_duration(seconds)}"] if seconds else words)


def _duration(seconds: float) -> str:
    """Return a time in the two units that say enough.

    >>> _duration(42.4), _duration(61), _duration(7260)
    ('42 s', '1 min 01 s', '2 h 01 min')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def _console() -> "Console":
    from rich.console import Console

    return Console()
