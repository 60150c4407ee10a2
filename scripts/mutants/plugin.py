"""A plugin of pytest that tries whether the tests notice mistakes: ``make mutants``.

``--record`` runs the tests once and writes which of them reach which line. ``--mutants 60`` then draws as many changes
of the sources and judges each: in a process forked from this one, which has all tests in memory, the changed function
takes the place of the true one, and the tests that reach its line run, the quickest first, until one fails. Tests that
start processes of their own see the sources as they are, and so judge nothing that only those processes do.
"""

import gc
import json
import os
import random
import resource
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import CodeType, FunctionType

import coverage
import pytest
from _pytest.runner import runtestprotocol
from changes import Change, find

ROOT = Path(__file__).parents[2]
EQUIVALENT = Path(__file__).with_name("equivalent.txt")
TARGETS = [
    "src/fedgram/methods/*.py",
    "src/fedgram/data/*.py",
    *(f"src/fedgram/{name}.py" for name in ("ledger", "collectives", "uploads", "checkpoint")),
]
SPARE = 30
"""CPU seconds that the tests of a mutant may take beside `TIMES` what they took before it."""
TIMES = 5
_OUTCOMES = ("survived", "killed", "misplaced")
"""By the exit code of the process that judges."""
WALL = 15
"""How many times as long as its CPU seconds a mutant may take, on a busy machine or waiting for what never comes."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options."""
    group = parser.getgroup("mutants")
    group.addoption("--record", type=Path, help="run the tests and write which lines they reach to this file")
    group.addoption("--reach", type=Path, action="append", default=[], help="a file that --record has written")
    group.addoption("--mutants", type=int, default=0, help="how many changes to judge")
    group.addoption("--mutants-seed", type=int, default=0, help="which ones")
    group.addoption("--mutants-only", help="the numbers of some of them, with commas in between")
    group.addoption("--mutants-json", type=Path, help="write what came of them to this file as well")


def pytest_runtestloop(session: pytest.Session) -> bool | None:
    """Record or judge in the place of running the tests, where that was asked for."""
    options = session.config.option
    if options.record is not None:
        record(session, options.record)
    elif options.mutants:
        judge_all(session)
    else:
        return None
    return True


def say(line: str) -> None:
    """Print a line, whatever pytest captures."""
    sys.__stdout__.write(line + "\n")
    sys.__stdout__.flush()


# --- which tests reach which lines ---


def record(session: pytest.Session, path: Path) -> None:
    """Run all tests and write which lines each of them reaches, and how many CPU seconds it takes."""
    watch = coverage.Coverage(data_file=None, config_file=False, include=[str(ROOT / target) for target in TARGETS])
    seconds: dict[str, float] = {}
    watch.start()
    for item, following in zip(session.items, [*session.items[1:], None], strict=True):
        begin = time.process_time()
        reports = _run(item, following, watch)
        if any(report.failed for report in reports):
            say(f"fails by itself, and is left out: {item.nodeid}")
        elif not any(report.skipped for report in reports):
            seconds[item.nodeid] = time.process_time() - begin
    watch.stop()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"seconds": seconds, "lines": _lines(watch.get_data(), list(seconds))}))


def _run(item: pytest.Item, following: pytest.Item | None, watch: coverage.Coverage) -> list[pytest.TestReport]:
    """Run a test; what a fixture reaches counts for all tests of the module, as it may be shared by them."""
    call = item.runtest

    def runtest() -> None:
        watch.switch_context(item.nodeid)
        try:
            call()
        finally:
            watch.switch_context(f"{item.nodeid.split('::')[0]}::")

    item.runtest = runtest  # type: ignore[method-assign]
    watch.switch_context(f"{item.nodeid.split('::')[0]}::")
    try:
        reports: list[pytest.TestReport] = runtestprotocol(item, log=True, nextitem=following)
        return reports
    finally:
        del item.runtest


def _lines(data: coverage.CoverageData, tests: Sequence[str]) -> dict[str, dict[int, list[str]]]:
    """Return the tests that reach each line of each file."""
    found = {}
    for file in data.measured_files():
        by_line = {line: set(names) for line, names in data.contexts_by_lineno(file).items()}
        found[str(Path(file).relative_to(ROOT))] = {
            line: [test for test in tests if test in names or f"{test.split('::')[0]}::" in names]
            for line, names in by_line.items()
        }
    return found


@dataclass
class Reach:
    """Which tests reach which lines, and their CPU seconds."""

    seconds: dict[str, float]
    lines: dict[str, dict[int, set[str]]]

    @classmethod
    def read(cls, paths: Sequence[Path]) -> "Reach":
        """Return what all of some files say together."""
        reach = cls({}, {})
        for path in paths:
            content = json.loads(path.read_text())
            reach.seconds |= content["seconds"]
            for file, lines in content["lines"].items():
                known = reach.lines.setdefault(file, {})
                for line, tests in lines.items():
                    known.setdefault(int(line), set()).update(tests)
        return reach

    def of(self, change: Change) -> list[str]:
        """Return the tests that reach a change, the quickest first."""
        tests = self.lines.get(str(change.path), {}).get(change.line, set())
        return sorted(tests, key=lambda test: (self.seconds[test], test))


