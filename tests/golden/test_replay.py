"""Whether clients train from what they were sent, what they kept and the seed, and from nothing else."""

import json

import pytest

from distributed.conftest import material, nursery, once  # noqa: F401 (fixtures)
from distributed.fits import CASES
from distributed.test_fits import alone, fits  # noqa: F401 (fixtures)


@pytest.mark.parametrize("name", CASES)
def test_every_start_is_what_the_client_has_by_its_payloads(alone, name):  # noqa: F811
    seen = json.loads((alone / name / "replay.json").read_text())
    assert seen["wrong"] == []
    assert seen["starts"] > 0
