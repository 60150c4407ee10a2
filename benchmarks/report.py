"""What the benchmarks share: the machine in words, tables in Markdown, and where the figures go.

A script takes `add_options` and ends with `publish`, which shows its table, saves its figures as JSON and puts the
table into a document between two comments, so that ``make bench`` rewrites tables and leaves prose alone:

    <!-- server_step:begin -->
    (all of this is replaced)
    <!-- server_step:end -->

Scripts import this module by its bare name: Python puts a script's folder on the path.
"""

import argparse
import datetime
import json
import math
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

__all__ = [
    "MarkersMissingError",
    "add_options",
    "best_seconds",
    "hardware",
    "paired_ratio",
    "publish",
    "save_json",
    "say",
    "table",
    "write_table",
]

TELLING_FLAGS = {
    "avx2": "AVX2",
    "avx512f": "AVX-512",
    "avx512_bf16": "AVX-512 bfloat16",
    "amx_bf16": "AMX bfloat16",
    "asimd": "NEON",
    "bf16": "bfloat16",
}
"""What of a CPU's flags decides how fast it multiplies matrices, by the kernel's name for it."""


class MarkersMissingError(ValueError):
    """A document has no place for a table."""


def write_table(document: Path, name: str, lines: Sequence[str]) -> None:
    """Replace what stands between ``<!-- NAME:begin -->`` and ``<!-- NAME:end -->``; all else stays as it is.

    Args:
        document: a Markdown file.
        name: the table's.
        lines: what comes between the two comments, without line ends.

    Raises:
        MarkersMissingError: the two comments are not there exactly once each and in this order.
    """
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    text = document.read_text(encoding="utf-8")
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        raise MarkersMissingError(
            f"expected the lines {begin} and {end} in {document.name}, once each and in this order, got "
            f"{text.count(begin)} and {text.count(end)} of them; put both where the table belongs"
        )
    before, after = text[: text.index(begin)], text[text.index(end) + len(end) :]
    _replace(document, "\n".join([before + begin, "", *lines, "", end + after]))


def _replace(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    with tempfile.NamedTemporaryFile("w", encoding="utf-8", dir=path.parent, delete=False) as draft:
        draft.write(text)
    Path(draft.name).chmod(path.stat().st_mode if path.exists() else 0o644)
    Path(draft.name).replace(path)


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    """Return the lines of a Markdown table.

    >>> table(["what", "s"], [["step", 1.5]])
    ['| what | s |', '|---|---|', '| step | 1.5 |']
    """
    rule = "|" + "---|" * len(head)
    return [_row(head), rule, *map(_row, rows)]


def _row(cells: Sequence[object]) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def hardware() -> str:
    """Return what belongs to every figure: date, processor, cores, GPU if there is one, and torch's version."""
    import torch

    words = [f"{_cpu()}, {_cores()}"]
    if torch.cuda.is_available():
        words.append(_gpus([torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]))
    words.append(f"torch {torch.__version__.partition('+')[0]}")
    return f"{datetime.date.today().isoformat()}, {', '.join(words)}"


def _cpu() -> str:
    """Return the processor's name and what of its instructions matters here."""
    facts = _cpu_facts(_read("/proc/cpuinfo"))
    name = facts.get("model name") or platform.processor() or platform.machine()
    flags = (facts.get("flags") or facts.get("Features") or "").split()
    telling = [word for flag, word in TELLING_FLAGS.items() if flag in flags]
    return f"{name} ({', '.join(telling)})" if telling else name


def _cpu_facts(text: str) -> dict[str, str]:
    """Return what the kernel says of the first processor."""
    pairs = [line.partition(":") for line in text.partition("\n\n")[0].splitlines()]
    return {key.strip(): value.strip() for key, _, value in pairs}


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError:
        return ""


def _cores() -> str:
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return f"{count} core{'s' * (count > 1)}"


def _gpus(names: Sequence[str]) -> str:
    """Return the names, each once with its number.

    >>> _gpus(["H200", "H200"])
    '2 x H200'
    """
    counts = {name: names.count(name) for name in dict.fromkeys(names)}
    return ", ".join(name if count == 1 else f"{count} x {name}" for name, count in counts.items())


def best_seconds(
    function: Callable[[], object],
    repeats: int = 5,
    after: Callable[[], object] = lambda: None,
    within: float = math.inf,
) -> float:
    """Return the shortest time of a call: what the code costs when nothing else disturbs it.

    Args:
        function: called once before it is timed.
        repeats: how often it is timed.
        after: called within the measured time, such as ``torch.cuda.synchronize``.
        within: seconds after which it is timed no more; where the first call took as long, that is its time.
    """
    seconds: list[float] = []
    while len(seconds) <= repeats and sum(seconds) < within:
        start = time.perf_counter()
        function()
        after()
        seconds.append(time.perf_counter() - start)
    return min(seconds[1:] or seconds)


def paired_ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Return the median of ours[i] / theirs[i] over the passes of an interleaved run.

    Paired by pass, since what slows a machine down for some minutes slows both.

    Raises:
        ValueError: not as many of one as of the other, or none.

    >>> paired_ratio([2.0, 6.0, 40.0], [1.0, 2.0, 20.0])
    2.0
    """
    if len(ours) != len(theirs) or not ours:
        raise ValueError(f"expected as many of ours as of theirs, got {len(ours)} and {len(theirs)}; pair the passes")
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))


def save_json(path: Path, figures: Any) -> None:
    """Write figures as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _replace(path, json.dumps(figures, indent=1) + "\n")


def say(lines: str | Iterable[str]) -> None:
    """Show a line or some lines at once, also where the output is a pipe."""
    text = lines if isinstance(lines, str) else "\n".join(lines)
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add where the figures go: the options that `publish` reads."""
    parser.add_argument("--json", type=Path, metavar="FILE", help="save the figures here")
    parser.add_argument("--write", type=Path, metavar="DOCUMENT", help="put the table into this Markdown document")


def publish(arguments: argparse.Namespace, name: str, lines: Sequence[str], figures: Any) -> None:
    """Show a script's table, with date and hardware above it, and put it where the options say.

    Args:
        arguments: those of `add_options`.
        name: the table's name in the document.
        lines: the table, and what is said below it.
        figures: what goes into the JSON file, beside the hardware.
    """
    machine = hardware()
    lines = [f"{machine}.", "", *lines]
    say(lines)
    if arguments.json:
        save_json(arguments.json, {"hardware": machine, name: figures})
    if arguments.write:
        write_table(arguments.write, name, lines)
