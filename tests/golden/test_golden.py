"""Short fits of every method and variant against what came of them when they were recorded.

``pytest tests/golden -m '' --record`` records them anew, in golden.json. A change that is to leave every number as it
is must leave that file as it is; one that does not says why the new numbers are right.
"""

import hashlib
import json
import platform
from pathlib import Path

import pytest
import torch

from distributed.conftest import material, nursery, once  # noqa: F401 (fixtures)
from distributed.fits import CASES
from distributed.test_fits import alone, fits  # noqa: F401 (fixtures)
from tables import rows

GOLDEN = Path(__file__).with_name("golden.json")


def kind_of_machine():
    """What the bits of a run in single precision depend on: the build of torch, and the processor and its instructions.

    Libraries of matrix products choose their code by all of it.
    """
    path = Path("/proc/cpuinfo")
    lines = path.read_text().split("\n\n")[0].splitlines() if path.exists() else [platform.processor()]
    told = [line for line in lines if line.startswith(("vendor_id", "cpu family", "model\t", "flags"))]
    digest = hashlib.sha256("\n".join(told or lines).encode()).hexdigest()[:16]
    return f"torch {torch.__version__}, {platform.machine()} {torch.backends.cpu.get_cpu_capability()} {digest}"


MACHINE = kind_of_machine()


@pytest.fixture(scope="module")
def golden(request):
    """What was recorded of each case; where it is recorded anew, a dictionary that is written at the end."""
    if not request.config.getoption("--record"):
        yield json.loads(GOLDEN.read_text())
        return
    found = {"machine": MACHINE, "cases": {name: {} for name in CASES}}
    yield found
    GOLDEN.write_text(json.dumps(found, indent=1) + "\n")


@pytest.fixture
def check(request, golden):
    """Compares one thing of a case with what was recorded, or records it."""

    def check(name, key, seen):
        if request.config.getoption("--record"):
            golden["cases"][name][key] = seen
        expected = golden["cases"][name][key]
        assert seen == (expected if isinstance(seen, str) else pytest.approx(expected, rel=1e-9, nan_ok=True))

    return check


@pytest.fixture(scope="module")
def precise(nursery, material, once):  # noqa: F811
    """Fits of all cases in double precision, in which a metric does not depend on the kind of processor."""
    with once("fits-in-double-precision") as (folder, is_there):
        if not is_there:
            settings = {"precision": "64-true", "evaluate_every": 1}
            arguments = {"names": list(CASES), "root": str(folder), "material": material, **settings}
            nursery.run(1, "distributed.fits:fit_all", **arguments)
    return folder


def summary_of(folder):
    summary = json.loads((folder / "rank_0.json").read_text())
    assert "error" not in summary, summary["error"]
    return summary


def test_every_case_was_recorded(golden):
    assert list(golden["cases"]) == list(CASES)


@pytest.mark.parametrize("name", CASES)
def test_what_travelled_is_what_was_recorded(alone, check, name):  # noqa: F811
    totals = {}
    for row in rows(alone / name / "run" / "version_0", "communication.csv"):
        for column in ("parameters", "bytes"):
            key = f"{row['direction']} {row['part']} {column}"
            totals[key] = totals.get(key, 0) + int(row[column])
    check(name, "traffic", totals)


@pytest.mark.parametrize("name", CASES)
def test_the_bits_are_those_that_were_recorded(alone, golden, check, name):  # noqa: F811
    if golden["machine"] != MACHINE:
        pytest.skip(f"recorded on another kind of machine: {golden['machine']}")
    check(name, "state_hash", summary_of(alone / name)["state_hash"])


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_metrics_are_those_that_were_recorded(precise, check, name):
    check(name, "metrics", summary_of(precise / name)["final"])
