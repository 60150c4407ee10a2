"""fedgram against other simulators on one workload, each run as a process of its own, in turn.

    python benchmarks/against_peers.py --peers FOLDER --model FOLDER --passes 5 --padding dynamic max

``FOLDER`` of the peers has one script a peer and `common.py`, which makes the workload and measures; beside the folder
is a virtual environment for each peer. A script takes the command line of `common.parser` and ends with a line of JSON.
A peer without its environment is left out and named. All contestants take their turn in every pass, each pass begins
with another, and rounds during which other processes used the machine do not count.
"""

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from report import add_options, paired_ratio, publish, say, table

BUSY = 0.1
"""Cores that others may use in a round that counts."""
FEDGRAM = Path(__file__).with_name("peer.py")
CHECK = {"clients": 6, "rounds": 2}
"""The run whose results are compared: long enough for the second round to start from aggregated tensors."""
LORA = {"targets": ("query", "value"), "rank": 4}
"""The adapters that `common.build_model` makes."""


@dataclass(frozen=True)
class Contestant:
    """One way of running the workload.

    Attributes:
        key: its name on the command line and in the figures.
        label: its row in the table.
        script: in the peers' folder; empty for fedgram's own.
        options: what it takes beside the common command line.
        venv: its environment's folder beside that of the peers; empty for this one.
        limit: the arithmetic that bounds it.
    """

    key: str
    label: str
    script: str = ""
    options: tuple[str, ...] = ()
    venv: str = ""
    limit: str = "float32"

    @property
    def ours(self) -> bool:
        """Whether this is fedgram."""
        return not self.script


CONTESTANTS = (
    Contestant("peft", "PEFT, plain loop", "peft_loop.py", (), "venv-peft"),
    Contestant("peft2", "PEFT, loop in 2 processes", "peft_loop.py", ("--procs", "2"), "venv-peft"),
    Contestant("pfl2", "pfl-research, 2 processes", "pfl_sim.py", ("--procs", "2"), "venv-pfl"),
    Contestant("flower2", "Flower, 2 actors", "flower_sim.py", ("--actors", "2"), "venv-flower"),
    Contestant("block1", "fedgram, one client a block", options=("--block", "1")),
    Contestant("auto", "**fedgram**, float32"),
    Contestant("ranks2", "fedgram, 2 ranks of half the threads", options=("--procs", "2")),
    Contestant("bf16", "**fedgram**, `bf16-true`", options=("--precision", "bf16-true"), limit="bfloat16"),
)
REFERENCE = CONTESTANTS[0]

LONGEST = 1200.0
"""Seconds that a run may take."""


