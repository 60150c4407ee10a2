"""A test of a run on several processes: the same figures on each, kept once, whatever the order of the classes."""

import json

import pytest

from fedgram.runs.results import read_result


@pytest.mark.slow
def test_a_test_on_two_processes_is_kept_once_and_is_that_of_one(nursery, material, tmp_path):
    found = {}
    for size in (1, 2):
        root = tmp_path / f"on-{size}"
        root.mkdir()
        nursery.run(size, "distributed.judging:fit_and_judge", material=material, root=str(root))
        own, reversed_ = json.loads((root / "rank_0.json").read_text())
        assert own == reversed_
        assert json.loads((root / f"rank_{size - 1}.json").read_text()) == [own, reversed_]
        (kept,) = (root / "run" / "version_0" / "results").iterdir()
        assert kept.name == "test_round_000001.json"
        assert read_result(root / "run" / "version_0", "test", 1).metrics == own
        found[size] = (own, kept.read_bytes())
    assert found[1] == found[2]
