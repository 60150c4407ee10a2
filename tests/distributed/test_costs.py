"""What ``fedgram cost`` says of a run, against the ledger of the run: every method and every variant."""

import json
from dataclasses import astuple
from pathlib import Path

import pytest

from distributed.fits import CASES, parts_of
from distributed.test_fits import alone, fits  # noqa: F401 (fixtures)
from fedgram.cost import Size, find_payloads
from fedgram.methods import Method
from tables import rows


def ledger_of(folder):
    """What a run's ledger has, by direction."""
    table = rows(folder, "communication.csv")

    def total(direction, part, column):
        return sum(int(r[column]) for r in table if (r["direction"], r["part"]) == (direction, part))

    keys = [(part, column) for column in ("parameters", "bytes") for part in ("adapter", "head")]
    return {direction: Size(*(total(direction, *key) for key in keys)) for direction in ("up", "down")}


@pytest.mark.parametrize("name", CASES)
def test_cost_is_what_the_ledger_of_the_run_has(alone, material, name):  # noqa: F811
    """Five of seven clients take part in each of three rounds: some come late, some miss rounds."""
    folder: Path = alone / name / "run" / "version_0"
    trainer, task, data, method = parts_of(name, material, root="runs")
    payloads = find_payloads(trainer.settings, task, data, {name: method})[name]
    for direction, seen in ledger_of(folder).items():
        least, most = payloads.bounds(f"all_{direction}")
        inside = zip(*map(astuple, (least, seen, most)), strict=True)
        assert all(a <= b <= c for a, b, c in inside), (direction, least, seen, most)
    assert method.unknown or not payloads.least
    first = {(r["direction"], r["part"]): int(r["parameters"]) for r in rows(folder, "communication.csv")[:4]
             if r["round"] == "1"}  # fmt: skip
    # What clients start from comes from the seed, so that only an answer to what they have sent goes down.
    answers = type(method).answer is not Method.answer
    assert answers or ("down", "adapter") not in first
    assert answers or ("down", "head") not in first


def test_the_ledger_and_the_summary_agree(alone):  # noqa: F811
    summary = json.loads((alone / "FedIT" / "rank_0.json").read_text())
    seen = ledger_of(alone / "FedIT" / "run" / "version_0")
    assert [seen[way].parameters for way in ("up", "down")] == [summary[f"parameters_{way}"] for way in ("up", "down")]