class RunFailedError(RuntimeError):
    """A contestant ended without its line of figures."""


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the command line."""
    parser = argparse.ArgumentParser(description="fedgram against other simulators", allow_abbrev=False)
    parser.add_argument("--peers", type=Path, required=True, help="the folder of the peers' scripts")
    parser.add_argument("--model", type=Path, required=True, help="the folder of the pretrained model")
    parser.add_argument("--passes", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=3, help="of each run; the first does not count")
    parser.add_argument("--clients", type=int, default=20)
    parser.add_argument("--local-steps", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--padding", nargs="+", choices=["dynamic", "max"], default=["dynamic", "max"])
    parser.add_argument("--threads", type=int, default=2, help="in all")
    keys = [contestant.key for contestant in CONTESTANTS]
    parser.add_argument("--only", nargs="+", choices=keys, default=keys, help="the contestants")
    parser.add_argument(
        "--minutes", type=float, default=float("inf"), help="begin no pass that would end later, and cut what does"
    )
    parser.add_argument("--retries", type=int, default=1, help="of a run without a round that counts")
    parser.add_argument("--no-check", action="store_true", help="do not compare the results")
    add_options(parser)
    return parser.parse_args(words)


def python(contestant: Contestant, peers: Path) -> Path:
    """Return the Python that runs a contestant."""
    return Path(sys.executable) if contestant.ours else peers.parent / contestant.venv / "bin" / "python"


def present(arguments: argparse.Namespace) -> tuple[list[Contestant], list[str]]:
    """Return the contestants that can run here, and the labels of those that cannot."""
    asked = [c for c in CONTESTANTS if c.key in arguments.only]
    there = [c for c in asked if python(c, arguments.peers).exists()]
    return there, [c.label for c in asked if c not in there]


def command(contestant: Contestant, arguments: argparse.Namespace, padding: str, **changes: object) -> list[str]:
    """Return the command line of one run; `changes` replaces or adds options."""
    peers, own = arguments.peers.resolve(), contestant.ours
    options: dict[str, object] = {
        "model": arguments.model.resolve(),
        "clients": arguments.clients,
        "rounds": arguments.rounds,
        "local_steps": arguments.local_steps,
        "batch_size": arguments.batch_size,
        "padding": padding,
        "threads": arguments.threads,
        **({"peers": peers} if own else {}),
        **changes,
    }
    words = [word for key, value in options.items() for word in (f"--{key.replace('_', '-')}", str(value))]
    script = FEDGRAM if own else peers / contestant.script
    return [str(python(contestant, arguments.peers).absolute()), str(script), *contestant.options, *words]


def environment(contestant: Contestant) -> dict[str, str]:
    """Return a process's environment: a peer is not to see this one's modules, and the scripts set their threads."""
    foreign = {"OMP_NUM_THREADS", "MKL_NUM_THREADS"} | (set() if contestant.ours else {"PYTHONPATH"})
    return {key: value for key, value in os.environ.items() if key not in foreign}


def run(contestant: Contestant, words: Sequence[str], seconds: float = LONGEST) -> dict[str, Any]:
    """Run one contestant and return its figures.

    Raises:
        RunFailedError: it took too long, or ended without them.
    """
    with tempfile.TemporaryFile("w+") as log:
        # A process group of its own, since a run that hangs has children.
        process = subprocess.Popen(words, stdout=log, stderr=log, env=environment(contestant), start_new_session=True)
        try:
            process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            raise RunFailedError(f"{contestant.label}: no end within {seconds:.0f} s") from None
        finally:
            end_group(process)
        log.seek(0)
        lines = log.read().splitlines()
    found = [line for line in lines if line.startswith('{"peer"')]
    if not found:
        raise RunFailedError(f"{contestant.label}: no line of figures, but: {' / '.join(lines[-3:]) or 'nothing'}")
    return json.loads(found[-1])


def _end(number: int, frame: object) -> NoReturn:
    del frame
    sys.exit(128 + number)


def end_group(process: "subprocess.Popen[bytes]") -> None:
    """End what is left of a run."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    process.wait()


def clean_rounds(figures: Mapping[str, Any]) -> list[float]:
    """Return the seconds of the rounds during which other processes left the machine alone."""
    seconds = figures["seconds_per_round"]
    others = figures.get("other_cpu_per_round") or [0.0] * len(seconds)
    return [s for s, busy in zip(seconds, others, strict=True) if busy < BUSY]


def in_turn(contestants: Sequence[Contestant], number: int) -> list[Contestant]:
    """Return the order of a pass: each begins one further."""
    start = number % max(1, len(contestants))
    return [*contestants[start:], *contestants[:start]]


def legs(passes: int, paddings: Sequence[str]) -> Iterator[tuple[int, str]]:
    """Yield the parts of all passes: the contestants at one padding."""
    return ((number, padding) for number in range(passes) for padding in paddings)


def race(arguments: argparse.Namespace, contestants: Sequence[Contestant], deadline: float) -> Iterator[dict[str, Any]]:
    """Run all passes, as many as end in time, and yield the figures of each run.

    fedgram computes nothing on padding, however much there is: it takes part at the first one.
    """
    took: dict[str, float] = {}
    for number, padding in legs(arguments.passes, arguments.padding):
        # The first at full padding has about twice the tokens of the one before.
        if took and time.monotonic() + took.get(padding, 2 * max(took.values())) > deadline:
            break
        start = time.monotonic()
        for contestant in in_turn(contestants, number):
            if not contestant.ours or padding == arguments.padding[0]:
                yield from repeated(contestant, arguments, padding, number, deadline)
        took[padding] = time.monotonic() - start


def repeated(
    contestant: Contestant, arguments: argparse.Namespace, padding: str, number: int, deadline: float
) -> Iterator[dict[str, Any]]:
    """Run a contestant until a round of it counts, and yield the figures of each attempt; none after the deadline."""
    for attempt in range(arguments.retries + 1):
        place = {"contestant": contestant.key, "padding": padding, "pass": number, "attempt": attempt}
        left = deadline - time.monotonic()
        if left <= 0:
            return
        try:
            figures = run(contestant, command(contestant, arguments, padding), min(left, LONGEST))
        except RunFailedError as error:
            say(str(error))
            yield {**place, "failed": str(error), "seconds_per_round": []}
            return
        clean = clean_rounds(figures)
        say(f"pass {number + 1}, {padding}: {contestant.label}: {figures['seconds_per_round']}, {len(clean)} count")
        yield {**place, **figures}
        if clean:
            return