# --- what they notice ---


@dataclass
class Verdict:
    """What came of one change.

    Attributes:
        number: its number.
        name: what it is.
        line: where it is.
        tests: how many tests reach it.
        outcome: "killed", "timeout", "survived", "unreached", or "misplaced" where it could not be put in place.
        by: the test that noticed it.
        seconds: how long it took.
    """

    number: int
    name: str
    line: int
    tests: int
    outcome: str
    by: str
    seconds: float

    @property
    def noticed(self) -> bool:
        return self.outcome in ("killed", "timeout")


def draw(count: int, seed: int) -> list[Change]:
    """Return some changes of all, but those that are known to change nothing."""
    paths = sorted(path for target in TARGETS for path in ROOT.glob(target))
    known = {line.split("  # ")[0].strip() for line in EQUIVALENT.read_text().splitlines() if line.strip()}
    changes = [change for path in paths for change in find(path.relative_to(ROOT)) if change.name not in known]
    return random.Random(seed).sample(changes, count)


def judge_all(session: pytest.Session) -> None:
    """Judge all changes that are drawn, and say what came of them."""
    options, items = session.config.option, {item.nodeid: item for item in session.items}
    reach, only, verdicts = Reach.read(options.reach), (options.mutants_only or "").split(","), []
    for number, change in enumerate(draw(options.mutants, options.mutants_seed)):
        if only == [""] or str(number) in only:
            verdicts.append(judge(number, change, [items[t] for t in reach.of(change) if t in items], reach))
            told = verdicts[-1]
            by = f" by {told.by}" if told.by else f" {told.tests} tests"
            say(f"{number:3} {told.outcome:<9} {told.seconds:5.1f} s  line {told.line}: {told.name}{by}")
    noticed = sum(verdict.noticed for verdict in verdicts)
    say(f"\n{noticed} of {len(verdicts)} noticed")
    if options.mutants_json is not None:
        options.mutants_json.write_text(json.dumps([asdict(verdict) for verdict in verdicts], indent=1))
    session.testsfailed = int(10 * noticed < 9 * len(verdicts))


def judge(number: int, change: Change, items: Sequence[pytest.Item], reach: Reach) -> Verdict:
    """Run the tests that reach a change against it, in a process of their own."""
    begin, limit = time.monotonic(), SPARE + TIMES * sum(reach.seconds[item.nodeid] for item in items)
    told = Verdict(number, change.name, change.line, len(items), "unreached", "", 0.0)
    if items:
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reading)
            _try(change, items, int(limit), writing)
        os.close(writing)
        status = _wait(child, begin + WALL * limit)
        with os.fdopen(reading) as pipe:
            told.by = pipe.read()
        told.outcome = "timeout" if os.WIFSIGNALED(status) else _OUTCOMES[os.WEXITSTATUS(status)]
    told.seconds = round(time.monotonic() - begin, 1)
    return told


def _wait(child: int, deadline: float) -> int:
    """Return the status that a process ends with, and end it if it takes too long."""
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return status
        if time.monotonic() > deadline:
            os.killpg(child, signal.SIGKILL)
        time.sleep(0.02)


def _try(change: Change, items: Sequence[pytest.Item], limit: int, pipe: int) -> None:
    """Put a change in place, run tests, and end this process: with 1 where one failed, and its name."""
    os.setpgid(0, 0)  # with all processes that tests start
    resource.setrlimit(resource.RLIMIT_CPU, (limit, limit + 5))
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    code = 2
    try:
        replace(change)
        code = 1
        for item, following in zip(items, [*items[1:], None], strict=True):
            if any(report.failed for report in runtestprotocol(item, log=False, nextitem=following)):
                os.write(pipe, item.nodeid.encode())
                break
        else:
            code = 0
    except BaseException as error:  # noqa: BLE001 (whatever a change breaks is noticed, once it is in place)
        os.write(pipe, f"{type(error).__name__}: {error}".encode())
    os._exit(code)


def replace(change: Change) -> None:
    """Give all functions of a file that a change is in their changed code.

    Raises:
        LookupError: there is none, so that the tests would judge the true one.
    """
    filename = str(ROOT / change.path)
    codes = {(code.co_qualname, code.co_firstlineno): code for code in _codes(change.code(filename))}
    replaced = 0
    for thing in gc.get_objects():
        if type(thing) is FunctionType and thing.__code__.co_filename == filename:
            code = codes.get((thing.__code__.co_qualname, thing.__code__.co_firstlineno), thing.__code__)
            if code != thing.__code__:
                thing.__code__ = code
                replaced += 1
    if not replaced:
        raise LookupError(f"nothing to change: {change.name}")


def _codes(code: CodeType) -> Iterator[CodeType]:
    """Yield all code in a code object."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes(constant)