def summarise(runs: Sequence[Mapping[str, Any]], padding: str, ours: str, steps: int) -> dict[str, dict[str, Any]]:
    """Return, by contestant, the medians of what counts.

    Args:
        runs: as `race` returns them.
        padding: the peers'.
        ours: the padding at which fedgram ran.
        steps: client-steps of a round.
    """
    summary = {}
    for contestant in CONTESTANTS:
        at = ours if contestant.ours else padding
        used = [r for r in runs if (r["contestant"], r["padding"]) == (contestant.key, at) and clean_rounds(r)]
        if used:
            by_pass = {r["pass"]: statistics.median(clean_rounds(r)) for r in used}
            seconds = statistics.median(by_pass.values())
            summary[contestant.key] = {
                "seconds": seconds,
                "by_pass": by_pass,
                "steps_per_second": steps / seconds,
                "peak_mb": _median(r.get("peak_mb") for r in used),
                "first_round": _median(r.get("first_round_s") for r in used),
            }
    return summary


def _median(values: Iterator[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def best_peer(summary: Mapping[str, Mapping[str, Any]]) -> str | None:
    """Return the fastest contestant that is not fedgram."""
    peers = [c.key for c in CONTESTANTS if not c.ours and c.key in summary]
    return min(peers, key=lambda key: summary[key]["seconds"], default=None)


def against(summary: Mapping[str, Mapping[str, Any]], key: str, best: str) -> float | None:
    """Return how many times as fast as the best peer a contestant is, by the passes that both have."""
    theirs, own = summary[best]["by_pass"], summary[key]["by_pass"]
    both = sorted(theirs.keys() & own.keys())
    return paired_ratio([theirs[p] for p in both], [own[p] for p in both]) if both else None


def rows(summary: Mapping[str, Mapping[str, Any]], limit: Mapping[str, float]) -> list[list[str]]:
    """Return the rows of one padding's table."""
    best = best_peer(summary)
    lines = []
    for contestant in CONTESTANTS:
        if contestant.key not in summary:
            continue
        own = summary[contestant.key]
        speed = own["steps_per_second"]
        ratio = against(summary, contestant.key, best) if best else None
        lines.append(
            [
                contestant.label,
                f"{speed:.1f}",
                f"{own['seconds']:.1f}",
                _cell(ratio, ".2f"),
                f"{100 * speed / limit[contestant.limit]:.0f} %",
                _cell(own["peak_mb"], ",.0f"),
                _cell(own["first_round"], ".1f"),
            ]
        )
    return lines


def _cell(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


HEAD = [
    "",
    "client-steps a second",
    "s a round",
    "times the best peer",
    "of the arithmetic limit",
    "peak MB",
    "start to end of first round, s",
]
PADDED = {"dynamic": "Peers pad a batch to its longest sequence:", "max": "Peers pad all sequences to 128:"}


def compare_results(
    arguments: argparse.Namespace, contestants: Sequence[Contestant], deadline: float
) -> dict[str, dict[str, float]]:
    """Return, by contestant, how far the server's tensors are from the plain loop's after some rounds.

    Those whose turn comes after the deadline are left out.
    """
    if REFERENCE not in contestants:
        return {}
    differences = {}
    with tempfile.TemporaryDirectory() as folder:
        for contestant in contestants:
            target = Path(folder) / f"{contestant.key}.npz"
            words = command(contestant, arguments, "dynamic", **CHECK, mem_interval=0, dump_state=target)
            left = deadline - time.monotonic()
            if left <= 0:
                break
            try:
                run(contestant, words, min(left, LONGEST))
            except RunFailedError as error:
                say(str(error))
                continue
            if contestant != REFERENCE:
                differences[contestant.key] = difference(Path(folder) / f"{REFERENCE.key}.npz", target)
    return differences


def difference(first: Path, second: Path) -> dict[str, float]:
    """Return the largest and the mean absolute difference of two sets of tensors.

    Raises:
        ValueError: they have not the same names.
    """
    with np.load(first) as ours, np.load(second) as theirs:
        if set(ours) != set(theirs):
            raise ValueError(f"expected the tensors {sorted(ours)}, got {sorted(theirs)}; is it the same workload?")
        apart = np.concatenate([np.abs(ours[name].astype(float) - theirs[name]).ravel() for name in ours])
    return {"max": float(apart.max()), "mean": float(apart.mean())}


def lines_of(
    arguments: argparse.Namespace,
    runs: Sequence[Mapping[str, Any]],
    limit: Mapping[str, float],
    differences: Mapping[str, Mapping[str, float]],
    left_out: Sequence[str],
) -> list[str]:
    """Return what goes into the document."""
    raced = [padding for padding in arguments.padding if any(r["padding"] == padding for r in runs)]
    counted = sum(len(clean_rounds(r)) for r in runs)
    dropped = sum(len(r["seconds_per_round"]) for r in runs) - counted
    lines = [
        f"{arguments.threads} threads in all; interleaved passes: {1 + max((r['pass'] for r in runs), default=-1)}; "
        f"medians of {counted} rounds; left out are {dropped} rounds during which other processes used over "
        f"{BUSY} core.",
    ]
    steps = arguments.clients * arguments.local_steps
    for padding in raced:
        summary = summarise(runs, padding, arguments.padding[0], steps)
        lines += ["", PADDED[padding], "", *table(HEAD, rows(summary, limit))]
    lines += ["", limit_sentence(limit)]
    if differences:
        lines += ["", *agreement(differences)]
    said = {"Not installed here": left_out, **missing(runs)}
    return [*lines, *(f"\n{why}: {', '.join(labels)}." for why, labels in said.items() if labels)]


def missing(runs: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """Return who took part and is in no table, by the reason."""
    failed, busy = "Failed", "Without a round that counts, as others used the machine"
    found: dict[str, list[str]] = {failed: [], busy: []}
    for contestant in CONTESTANTS:
        own = [r for r in runs if r["contestant"] == contestant.key]
        if own and not any(clean_rounds(r) for r in own):
            found[failed if "failed" in own[-1] else busy].append(contestant.label)
    return found


def limit_sentence(limit: Mapping[str, float]) -> str:
    """Return the arithmetic limit in words."""
    return (
        f"The arithmetic limit: {limit['gflop_per_step']:.2f} GFLOP a client-step are needed (counted, without "
        f"padding), and products of these shapes run at {limit['float32_gflops']:.0f} GFLOP/s in float32 and "
        f"{limit['bfloat16_gflops']:.0f} in bfloat16 here, by oneDNN: {limit['float32']:.1f} and "
        f"{limit['bfloat16']:.1f} client-steps a second. `nn.Linear`, which the others use, multiplies at "
        f"{limit['float32_linear_gflops']:.0f} and {limit['bfloat16_linear_gflops']:.0f} GFLOP/s."
    )


def agreement(differences: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Return a table of how far results are from the plain loop's."""
    labels = {contestant.key: contestant.label for contestant in CONTESTANTS}
    head = [f"server's tensors after {CHECK['rounds']} rounds of {CHECK['clients']} clients, against the plain loop's"]
    cells = [[labels[key], f"{d['max']:.0e}", f"{d['mean']:.0e}"] for key, d in differences.items()]
    return table([*head, "largest difference", "mean"], cells)


def measured_limit(arguments: argparse.Namespace) -> dict[str, float]:
    """Return the arithmetic limit of the peers' workload on this machine."""
    sys.path.insert(0, str(arguments.peers))
    import common

    from limit import steps_per_second

    steps = arguments.clients * arguments.local_steps
    lengths = common.lengths(steps * arguments.batch_size)
    return steps_per_second(arguments.model, lengths, steps, arguments.threads, **LORA)


def main(words: Sequence[str] | None = None) -> None:
    """Run the passes and publish the tables."""
    arguments = parse(words)
    signal.signal(signal.SIGTERM, _end)  # so that a run ends with this process
    deadline = time.monotonic() + 60 * arguments.minutes
    contestants, left_out = present(arguments)
    limit = measured_limit(arguments)
    say(limit_sentence(limit))
    runs: list[dict[str, Any]] = []
    differences: dict[str, dict[str, float]] = {}
    try:
        if not arguments.no_check:
            differences = compare_results(arguments, contestants, deadline)
        runs.extend(race(arguments, contestants, deadline))
    finally:  # also of what a signal cuts short
        figures = {"runs": runs, "limit": limit, "differences": differences, "left_out": left_out}
        publish(arguments, "against_peers", lines_of(arguments, runs, limit, differences, left_out), figures)


if __name__ == "__main__":
    main()
